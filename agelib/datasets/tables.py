"""The data sets by name: where their images lie, how their labels are read, who is in which split.

Any folder or zip file with a `labels.csv` is a data set under its own name, and needs no entry.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.io
from scipy.io.matlab import MatReadError

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets.archives import LABELS, Archive
from agelib.datasets.own_photos import read_labelled
from agelib.disk import on_google
from agelib.files import find_files
from agelib.labels import BRANCH_NAMES, GENDERS, MAX_AGE, MIN_AGE, age_branch

MIN_FACE_SCORE = 1.0

# susanqq.github.io/UTKFace: [age]_[gender]_[race]_[date&time].jpg, with .chip.jpg if aligned
_UTKFACE_NAME = r"^(\d{1,3})_([01])_([0-4])_\d+\.(?:jpe?g|png)(?:\.chip\.jpg)?\Z"
_COLUMNS = ("full_path", "photo_taken", "dob", "gender", "name", "face_score", "second_face_score")
# NotImplementedError: MATLAB's newer format, an HDF5 file, as some convert it.
_MAT_ERRORS = (ValueError, LookupError, OSError, TypeError, MatReadError, NotImplementedError)
_MATLAB_EPOCH = 366  # days from MATLAB's day 0 to Python's ordinal 0

# What to do, by the reason for which most images are of no use.
_FIXES = {
    "name": f"name them age_gender_race_date.jpg, or write a {LABELS}",
    "outside": f"write paths relative to the folder into its {LABELS}",
    "missing": f"write the images' names into its {LABELS} as the folder has them, with endings",
    "age": f"write ages in years, or ranges such as 30-39, into its {LABELS}",
    "gender": f"write male or female for each into its {LABELS}",
    "unlabelled": f"name them in its {LABELS}",
}

_IMDB_WIKI = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki"


def age_at_photo(photo_year: np.ndarray, birth: np.ndarray) -> np.ndarray:
    """Returns ages in whole years, int64 of shape (n,), as the IMDB-WIKI papers compute them.

    A photo counts as taken in the middle of its year: whoever is born in July or later has not had
    a birthday yet. `birth` has MATLAB's day numbers; impossible ones give impossible ages.
    """
    days = np.maximum(np.asarray(birth, np.int64) - _MATLAB_EPOCH, 1) - 1
    months = (np.datetime64("0001-01-01") + days).astype("datetime64[M]").astype(np.int64)
    return np.asarray(photo_year, np.int64) - 1970 - (months + 6) // 12  # months since 1970


def person_hash(person: str) -> int:
    """Returns a person's identity as a number from 0 to 2**64 - 1, the same on every machine."""
    content = person.encode("utf-8", "surrogateescape")  # a file's name may be no text
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def split_by_person(
    persons: np.ndarray, val_fraction: float, test_fraction: float = 0.0
) -> np.ndarray:
    """Assigns persons to "train", "val" or "test", whatever else is in a set.

    `persons` has what `person_hash` returns, uint64 of shape (n,).
    """
    shares = persons / 2.0**64
    held_out = np.where(shares < val_fraction, "val", "test")
    return np.where(shares < val_fraction + test_fraction, held_out, "train")


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


def count_reasons(table: pd.DataFrame) -> pd.Series:
    """Counts a table's rows by reason, the others under "usable", most frequent first."""
    reasons = table["reject"].replace("", "usable")
    return reasons.value_counts().rename("images").rename_axis("reason")


def kept_by_group(table: pd.DataFrame, rejected: Iterable[str]) -> pd.DataFrame:
    """Counts a table's images before and after cleaning, by age branch and by gender.

    `usable` are those that passed the metadata rules, `kept` those whose paths are not `rejected`.
    A range counts by its middle year.
    """
    usable = table[table["reject"] == ""]
    kept = ~usable["path"].isin(set(rejected))
    age_high = usable.get("age_high", usable["age"])
    middle = ((usable["age"] + age_high) // 2).to_numpy(int)
    groups = [
        pd.Categorical.from_codes(age_branch(middle), BRANCH_NAMES),
        pd.Categorical.from_codes(usable["gender"].to_numpy(int), GENDERS),
    ]
    counts = pd.concat(
        [kept.groupby(group, observed=False).agg(["size", "sum"]) for group in groups]
    ).set_axis(["usable", "kept"], axis=1)
    return counts.assign(share=(counts["kept"] / counts["usable"]).round(3))


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


def read_table(name: str, config: Config) -> pd.DataFrame:
    """Returns a data set's table with its rows assigned to splits.

    It is what the reader returns, with `split` "train", "val" or "test", and `official` where the
    set's own labels say so, "" where the person decides. Of a set that is only tested on, the
    official test images count or, without any, those for validation; the others are rejected as
    "not_test". Raises AgelibError if the images or their metadata are missing, or none is of use.
    """
    check_sources(config)
    folder = images_folder(name, config)
    table = find_dataset(name).reader(folder)
    _need_usable(table, folder, of_archive="split" not in table)
    if name not in config.train_sources:
        return _all_test(table)
    official = table.get("split", pd.Series("", table.index))
    named = set(official[table["reject"] == ""])
    shares = held_out_shares(name, config, named)
    persons = table["person"].map(person_hash).to_numpy(np.uint64)
    split = pd.Series(split_by_person(persons, *shares), table.index)
    split = split.mask(official.isin(["val", "test"]), official)
    if "split" in table:  # labels of anybody's
        _need_all_splits(table, split, ["train", "val", *(["test"] if shares[1] else [])])
    return table.assign(split=split, official=official)


def read_folder(folder: Path) -> pd.DataFrame:
    """Returns the table of a folder with `labels.csv` or with UTKFace's names, as a set to test on.

    Raises AgelibError if no image is of use.
    """
    labelled = (folder / LABELS).exists()
    table = read_labelled(folder) if labelled else read_utkface(folder)
    _need_usable(table, folder, of_archive=False)
    return _all_test(table)


def _all_test(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a reader's table for a set that is only tested on: see `read_table`."""
    official, usable = table.get("split", pd.Series("", table.index)), table["reject"] == ""
    named = set(official[usable])
    tested = next((split for split in ("test", "val") if split in named), None)
    unused = usable & (official != tested) & (tested is not None)
    reject = table["reject"].mask(unused, "not_test")
    return table.assign(reject=reject, split="test", official=official)


def check_sources(config: Config) -> None:
    """Raises AgelibError if somebody would be trained on in one set and tested on in another."""
    for tested in set(config.test_sources) - set(config.train_sources):
        for trained in set(config.train_sources) & set(find_dataset(tested).same_people):
            raise AgelibError(
                f"test_sources has {tested}, which shows the same people as {trained}: train on "
                f"{tested} too (--train-sources), or test on another set."
            )


def held_out_shares(name: str, config: Config, official: set[str]) -> tuple[float, float]:
    """Returns the shares of a set's people for validation and test, 0 for an official split."""
    if name not in config.train_sources:
        return 0.0, 1.0
    tested = set(config.test_sources) & set(config.train_sources)
    shared = tested & {name, *find_dataset(name).same_people}
    val = 0.0 if "val" in official else config.val_fraction
    return val, config.val_fraction if shared and "test" not in official else 0.0


def _need_usable(table: pd.DataFrame, folder: Path, of_archive: bool) -> None:
    """Refuses a set of which no image is of any use, and says what is wrong with most of them."""
    counts = table["reject"].value_counts()
    if "" in counts or table.empty:
        return
    if len(counts) > 1:  # a copy is of no use where the image it copies is of none
        counts = counts.drop(["unlabelled", "duplicate"], errors="ignore")
    reasons = ", ".join(f"{count:,} {each}" for each, count in counts.items())
    reason = counts.index[0]
    fix = "extract the archive again" if of_archive and reason != "name" else _FIXES[reason]
    first = table.loc[table["reject"] == reason, "path"].iloc[0]
    raise AgelibError(
        f"None of the {counts.sum():,} images in {folder} can be used ({reasons}, {first} for "
        f"one): {fix}."
    )


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
