"""Your own photos as a data set: a folder of images and a CSV file that says who is on them."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import AgelibError
from agelib.labels import MAX_AGE, MIN_AGE

LABELS = "labels.csv"
_NEEDED = ("path", "age", "gender")
_GENDER_WORDS = {
    **dict.fromkeys(("0", "0.0", "m", "male", "man", "boy"), 0),
    **dict.fromkeys(("1", "1.0", "f", "female", "woman", "girl"), 1),
}
_IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def read_own(folder: Path) -> pd.DataFrame:
    """Reads the labels of a folder of images from its `labels.csv`.

    The file needs the columns `path` (relative to the folder), `age` (years) and `gender` (0 or
    male, 1 or female, and the like); with commas, semicolons or tabs between them. A column
    `person` says which images show the same person, so that all of them get into one split;
    without it every image counts as a person.

    Args:
        folder: With the images, at any depth, and `labels.csv`.

    Returns:
        One row for each image, columns as in `agelib.labels.read_imdb_wiki`; `race` is missing.
        `reject` may be "missing", "duplicate" (named before), "age", "gender", or "unlabelled"
        (an image that the file does not name).

    Raises:
        AgelibError: If the folder or the file is missing, or no table with those columns.
    """
    folder = Path(folder)
    labels = _read_labels(folder / LABELS)
    paths = labels["path"].str.replace("\\", "/").map(os.path.normpath)
    age = np.floor(pd.to_numeric(labels["age"], errors="coerce"))
    gender = labels["gender"].str.casefold().map(_GENDER_WORDS)
    table = pd.DataFrame(
        {
            "path": paths,
            "age": age.where(age.abs() < 1000).astype("Int64"),
            "gender": gender.astype("Int8"),
            "person": labels["person"].where(labels["person"] != "", paths),
            "race": pd.array([pd.NA] * len(labels), dtype="Int8"),
        }
    )
    table["reject"] = np.select(
        [
            [not (folder / path).is_file() for path in paths],
            paths.duplicated(),
            ~age.between(MIN_AGE, MAX_AGE),
            gender.isna(),
        ],
        ["missing", "duplicate", "age", "gender"],
        "",
    )
    return pd.concat([table, _unlabelled(folder, table)], ignore_index=True)


def _read_labels(path: Path) -> pd.DataFrame:
    """Returns the file's columns as text without spaces around it."""
    if not path.exists():
        raise AgelibError(
            f"{path} is missing: write one with the columns {', '.join(_NEEDED)}, a row for each "
            "image in that folder."
        )
    try:
        # utf-8-sig: Excel writes a mark at the start; sep=None: and semicolons in many countries.
        labels = pd.read_csv(
            path,
            sep=None,
            engine="python",
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    # The csv module and pandas raise errors of their own, most of them ValueError.
    except Exception as error:
        raise AgelibError(f"{path} is no CSV file in UTF-8 ({error}): save it as one.") from error
    labels.columns = [str(name).strip().casefold() for name in labels.columns]
    lacking = [name for name in _NEEDED if name not in labels]
    if lacking:
        raise AgelibError(
            f"{path} has the columns {', '.join(labels.columns)}, but not {', '.join(lacking)}: "
            "name them so in its first line."
        )
    if labels.empty:
        raise AgelibError(f"{path} names no image: add a row for each.")
    labels = labels.assign(person=labels.get("person", ""))
    return labels[[*_NEEDED, "person"]].fillna("").apply(lambda column: column.str.strip())


def _unlabelled(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Returns rows for the folder's images that the labels do not name."""
    found = (
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _IMAGES and path.name[0] != "."
    )
    paths = [path for path in found if path not in set(table["path"])]
    return (
        pd.DataFrame({"path": paths, "person": paths, "reject": "unlabelled"})
        .reindex(columns=table.columns)
        .astype(table.dtypes)
    )
