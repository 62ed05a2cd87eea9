"""Tables: the labels of a data set's images, who is in which split, and how many are of use."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets.archives import LABELS
from agelib.datasets.own_photos import read_labelled
from agelib.datasets.readers import read_utkface
from agelib.datasets.registry import find_dataset, images_folder
from agelib.labels import BRANCH_NAMES, GENDERS, age_branch

# What to do, by the reason for which most images are of no use.
_FIXES = {
    "name": f"name them age_gender_race_date.jpg, or write a {LABELS}",
    "outside": f"write paths relative to the folder into its {LABELS}",
    "missing": f"write the images' names into its {LABELS} as the folder has them, with endings",
    "age": f"write ages in years, or ranges such as 30-39, into its {LABELS}",
    "gender": f"write male or female for each into its {LABELS}",
    "unlabelled": f"name them in its {LABELS}",
}


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
    if empty and (table["split"][usable] != "").all():
        raise AgelibError(
            f"No image in {LABELS} is for {' or '.join(empty)}: write that into its column split, "
            "or leave it empty, so that a hash of the person decides."
        )
    if empty:
        raise AgelibError(
            f"None of the {table['person'][usable].nunique():,} persons in {LABELS} came into "
            f"{' or '.join(empty)}, where a hash of the person decides: photos of more people are "
            "needed, about twenty or more."
        )


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


def split_by_person(persons: np.ndarray, val_fraction: float, test_fraction: float) -> np.ndarray:
    """Assigns persons to "train", "val" or "test", whatever else is in a set.

    `persons` has what `person_hash` returns, uint64 of shape (n,).
    """
    shares = persons / 2.0**64
    held_out = np.where(shares < val_fraction, "val", "test")
    return np.where(shares < val_fraction + test_fraction, held_out, "train")


def person_hash(person: str) -> int:
    """Returns a person's identity as a number from 0 to 2**64 - 1, the same on every machine."""
    content = person.encode("utf-8", "surrogateescape")  # a file's name may be no text
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


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
