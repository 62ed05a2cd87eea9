"""The data sets by name: where their images lie, how their labels are read, who is in which split.

Any folder or zip file with a `labels.csv` is a data set under its own name, and needs no entry.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets.archives import LABELS, Archive
from agelib.datasets.own_photos import read_labelled
from agelib.disk import on_google
from agelib.faces.shards import FaceSet, read_manifest
from agelib.labels import read_imdb_wiki, read_utkface, split_by_hash, split_by_person


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set.

    Attributes:
        archive: What its images come in.
        licence: What its authors allow.
        home: The page to read, and to download from by hand.
        reader: Takes the folder that the archive unpacks to, and returns one row for each image:
            `path`, `age`, `gender`, `person`, `race` and `reject`; `age_high` where ages are
            ranges, and `split` where the set has official ones ("" elsewhere).
        sampling_weight: How often training shows its faces, relative to those of a set whose labels
            were checked.
        same_people: The data sets that show people of this one under the same identities.
    """

    archive: Archive
    licence: str = "yours"
    home: str = ""
    reader: Callable[[Path], pd.DataFrame] = read_labelled
    same_people: tuple[str, ...] = ()
    sampling_weight: float = 1.0


_IMDB_WIKI = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki"

# A name, a date of birth and a photo's year from the web: some faces are of another person.
_UNCHECKED = 0.5

DATASETS = {
    "wiki": DataSet(
        Archive(
            "wiki_crop.tar",
            "wiki_crop",
            f"{_IMDB_WIKI}/static/wiki_crop.tar",
            "f536eb7f5eae229ae8f286184364b42b",
            811_315_200,
        ),
        "academic research only",
        _IMDB_WIKI,
        functools.partial(read_imdb_wiki, name="wiki"),
        ("imdb",),
        _UNCHECKED,
    ),
    "imdb": DataSet(
        Archive(
            "imdb_crop.tar",
            "imdb_crop",
            f"{_IMDB_WIKI}/static/imdb_crop.tar",
            "44b7548f288c14397cb7a7bab35ebe14",
            7_012_157_440,
        ),
        "academic research only",
        _IMDB_WIKI,
        functools.partial(read_imdb_wiki, name="imdb"),
        ("wiki",),
        _UNCHECKED,
    ),
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
    "aaf": DataSet(
        Archive("aaf.zip", "aaf"),
        "research only, to be cited",
        "https://github.com/JingchunCheng/All-Age-Faces-Dataset",
    ),
    "appa-real": DataSet(
        Archive("appa-real.zip", "appa-real"),
        "academic research only",
        "https://chalearnlap.cvc.uab.es/dataset/26/description",
    ),
    "fairface": DataSet(
        Archive("fairface.zip", "fairface"), "CC BY 4.0", "https://github.com/joojs/fairface"
    ),
}


def find(name: str) -> DataSet:
    """Returns what is known of a data set: of one without an entry, what follows from its name."""
    return DATASETS.get(name) or DataSet(Archive(f"{name}.zip", name))


def describe(names: Sequence[str]) -> pd.DataFrame:
    """Returns what a user should know of some data sets: file, size, licence and home."""
    rows = [
        {
            "data set": name,
            "file": found.archive.file,
            "GB": (found.archive.size or np.nan) / 1e9,
            "licence": found.licence,
            "home": found.home,
        }
        for name, found in ((name, find(name)) for name in names)
    ]
    return pd.DataFrame(rows).set_index("data set").round(1)


def images_folder(name: str, config: Config) -> Path:
    """Returns the folder with a data set's images; photos on Google Drive have a copy here.

    Raises:
        AgelibError: If it is `own`, and the settings name none.
    """
    if name != "own":
        return config.raw / find(name).archive.folder
    if config.own is None and config.profile == "sample":
        return config.folder / "own"
    if config.own is None:
        raise AgelibError(
            "own data need a folder: name the one with your images and their labels.csv (--own "
            "FOLDER, or folder in notebook 07)."
        )
    return config.raw / "own" if on_google(config.own) else config.own


def read_table(name: str, config: Config) -> pd.DataFrame:
    """Returns a data set's table with its rows assigned to splits.

    Args:
        name: The data set's.
        config: Says where the images are, what is trained on and what is tested on.

    Returns:
        What its reader returns, with `split` "train", "val" or "test", and `official` where the
        set's own labels say so, "" where the person decides. Of a set that is only tested on, the
        images of its official test split count or, where it has none, those of its validation
        split; the others are rejected as "not_test".

    Raises:
        AgelibError: If the images or their metadata are not there.
    """
    check_sources(config)
    table = find(name).reader(images_folder(name, config))
    official = table["split"] if "split" in table else pd.Series("", table.index)
    named = set(official[table["reject"] == ""])
    if name not in config.train_sources:
        tested = next((split for split in ("test", "val") if split in named), None)
        unused = (official != tested) & (table["reject"] == "") & bool(tested)
        reject = table["reject"].mask(unused, "not_test")
        return table.assign(reject=reject, split="test", official=official.where(~unused, ""))
    shares = _held_out(name, config, named)
    split = pd.Series(split_by_person(table["person"], *shares), table.index)
    split = split.mask(official.isin(["val", "test"]), official)
    if find(name).reader is read_labelled:
        _need_all_splits(table, split, ["train", "val", *(["test"] if shares[1] else [])])
    return table.assign(split=split, official=official)


def check_sources(config: Config) -> None:
    """Makes sure that nobody who is trained on in one set is tested on in another.

    Raises:
        AgelibError: If somebody would be.
    """
    for tested in set(config.test_sources) - set(config.train_sources):
        for trained in set(config.train_sources) & set(find(tested).same_people):
            raise AgelibError(
                f"test_sources has {tested}, which shows the same people as {trained}: train on "
                f"{tested} too (--train-sources), or test on another set."
            )


def check_splits(names: Iterable[str], config: Config) -> None:
    """Makes sure that face sets were split as the settings ask: the hash of each person tells.

    Args:
        names: Of the face sets.
        config: As for `read_table`.

    Raises:
        AgelibError: If one was split otherwise.
    """
    check_sources(config)
    for name in names:
        folder = config.faces / name
        manifest = read_manifest(folder)
        official = set(manifest["official"])
        trained, shares = name in config.train_sources, _held_out(name, config, official)
        splits = [split for split, count in manifest["splits"].items() if count]
        hashed = set(splits) - ((official - {"train"}) if trained else set())
        as_asked = all(
            (split_by_hash(FaceSet([folder], split).person, *shares) == split).all()
            for split in hashed
        )
        if not as_asked or (trained and "train" not in splits):
            raise AgelibError(
                f"{folder} was split into train, val and test by other settings: give the "
                "--train-sources, --test-sources and --val-fraction that it was cleaned with, "
                "or delete it and clean again."
            )


def _held_out(name: str, config: Config, official: set[str]) -> tuple[float, float]:
    """Returns the shares of a data set's people that are for validation and for testing.

    A split that the set's own labels name gets nobody else.
    """
    if name not in config.train_sources:
        return 0.0, 1.0
    tested = set(config.test_sources) & set(config.train_sources)
    shared = tested & {name, *find(name).same_people}
    val = 0.0 if "val" in official else config.val_fraction
    return val, config.val_fraction if shared and "test" not in official else 0.0


def _need_all_splits(table: pd.DataFrame, split: pd.Series, wanted: list[str]) -> None:
    """Refuses photos of so few people that chance puts none of them into a split."""
    usable = table["reject"] == ""
    empty = [name for name in wanted if not (split[usable] == name).any()]
    if empty:
        raise AgelibError(
            f"None of the {table['person'][usable].nunique():,} persons in {LABELS} came into "
            f"{' or '.join(empty)}, where a hash of the person decides: photos of more people are "
            "needed, about twenty or more."
        )
