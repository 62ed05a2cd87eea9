"""The data sets by name: where their images lie, and how their labels are read.

Any folder or zip file with a `labels.csv` is a data set under its own name, and needs no entry.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets.archives import Archive
from agelib.datasets.own_photos import read_labelled
from agelib.datasets.readers import read_imdb_wiki, read_utkface
from agelib.disk_errors import on_google

_IMDB_WIKI = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki"


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set."""

    archive: Archive
    licence: str = "yours"
    home: str = ""  # the page to read, and to download from by hand
    # Takes the folder that the archive unpacks to, and returns its table; with `age_high` where
    # ages are ranges, and `split` where its labels come from a `labels.csv`.
    reader: Callable[[Path], pd.DataFrame] = read_labelled
    same_people: tuple[str, ...] = ()  # data sets with people of this one, under the same names
    # How often training shows its faces, relative to those of a set whose labels were checked.
    sampling_weight: float = 1.0


def _imdb_wiki(name: str, other: str, md5: str, size: int) -> DataSet:
    file = f"{name}_crop.tar"
    return DataSet(
        Archive(file, f"{name}_crop", f"{_IMDB_WIKI}/static/{file}", md5, size),
        "academic research only",
        _IMDB_WIKI,
        functools.partial(read_imdb_wiki, name=name),
        same_people=(other,),
        # A name, a date of birth and a photo's year from the web: some faces are of another person.
        sampling_weight=0.5,
    )


def _labelled(name: str, *licence_and_home: str) -> DataSet:
    return DataSet(Archive(f"{name}.zip", name), *licence_and_home)


DATASETS = {
    "wiki": _imdb_wiki("wiki", "imdb", "f536eb7f5eae229ae8f286184364b42b", 811_315_200),
    "imdb": _imdb_wiki("imdb", "wiki", "44b7548f288c14397cb7a7bab35ebe14", 7_012_157_440),
    "utkface": DataSet(
        Archive(
            "UTKFace.tar.gz",
            "UTKFace",
            # Where Google Drive's pages about a large file end up, with their question answered.
            "https://drive.usercontent.google.com/download?id=0BxYys69jI14kYVM3aVhKS1VhRUk"
            "&export=download&confirm=t&resourcekey=0-dabpv_3J0C0cditpiAfhAw",
            size=106_634_631,
            kaggle="jangedoo/utkface-new",
        ),
        "non-commercial research only",
        "https://susanqq.github.io/UTKFace",
        read_utkface,
    ),
    "aaf": _labelled(
        "aaf",
        "research only, to be cited",
        "https://github.com/JingchunCheng/All-Age-Faces-Dataset",
    ),
    "appa-real": _labelled(
        "appa-real",
        "academic research only",
        "https://chalearnlap.cvc.uab.es/dataset/26/description",
    ),
    "fairface": _labelled("fairface", "CC BY 4.0", "https://github.com/joojs/fairface"),
}


def find_dataset(name: str) -> DataSet:
    """Returns what is known of a data set: of one without an entry, what follows from its name."""
    return DATASETS.get(name) or _labelled(name)


def describe(names: Sequence[str]) -> pd.DataFrame:
    """Returns what a user should know of some data sets: file, size, licence and home."""
    rows = [
        {
            "file": dataset.archive.file,
            "GB": (dataset.archive.size or np.nan) / 1e9,
            "licence": dataset.licence,
            "home": dataset.home,
        }
        for dataset in map(find_dataset, names)
    ]
    return pd.DataFrame(rows, pd.Index(names, name="data set")).round(1)


def images_folder(name: str, config: Config) -> Path:
    """Returns the folder with a data set's images; photos on Google Drive have a copy here.

    Raises AgelibError if it is `own`, and the settings name none.
    """
    if name != "own":
        return config.raw / find_dataset(name).archive.folder
    if config.own is None and config.profile == "sample":
        return config.folder / "own"
    if config.own is None:
        raise AgelibError(
            "own data need a folder: name the one with your images and their labels.csv (--own "
            "FOLDER, or folder in notebook 07)."
        )
    return config.raw / "own" if on_google(config.own) else config.own
