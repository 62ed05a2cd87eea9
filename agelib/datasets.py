"""The data sets by name: where their images lie, how their labels are read, who is in which split.

A new data set is a function that returns such a table, a line in `READERS`, and a name in
`agelib.config.SOURCES`.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from agelib import AgelibError
from agelib.archives import ARCHIVES
from agelib.config import Config
from agelib.labels import read_imdb_wiki, read_utkface, split_by_person
from agelib.own import read_own

# Each takes the folder that `images_folder` names, and returns one row for each image: `path`,
# `age`, `gender`, `person`, `race` and `reject`.
READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "wiki": functools.partial(read_imdb_wiki, name="wiki"),
    "imdb": functools.partial(read_imdb_wiki, name="imdb"),
    "utkface": read_utkface,
    "own": read_own,
}


def images_folder(name: str, config: Config) -> Path:
    """Returns the folder with a data set's images.

    Raises:
        AgelibError: If it is `own`, and the settings name none.
    """
    if name in ARCHIVES:
        return config.raw / ARCHIVES[name].folder
    if config.own is None and config.profile == "sample":
        return config.folder / "own"
    if config.own is None:
        raise AgelibError(
            "own data need a folder: name the one with your images and their labels.csv as own "
            "(--own FOLDER)."
        )
    return config.own


def read_table(name: str, config: Config) -> pd.DataFrame:
    """Returns a data set's table with a column `split` added.

    Args:
        name: "wiki", "imdb", "utkface" or "own".
        config: Says where the images are, what is trained on and what is tested on.

    Raises:
        AgelibError: If the images or their metadata are not there.
    """
    table = READERS[name](images_folder(name, config))
    if name not in config.train_sources:
        return table.assign(split="test")
    test_trained = config.test_source in config.train_sources
    # WIKI and IMDB show the same people.
    shared = name == config.test_source or {name, config.test_source} == {"wiki", "imdb"}
    test_fraction = config.val_fraction if test_trained and shared else 0
    return table.assign(split=split_by_person(table["person"], config.val_fraction, test_fraction))
