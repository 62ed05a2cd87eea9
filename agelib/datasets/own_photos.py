"""A folder of images, and a CSV file that says who is on them: your own photos, for example."""

import io
import os
import posixpath
import re
import shutil
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import AgelibError, first_line
from agelib.datasets.archives import LABELS, read_origin
from agelib.disk_errors import explained, reading, retrying
from agelib.files import IMAGE_SUFFIXES, find_files
from agelib.labels import GENDERS, MAX_AGE, MIN_AGE

_NEEDED = ("path", "age", "gender")
_OPTIONAL = ("person", "race", "split")
_MOST_RACES = 100
_SEPARATORS = ",;\t|"
# 3-9, 60+, more than 70
_RANGE = (
    r"^(?:more than|over|>=?|≥)?\s*(?P<low>\d{1,3})\s*"
    r"(?:(?:-|–|—|to)\s*(?P<high>\d{1,3})|\+|and over|or older)?$"
)
_GENDER_WORDS = {
    **dict.fromkeys(("0", "0.0", "m", "male", "man", "boy"), 0),
    **dict.fromkeys(("1", "1.0", "f", "female", "woman", "girl"), 1),
}


def read_labelled(folder: Path) -> pd.DataFrame:
    """Returns the labels of a folder of images, at any depth, from its `labels.csv`.

    The file needs the columns `path` or `file` (relative to the folder), `age` (years, or a range
    of them: 3-9, 60+, more than 70) and `gender` (0 or male, 1 or female, and the like); with
    commas, semicolons or tabs between them. `person` says which images show the same person, so
    that all of them get into one split; without it every image counts as a person. `race` may name
    groups to score one by one, and `split` the set's official train, val and test images.

    One row for each image, columns as in `agelib.datasets.readers.read_imdb_wiki`; where there are
    ranges `age` and `age_high` are their ends, as far as they lie in 1 to 85; `race` is the file's
    own word for it, `split` "train", "val", "test" or "" where the file names none. `reject` may
    be "outside" (of the folder), "missing", "duplicate" (named before), "age", "gender", or
    "unlabelled" (an image that the file does not name).

    Raises AgelibError if the folder or the file is missing, or no table with those columns, or it
    leaves doubt about who is male.
    """
    folder = Path(folder)
    source = folder / LABELS
    labels, images = _read_labels(source), _images_in(folder)
    paths = labels["path"].str.replace("\\", "/").map(posixpath.normpath).str.normalize("NFC")
    unlabelled = sorted(images.keys() - set(paths))
    paths = pd.Series([*paths, *unlabelled], dtype=object)
    labels = labels.reindex(paths.index, fill_value="")
    age, age_high = _read_ages(labels["age"])
    gender = _read_genders(labels["gender"], source)
    person = labels["person"].str.casefold().str.split().str.join(" ")
    reasons = {
        "unlabelled": paths.isin(unlabelled),
        "outside": paths.str.match(r"\.\./|/|[A-Za-z]:"),
        "missing": [path not in images and not os.path.isfile(folder / path) for path in paths],
        "duplicate": paths.duplicated(),
        "age": ~((age >= MIN_AGE) & (age <= age_high) & (age_high <= MAX_AGE)),
        "gender": gender.isna(),
    }
    table = {
        # As the disk spells it, or as the file does where the disk has no such image.
        "path": [images.get(path, path) for path in paths],
        "age": age.astype("Int64"),
        **({} if age.equals(age_high) else {"age_high": age_high.astype("Int64")}),
        "gender": gender.astype("Int8"),
        "person": person.where(person != "", paths),
        "race": labels["race"].where(labels["race"] != ""),
        "split": _official_splits(labels["split"], source),
        "reject": np.select(list(reasons.values()), list(reasons), ""),
    }
    return pd.DataFrame(table)


def _images_in(folder: Path) -> dict[str, str]:
    """Returns the disk's names of the images below a folder, by their composed form."""
    with reading(folder):
        found = retrying(find_files)(folder, IMAGE_SUFFIXES)
    names = [path.relative_to(folder).as_posix() for path in found]
    # Macs write letters with accents as two characters in file names.
    return {unicodedata.normalize("NFC", name): name for name in names}


def _read_ages(words: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Returns the lowest and the highest year that each text says, NaN where it says no age.

    Of a range what lies in 1 to 85 counts; one without an end goes to 85.
    """
    # In brackets a comma is none of a decimal number: Adience has (25, 32).
    text = words.str.casefold().str.replace(r"^([(\[].*),(.*[)\]])$", r"\1-\2", regex=True)
    text = text.str.strip(" ()[]")
    years = np.floor(pd.to_numeric(text.str.replace(",", "."), errors="coerce"))
    years = years.where(years.abs() < 1000)
    ends = text.str.extract(_RANGE).astype(float)
    high = ends["high"].fillna(MAX_AGE).clip(upper=MAX_AGE).where(ends["low"].notna())
    return years.fillna(ends["low"].clip(lower=MIN_AGE)), years.fillna(high)


def _read_genders(words: pd.Series, path: Path) -> pd.Series:
    """Returns 0 or 1, NaN where a text says neither; the column tells what its texts mean.

    With a word for one gender only, the other gender may be any of those that are unknown: "m" and
    "w", or "m" for mujer. Beside 2, 1 is not ours.
    """
    codes = words.str.casefold().map(_GENDER_WORDS)
    unknown = words[codes.isna() & (words != "")]
    if unknown.isin(["2", "2.0"]).any() or (len(unknown) and codes.nunique() < len(GENDERS)):
        found = ", ".join(map(repr, words[words != ""].value_counts().index[:5]))
        raise AgelibError(
            f"{path} has {found} in its column gender, which leaves doubt about who is male: write "
            "male or female in each row, and nothing where nobody knows."
        )
    return codes


def _official_splits(words: pd.Series, path: Path) -> pd.Series:
    splits = words.str.casefold().replace({"valid": "val", "validation": "val"})
    unknown = words[~splits.isin(["", "train", "val", "test"])]
    if len(unknown):
        raise AgelibError(
            f"{path} has {unknown.iloc[0]!r} in its column split: write train, val or test, or "
            "leave the column out, and images are split by person."
        )
    return splits


def is_user_folder(folder: Path) -> bool:
    """Tells whether a folder has labels and comes from no archive, so that anybody may mend it."""
    return (folder / LABELS).exists() and read_origin(folder) is None


def copy_own(source: Path, target: Path) -> None:
    """Copies a folder of photos, leaving out what is there already and removing what is gone.

    Raises AgelibError if the folder cannot be read, or there is no space.
    """
    copy = retrying(shutil.copy2)
    with explained(f"{source} could not be copied to {target}", source, target):
        there = {path.relative_to(source): path for path in retrying(find_files)(source)}
        target.mkdir(parents=True, exist_ok=True)
        for name, path in there.items():
            here, status = target / name, path.stat()
            same = here.exists() and here.stat().st_size == status.st_size
            if not same or here.stat().st_mtime != status.st_mtime:
                here.parent.mkdir(parents=True, exist_ok=True)
                copy(path, here)
        for path in find_files(target):
            if path.relative_to(target) not in there:
                path.unlink()


def _read_labels(path: Path) -> pd.DataFrame:
    """Returns the file's columns as text without spaces around it."""
    labels = _parse(path)
    labels.columns = [str(name).strip().casefold() for name in labels.columns]
    listed = ", ".join(labels.columns)
    if "path" not in labels:
        labels = labels.rename(columns={"file": "path"})
    lacking = [name for name in _NEEDED if name not in labels]
    if lacking or not labels.columns.is_unique:
        wrong = f"but not {', '.join(lacking)}" if lacking else "some of them twice"
        raise AgelibError(
            f"{path} has the columns {listed}, {wrong}: name them {', '.join(_NEEDED)}, and if "
            f"need be {', '.join(_OPTIONAL)}, in its first line."
        )
    labels = labels.reindex(columns=[*_NEEDED, *_OPTIONAL], fill_value="").fillna("")
    labels = labels.apply(lambda column: column.str.strip())
    labels = labels[labels["path"] != ""].reset_index(drop=True)
    if labels.empty:
        raise AgelibError(f"{path} names no image: add a row for each.")
    if labels["race"].nunique() > _MOST_RACES:
        raise AgelibError(
            f"{path} has {labels['race'].nunique():,} different words in its column race: name "
            f"{_MOST_RACES} groups at most, or leave the column out."
        )
    return labels


def _separator(header: str) -> str:
    """Returns what separates the columns: the names that are needed tell, or else how many."""
    for separator in _SEPARATORS:
        names = {name.strip(' "\r').casefold() for name in header.split(separator)}
        if {"age", "gender"} <= names:
            return separator
    return max(_SEPARATORS, key=header.count)


def _parse(path: Path) -> pd.DataFrame:
    with reading(path):
        if not path.exists():
            raise AgelibError(
                f"{path} is missing: write one with the columns {', '.join(_NEEDED)}, a row for "
                "each image in that folder."
            )
        content = path.read_bytes()
    try:
        # Excel writes a mark at the start, and wants to be told the separator.
        text = content.decode("utf-8-sig").lstrip(" \r\n")
        text = re.sub(r"\A\"?sep=.\"?\s*\n", "", text, flags=re.IGNORECASE).lstrip(" \r\n")
        separator = _separator(text.split("\n")[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of separators at the ends of the rows
            return pd.read_csv(
                io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, index_col=False
            )
    except UnicodeDecodeError as error:
        raise AgelibError(
            f"{path} is no text in UTF-8: save it as such (in Excel, as CSV UTF-8)."
        ) from error
    except ValueError as error:  # pandas' errors are of this kind
        raise AgelibError(f"{path} is no CSV file ({first_line(error)}): mend it.") from error
