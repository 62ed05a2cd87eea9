"""Age branches, gender codes, and the metadata of every data set in one table.

One convention everywhere: gender 0 is Male and 1 is Female; ages are whole years from 1 to 85; age
branches are numbered 0 to 4. The parsers convert whatever their source stores.
"""

import datetime
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
from scipy.io.matlab import MatReadError

from agelib import AgelibError

AGE_BRANCHES = ((1, 13), (14, 23), (24, 39), (40, 55), (56, 85))
BRANCH_NAMES = tuple(f"{low}-{high}" for low, high in AGE_BRANCHES)
GENDERS = ("Male", "Female")
RACES = ("White", "Black", "Asian", "Indian", "Other")
MIN_AGE, MAX_AGE = AGE_BRANCHES[0][0], AGE_BRANCHES[-1][1]
MIN_FACE_SCORE = 1.0

# https://susanqq.github.io/UTKFace/: [age]_[gender]_[race]_[date&time].jpg, aligned files with
# .chip.jpg behind it.
_UTKFACE_NAME = re.compile(
    r"(\d{1,3})_([01])_([0-4])_\d+\.(?:jpe?g|png)(?:\.chip\.jpg)?", re.IGNORECASE
)
_COLUMNS = (
    "full_path",
    "photo_taken",
    "dob",
    "gender",
    "name",
    "face_score",
    "second_face_score",
)
_MATLAB_EPOCH = 366  # days from MATLAB's day 0 to Python's ordinal 0


def age_branch(age: int | np.ndarray) -> np.ndarray:
    """Returns the age branch, 0 to 4, or -1 outside 1 to 85.

    Args:
        age: Whole years, a number or an array of any shape.

    Returns:
        An int64 array of the same shape.
    """
    age = np.asarray(age)
    branch = np.searchsorted([high for _, high in AGE_BRANCHES], age)
    return np.where((age >= MIN_AGE) & (age <= MAX_AGE), branch, -1)


def age_at_photo(photo_year: np.ndarray, birth: np.ndarray) -> np.ndarray:
    """Returns ages as the IMDB-WIKI papers compute them.

    Only the photo's year is known; it is taken to be the middle of the year, so that whoever is
    born in July or later has not had a birthday yet.

    Args:
        photo_year: Years, integers of shape (n,).
        birth: MATLAB day numbers of the birth dates, integers of shape (n,).

    Returns:
        Whole years, int64 of shape (n,); nonsense dates give nonsense ages, to be rejected.
    """
    days = np.maximum(np.asarray(birth, np.int64) - _MATLAB_EPOCH, 1)
    dates = [datetime.date.fromordinal(min(day, datetime.date.max.toordinal())) for day in days]
    years = np.array([date.year for date in dates], np.int64)
    late = np.array([date.month >= 7 for date in dates], np.int64)
    return np.asarray(photo_year, np.int64) - years - late


def person_hash(person: str) -> int:
    """Returns a person's identity as a number from 0 to 2**64 - 1, the same on every machine."""
    content = person.encode("utf-8", "surrogateescape")  # a file's name may be no text
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def split_by_person(
    persons: Iterable[str], val_fraction: float, test_fraction: float = 0.0
) -> np.ndarray:
    """Assigns persons to "train", "val" or "test" by their hash alone.

    Whatever else is in the set, a person keeps its split, and all its images with it.

    Returns:
        An array of the splits' names, shape (n,).
    """
    hashes = np.array([person_hash(person) for person in persons], np.uint64)
    return split_by_hash(hashes, val_fraction, test_fraction)


def split_by_hash(
    hashes: np.ndarray, val_fraction: float, test_fraction: float = 0.0
) -> np.ndarray:
    """Does what `split_by_person` does with what `person_hash` returns, uint64 of shape (n,)."""
    shares = hashes / 2.0**64
    held_out = np.where(shares < val_fraction, "val", "test")
    return np.where(shares < val_fraction + test_fraction, held_out, "train")


def read_imdb_wiki(folder: Path, name: str) -> pd.DataFrame:
    """Reads the metadata of WIKI or IMDB.

    Args:
        folder: What the archive unpacks to: `wiki_crop` with `wiki.mat`, or `imdb_crop`.
        name: "wiki" or "imdb".

    Returns:
        One row for each image that the file names: `path`, `age`, `gender`, `person`, `race`
        (missing here) and `reject`: "" or the first reason that applies.

    Raises:
        AgelibError: If the .mat file is not there or cannot be read.
    """
    path = Path(folder) / f"{name}.mat"
    if not path.exists():
        raise AgelibError(f"{path} is missing: download and extract the {name} archive first.")
    try:
        record = scipy.io.loadmat(path, squeeze_me=True)[name]
        columns = {key: np.atleast_1d(record[key].item()) for key in _COLUMNS}
    except (ValueError, LookupError, OSError, TypeError, MatReadError) as error:
        raise AgelibError(
            f"{path} is no IMDB-WIKI metadata ({error}): extract the archive again."
        ) from error
    paths = columns["full_path"].astype(str)
    age = age_at_photo(columns["photo_taken"], columns["dob"])
    male = columns["gender"].astype(float)
    table = pd.DataFrame(
        {
            "path": paths,
            "age": pd.array(age, dtype="Int64"),
            # The file's 1 is male; ours is female.
            "gender": pd.array(np.where(np.isnan(male), np.nan, 1 - male)).astype("Int8"),
            "person": _persons(columns["name"], columns["dob"], paths),
            "race": pd.array([pd.NA] * len(paths), dtype="Int8"),
        }
    )
    table["reject"] = np.select(
        [
            [not (Path(folder) / path).is_file() for path in paths],
            (age < MIN_AGE) | (age > MAX_AGE),
            np.isnan(male),
            ~(columns["face_score"].astype(float) >= MIN_FACE_SCORE),
            ~np.isnan(columns["second_face_score"].astype(float)),
        ],
        ["missing", "age", "gender", "face_score", "second_face"],
        "",
    )
    return table


def _persons(names: np.ndarray, births: np.ndarray, paths: np.ndarray) -> list[str]:
    """Identifies people by name and day of birth, which WIKI and IMDB share, unlike their ids.

    The page or actor id in the file name stands in where there is no name.
    """
    return [
        f"{' '.join(name.casefold().split())} {int(birth)}"
        if isinstance(name, str) and name.strip()
        else Path(path).name.split("_")[0]
        for name, birth, path in zip(names, births, paths, strict=True)
    ]


def read_utkface(folder: Path) -> pd.DataFrame:
    """Reads the labels that UTKFace keeps in its file names.

    A name that does not say all three labels in order is rejected whole: with one of them left
    out, nobody can tell which.

    Args:
        folder: Any folder of images named `age_gender_race_date.jpg`, at any depth.

    Returns:
        One row for each file, columns as in `read_imdb_wiki`; `person` is the file name.

    Raises:
        AgelibError: If the folder does not exist or holds no file.
    """
    folder = Path(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    if not paths:
        raise AgelibError(f"{folder} holds no images: download and extract UTKFace first.")
    labels = [_UTKFACE_NAME.fullmatch(path.name) for path in paths]
    numbers = [[int(group) for group in label.groups()] if label else None for label in labels]
    table = pd.DataFrame(
        {
            "path": [path.relative_to(folder).as_posix() for path in paths],
            "age": pd.array([n[0] if n else pd.NA for n in numbers], dtype="Int64"),
            "gender": pd.array([n[1] if n else pd.NA for n in numbers], dtype="Int8"),
            "person": [path.name for path in paths],
            "race": pd.array([n[2] if n else pd.NA for n in numbers], dtype="Int8"),
        }
    )
    out_of_range = ~table["age"].between(MIN_AGE, MAX_AGE).fillna(False).to_numpy(bool)
    unnamed = np.array([label is None for label in labels])
    table["reject"] = np.select([unnamed, out_of_range], ["name", "age"], "")
    return table


def count_reasons(table: pd.DataFrame) -> pd.Series:
    """Counts a table's rows by reason, the usable ones under "kept", most frequent first."""
    reasons = table["reject"].replace("", "kept")
    return reasons.value_counts().rename("images").rename_axis("reason")


def kept_by_group(table: pd.DataFrame, rejected: Iterable[str]) -> pd.DataFrame:
    """Counts a data set's images before and after cleaning, by age branch and by gender.

    Args:
        table: One row for each image, as the readers return it.
        rejected: Paths of the images that cleaning left out, or of all that were.

    Returns:
        For each branch and gender the images that passed the metadata rules (`usable`), those of
        them that were not rejected since (`kept`), and their `share`.
    """
    usable = table[table["reject"] == ""]
    kept = ~usable["path"].isin(set(rejected))
    groups = [
        pd.Categorical.from_codes(age_branch(usable["age"].to_numpy(int)), BRANCH_NAMES),
        pd.Categorical.from_codes(usable["gender"].to_numpy(int), GENDERS),
    ]
    counts = pd.concat(
        [kept.groupby(group, observed=False).agg(["size", "sum"]) for group in groups]
    ).set_axis(["usable", "kept"], axis=1)
    return counts.assign(share=(counts["kept"] / counts["usable"]).round(3))
