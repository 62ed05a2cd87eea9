"""The data sets by name: where their images lie, how their labels are read, who is in which split.

A new data set is a function that returns such a table, a line in `READERS`, and a name in
`agelib.config.SOURCES`.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import AgelibError
from agelib.archives import ARCHIVES
from agelib.config import Config
from agelib.drive_errors import on_google
from agelib.labels import read_imdb_wiki, read_utkface, split_by_hash, split_by_person
from agelib.own import LABELS, read_own
from agelib.shards import FaceSet, read_manifest

# Each takes the folder that `images_folder` names, and returns one row for each image: `path`,
# `age`, `gender`, `person`, `race` and `reject`.
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "wiki": functools.partial(read_imdb_wiki, name="wiki"),
    "imdb": functools.partial(read_imdb_wiki, name="imdb"),
    "utkface": read_utkface,
    "own": read_own,
}


def images_folder(name: str, config: Config) -> Path:
    """Returns the folder with a data set's images; photos on Google Drive have a copy here.

    Raises:
        AgelibError: If it is `own`, and the settings name none.
    """
    if name in ARCHIVES:
        return config.raw / ARCHIVES[name].folder
    if config.own is None and config.profile == "sample":
        return config.folder / "own"
    if config.own is None:
        raise AgelibError(
            "own data need a folder: name the one with your images and their labels.csv (--own "
            "FOLDER, or folder in notebook 07)."
        )
    return config.raw / "own" if on_google(config.own) else config.own


def read_table(name: str, config: Config) -> pd.DataFrame:
    """Returns a data set's table with a column `split` added.

    Args:
        name: "wiki", "imdb", "utkface" or "own".
        config: Says where the images are, what is trained on and what is tested on.

    Raises:
        AgelibError: If the images or their metadata are not there.
    """
    table = READERS[name](images_folder(name, config))
    val_fraction, test_fraction = _held_out(name, config)
    split = split_by_person(table["person"], val_fraction, test_fraction)
    if name == "own" and name in config.train_sources:
        _need_all_splits(table, split, ["train", "val", *(["test"] if test_fraction else [])])
    return table.assign(split=split)


def check_splits(names: Iterable[str], config: Config) -> None:
    """Makes sure that face sets were split as the settings ask: the hash of each person tells.

    Args:
        names: Of the face sets.
        config: As for `read_table`.

    Raises:
        AgelibError: If one was split otherwise.
    """
    for name in names:
        folder = config.faces / name
        for split, count in read_manifest(folder)["splits"].items():
            if not count:
                continue
            people = FaceSet([folder], split).person
            if (split_by_hash(people, *_held_out(name, config)) != split).any():
                raise AgelibError(
                    f"{folder} was split into train, val and test by other settings: give the "
                    "--train-sources, --test-source and --val-fraction that it was cleaned with, "
                    "or delete it and clean again."
                )


def _held_out(name: str, config: Config) -> tuple[float, float]:
    """Returns the shares of a data set's people that are for validation and for testing."""
    if name not in config.train_sources:
        return 0.0, 1.0
    test_trained = config.test_source in config.train_sources
    # WIKI and IMDB show the same people.
    shared = name == config.test_source or {name, config.test_source} == {"wiki", "imdb"}
    return config.val_fraction, config.val_fraction if test_trained and shared else 0.0


def _need_all_splits(table: pd.DataFrame, split: np.ndarray, wanted: list[str]) -> None:
    """Refuses photos of so few people that chance puts none of them into a split."""
    usable = (table["reject"] == "").to_numpy()
    empty = [name for name in wanted if not (split[usable] == name).any()]
    if empty:
        raise AgelibError(
            f"None of the {table['person'][usable].nunique():,} persons in {LABELS} came into "
            f"{' or '.join(empty)}, where a hash of the person decides: photos of more people are "
            "needed, about twenty or more."
        )
