"""The archives as their authors publish them: where they are, what they hold, what is allowed."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

_IMDB_WIKI = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki"


@dataclass(frozen=True)
class Archive:
    """An archive as its authors publish it.

    Attributes:
        file: Its name, and its name in a mirror.
        folder: The folder that it unpacks to.
        url: Its official home.
        home: The page to read, and to download from by hand.
        md5: Its checksum where one is known.
        size: Bytes, roughly.
        licence: What the authors allow.
    """

    file: str
    folder: str
    url: str
    home: str
    md5: str | None
    size: int
    licence: str


ARCHIVES = {
    "wiki": Archive(
        "wiki_crop.tar",
        "wiki_crop",
        f"{_IMDB_WIKI}/static/wiki_crop.tar",
        _IMDB_WIKI,
        "f536eb7f5eae229ae8f286184364b42b",
        811_315_200,
        "academic research only",
    ),
    "imdb": Archive(
        "imdb_crop.tar",
        "imdb_crop",
        f"{_IMDB_WIKI}/static/imdb_crop.tar",
        _IMDB_WIKI,
        "44b7548f288c14397cb7a7bab35ebe14",
        7_012_157_440,
        "academic research only",
    ),
    "utkface": Archive(
        "UTKFace.tar.gz",
        "UTKFace",
        "https://drive.google.com/uc?id=0BxYys69jI14kYVM3aVhKS1VhRUk"
        "&resourcekey=0-dabpv_3J0C0cditpiAfhAw",
        "https://susanqq.github.io/UTKFace",
        None,
        106_634_631,
        "non-commercial research only",
    ),
}


def describe(names: Sequence[str]) -> pd.DataFrame:
    """Returns what a user should know of some archives: file, size, licence and home."""
    rows = [
        {"data set": name, "file": a.file, "GB": a.size / 1e9, "licence": a.licence, "home": a.home}
        for name, a in ((name, ARCHIVES[name]) for name in names)
    ]
    return pd.DataFrame(rows).set_index("data set").round(1)
