"""Readers of labels: IMDB-WIKI's metadata and UTKFace's file names to tables.

`own_photos` has the reader of folders with a `labels.csv`.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
from scipy.io.matlab import MatReadError

from agelib import AgelibError
from agelib.files import find_files
from agelib.labels import MAX_AGE, MIN_AGE

MIN_FACE_SCORE = 1.0
# susanqq.github.io/UTKFace: [age]_[gender]_[race]_[date&time].jpg, with .chip.jpg if aligned
_UTKFACE_NAME = r"^(\d{1,3})_([01])_([0-4])_\d+\.(?:jpe?g|png)(?:\.chip\.jpg)?\Z"
_COLUMNS = ("full_path", "photo_taken", "dob", "gender", "name", "face_score", "second_face_score")
# NotImplementedError: MATLAB's newer format, an HDF5 file, as some convert it.
_MAT_ERRORS = (ValueError, LookupError, OSError, TypeError, MatReadError, NotImplementedError)
_MATLAB_EPOCH = 366  # days from MATLAB's day 0 to Python's ordinal 0


def read_imdb_wiki(folder: Path, name: str) -> pd.DataFrame:
    """Returns the metadata of "wiki" or "imdb", from the .mat file in its folder.

    One row for each image that the file names: `path`, `age`, `gender`, `person`, `race` (missing
    here) and `reject`: "" or the first reason that applies. Raises AgelibError if the file is
    missing or cannot be read.
    """
    columns = _read_mat(Path(folder) / f"{name}.mat", name)
    paths = columns["full_path"].astype(str)
    # A date or a year that is no number gives an age beyond all limits.
    taken, born = (np.nan_to_num(columns[key].astype(float)) for key in ("photo_taken", "dob"))
    age = age_at_photo(taken, born)
    male = columns["gender"].astype(float)
    male = np.where(np.isin(male, (0, 1)), male, np.nan)
    reasons = {
        "missing": [not (Path(folder) / path).is_file() for path in paths],
        "age": (age < MIN_AGE) | (age > MAX_AGE),
        "gender": np.isnan(male),
        "face_score": ~(columns["face_score"].astype(float) >= MIN_FACE_SCORE),
        "second_face": ~np.isnan(columns["second_face_score"].astype(float)),
    }
    gender = 1 - male  # the file's 1 is male; ours is female
    return _table(paths, age, gender, _persons(columns["name"], born, paths), np.nan, reasons)


def _read_mat(path: Path, name: str) -> dict[str, np.ndarray]:
    if not path.exists():
        raise AgelibError(f"{path} is missing: download and extract the {name} archive first.")
    try:
        record = scipy.io.loadmat(path, squeeze_me=True)[name]
        return {key: np.atleast_1d(record[key].item()) for key in _COLUMNS}
    except _MAT_ERRORS as error:
        sentence = f"{path} is no IMDB-WIKI metadata ({error}): extract the archive again."
        raise AgelibError(sentence) from error


def age_at_photo(photo_year: np.ndarray, birth: np.ndarray) -> np.ndarray:
    """Returns ages in whole years, int64 of shape (n,), as the IMDB-WIKI papers compute them.

    A photo counts as taken in the middle of its year: whoever is born in July or later has not had
    a birthday yet. `birth` has MATLAB's day numbers; impossible ones give impossible ages.
    """
    days = np.maximum(np.asarray(birth, np.int64) - _MATLAB_EPOCH, 1) - 1
    months = (np.datetime64("0001-01-01") + days).astype("datetime64[M]").astype(np.int64)
    return np.asarray(photo_year, np.int64) - 1970 - (months + 6) // 12  # months since 1970


def _persons(names: np.ndarray, births: np.ndarray, paths: np.ndarray) -> list[str]:
    """Identifies people by name and day of birth, which WIKI and IMDB share, or by their id."""
    words = (name.casefold().split() if isinstance(name, str) else [] for name in names)
    return [
        f"{' '.join(name)} {int(birth)}" if name else Path(path).name.split("_")[0]
        for name, birth, path in zip(words, births, paths, strict=True)
    ]


def read_utkface(folder: Path) -> pd.DataFrame:
    """Returns the labels that UTKFace keeps in its file names, from a folder of any depth.

    One row for each file, columns as in `read_imdb_wiki`; `person` is the file name. `reject` may
    be "name" (a label is missing, and nobody can tell which), "age" or "duplicate" (of copies the
    first counts). Raises AgelibError if the folder does not exist or holds no file.
    """
    folder = Path(folder)
    paths = find_files(folder) if folder.is_dir() else []
    if not paths:
        raise AgelibError(f"{folder} holds no images: download and extract UTKFace first.")
    names = pd.Series([path.name for path in paths], dtype=object)
    labels = names.str.extract(_UTKFACE_NAME, flags=re.IGNORECASE).astype(float)
    reasons = {
        "name": labels[0].isna(),
        "age": ~labels[0].between(MIN_AGE, MAX_AGE),
        "duplicate": names.str.lower().str.removesuffix(".chip.jpg").duplicated(),
    }
    paths = [path.relative_to(folder).as_posix() for path in paths]
    return _table(paths, labels[0], labels[1], names, labels[2], reasons)


def _table(paths, ages, genders, persons, races, reasons: dict[str, np.ndarray]) -> pd.DataFrame:
    """Returns a reader's table, with the first reason to reject each image that applies."""
    columns = {"path": paths, "age": ages, "gender": genders, "person": persons, "race": races}
    table = pd.DataFrame(columns).astype({"age": "Int64", "gender": "Int8", "race": "Int8"})
    return table.assign(reject=np.select(list(reasons.values()), list(reasons), ""))
