"""The data sets by name: where their images lie, how their labels are read, who is in which split.

Any folder or zip file with a `labels.csv` is a data set under its own name, and needs no entry.
"""

import datetime
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
from agelib.labels import BRANCH_NAMES, GENDERS, MAX_AGE, MIN_AGE, age_branch

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

# What to write in labels.csv instead, by the reason for which most images are of no use.
_MENDING = {
    "outside": f"write paths relative to the folder into its {LABELS}",
    "missing": f"write the images' names into its {LABELS} as the folder has them, with endings",
    "age": f"write ages in years, or ranges such as 30-39, into its {LABELS}",
    "gender": f"write male or female for each into its {LABELS}",
    "unlabelled": f"name them in its {LABELS}",
}

_IMDB_WIKI = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki"

# A name, a date of birth and a photo's year from the web: some faces are of another person.
_UNCHECKED = 0.5


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
    # NotImplementedError: MATLAB's newer format, an HDF5 file, as some convert it.
    except (
        *(ValueError, LookupError, OSError, TypeError, MatReadError, NotImplementedError),
    ) as error:
        raise AgelibError(
            f"{path} is no IMDB-WIKI metadata ({error}): extract the archive again."
        ) from error
    paths = columns["full_path"].astype(str)
    # A date or a year that is no number gives an age beyond all limits.
    taken, born = (np.nan_to_num(columns[key].astype(float)) for key in ("photo_taken", "dob"))
    age = age_at_photo(taken, born)
    male = columns["gender"].astype(float)
    male = np.where(np.isin(male, (0, 1)), male, np.nan)
    table = pd.DataFrame(
        {
            "path": paths,
            "age": pd.array(age, dtype="Int64"),
            # The file's 1 is male; ours is female.
            "gender": pd.array(np.where(np.isnan(male), np.nan, 1 - male)).astype("Int8"),
            "person": _persons(columns["name"], born, paths),
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
    out, nobody can tell which. Of several copies of an image, as Kaggle's archive has them, the
    first counts.

    Args:
        folder: Any folder of images named `age_gender_race_date.jpg`, at any depth.

    Returns:
        One row for each file, columns as in `read_imdb_wiki`; `person` is the file name. `reject`
        may be "name", "age" or "duplicate".

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
    copies = table["person"].str.lower().str.removesuffix(".chip.jpg").duplicated()
    table["reject"] = np.select([unnamed, out_of_range, copies], ["name", "age", "duplicate"], "")
    return table


def count_reasons(table: pd.DataFrame) -> pd.Series:
    """Counts a table's rows by reason, the others under "usable", most frequent first."""
    reasons = table["reject"].replace("", "usable")
    return reasons.value_counts().rename("images").rename_axis("reason")


def kept_by_group(table: pd.DataFrame, rejected: Iterable[str]) -> pd.DataFrame:
    """Counts a data set's images before and after cleaning, by age branch and by gender.

    Args:
        table: One row for each image, as the readers return it.
        rejected: Paths of the images that cleaning left out, or of all that were.

    Returns:
        For each branch (of a range that of its middle year) and gender the images that passed the
        metadata rules (`usable`), those of them that were not rejected since (`kept`), and their
        `share`.
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
        AgelibError: If the images or their metadata are not there, or no image is of use.
    """
    check_sources(config)
    folder = images_folder(name, config)
    table = find(name).reader(folder)
    _need_usable(table, folder, find(name).reader is read_labelled)
    if name not in config.train_sources:
        return _all_test(table)
    official = _official(table)
    named = set(official[table["reject"] == ""])
    shares = held_out(name, config, named)
    split = pd.Series(split_by_person(table["person"], *shares), table.index)
    split = split.mask(official.isin(["val", "test"]), official)
    if find(name).reader is read_labelled:
        _need_all_splits(table, split, ["train", "val", *(["test"] if shares[1] else [])])
    return table.assign(split=split, official=official)


def read_folder(folder: Path) -> pd.DataFrame:
    """Returns the table of any folder of images, as `read_table` does of a set to test on.

    Args:
        folder: With a `labels.csv`, or with images that are named as in UTKFace.

    Raises:
        AgelibError: If no image is of use.
    """
    if (folder / LABELS).exists():
        table = read_labelled(folder)
        _need_usable(table, folder, labelled=True)
        return _all_test(table)
    table = read_utkface(folder)
    if not (table["reject"] == "").any():
        raise AgelibError(
            f"{folder} holds no image named age_gender_race_date.jpg, and no {LABELS} that says "
            "what its images show."
        )
    return _all_test(table)


def _all_test(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a reader's table with the split of a set that is only tested on: see `read_table`."""
    official, usable = _official(table), table["reject"] == ""
    named = set(official[usable])
    tested = next((split for split in ("test", "val") if split in named), None)
    unused = usable & (official != tested) & (tested is not None)
    return table.assign(
        reject=table["reject"].mask(unused, "not_test"), split="test", official=official
    )


def _official(table: pd.DataFrame) -> pd.Series:
    return table["split"] if "split" in table else pd.Series("", table.index)


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


def held_out(name: str, config: Config, official: set[str]) -> tuple[float, float]:
    """Returns the shares of a data set's people that are for validation and for testing.

    A split that the set's own labels name gets nobody else.
    """
    if name not in config.train_sources:
        return 0.0, 1.0
    tested = set(config.test_sources) & set(config.train_sources)
    shared = tested & {name, *find(name).same_people}
    val = 0.0 if "val" in official else config.val_fraction
    return val, config.val_fraction if shared and "test" not in official else 0.0


def _need_usable(table: pd.DataFrame, folder: Path, labelled: bool) -> None:
    """Refuses a set of which no image is of any use, and says what is wrong with most of them."""
    counts = table["reject"].value_counts()
    if "" in counts or table.empty:
        return
    counts = counts.drop("unlabelled", errors="ignore") if len(counts) > 1 else counts
    first = table.loc[table["reject"] == counts.index[0], "path"].iloc[0]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
    mending = _MENDING[counts.index[0]] if labelled else "extract the archive again"
    raise AgelibError(
        f"None of the {counts.sum():,} images in {folder} can be used ({reasons}, {first} for "
        f"one): {mending}."
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
