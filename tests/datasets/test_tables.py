import dataclasses

import numpy as np
import pandas as pd
import pytest

from agelib import AgelibError, steps
from agelib.config import Config
from agelib.datasets import tables
from agelib.datasets.readers import read_utkface
from agelib.datasets.registry import DATASETS
from agelib.datasets.tables import kept_by_group, person_hash, read_table, split_by_person
from agelib.faces.cleaning import check_splits
from agelib.labels import BRANCH_NAMES, GENDERS


def test_a_set_that_is_trained_and_tested_on_has_faces_of_its_own_for_each(sample_config):
    config = dataclasses.replace(sample_config, train_sources=("wiki", "utkface"))
    assert set(read_table("wiki", config)["split"]) == {"train", "val"}
    table = read_table("utkface", config)
    shares = table["split"].value_counts(normalize=True)
    assert set(shares.index) == {"train", "val", "test"}
    assert shares["train"] > 0.6


def test_a_person_of_two_sets_is_tested_or_trained_on_in_both(sample_config, monkeypatch):
    def celebrities(folder):
        persons = [f"person {i}" for i in range(500)]
        return pd.DataFrame({"path": persons, "person": persons, "reject": ""})

    for name in ("wiki", "imdb"):
        known = dataclasses.replace(DATASETS[name], reader=celebrities)
        monkeypatch.setitem(DATASETS, name, known)
    config = dataclasses.replace(
        sample_config, train_sources=("wiki", "imdb"), test_sources=("wiki",)
    )
    wiki, imdb = (read_table(name, config)["split"] for name in config.sources)
    assert set(wiki) == {"train", "val", "test"}
    assert (wiki == imdb).all()


def test_faces_are_split_as_they_were_cleaned_for(sample_faces):
    check_splits(sample_faces.sources, sample_faces)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"val_fraction": 0.4}, "wiki"),
        ({"val_fraction": 0.1}, "wiki"),
        ({"test_sources": ("wiki",)}, "wiki"),
        ({"train_sources": ("wiki", "utkface")}, "utkface"),
    ],
)
def test_faces_split_by_other_settings_are_refused(sample_faces, change, name):
    config = dataclasses.replace(sample_faces, **change)
    with pytest.raises(AgelibError, match=rf"{name} was split into .* by other settings"):
        check_splits([name], config)


def own_photos(folder, persons):
    folder.mkdir(exist_ok=True)
    for i in range(persons):
        (folder / f"{i}.jpg").touch()
    rows = "".join(f"{i}.jpg,30,{i % 2}\n" for i in range(persons))
    (folder / "labels.csv").write_text("path,age,gender\n" + rows)
    return Config.from_profile("own", own=folder, data=folder.parent)


def test_own_photos_are_split_in_three(tmp_path):
    table = read_table("own", own_photos(tmp_path / "own", 60))
    assert set(table["split"]) == {"train", "val", "test"}


def test_photos_of_too_few_people_are_refused(tmp_path):
    with pytest.raises(AgelibError, match=r"None of the 2 persons .* photos of more people"):
        read_table("own", own_photos(tmp_path / "own", 2))


@pytest.mark.parametrize(("train", "test"), [("wiki", "imdb"), ("imdb", "wiki")])
def test_nobody_is_trained_on_in_one_set_and_tested_in_another(tmp_path, train, test):
    config = Config(train_sources=train, test_sources=test, data=tmp_path)
    for step in (steps.download, read_table, lambda name, config: check_splits([name], config)):
        with pytest.raises(AgelibError, match=f"{test}, which shows the same people as {train}"):
            step(train, config)
    tables.check_sources(dataclasses.replace(config, train_sources=(train, test)))


# Official splits


def labelled(config, name, splits):
    """Makes a data set of files that only look like images: split -> how many."""
    folder = config.raw / name
    folder.mkdir(parents=True)
    rows = []
    for split, count in splits.items():
        for i in range(count):
            (folder / f"{split}{i}.jpg").touch()
            rows.append(f"{split}{i}.jpg,{20 + i % 40},{i % 2},{split}")
    (folder / "labels.csv").write_text("path,age,gender,split\n" + "\n".join(rows))


def counts(name, config):
    table = read_table(name, config)
    assert list(table["path"]) == list(table["path"].unique())
    return table[table["reject"] == ""]["split"].value_counts().to_dict()


@pytest.mark.parametrize("test", ["small", "wiki"])
def test_official_splits_win_over_the_hash(tmp_path, test):
    config = Config(train_sources=("wiki", "small"), test_sources=test, data=tmp_path)
    labelled(config, "small", {"Train": 200, "Valid": 7, "TEST": 9})
    assert counts("small", config) == {"train": 200, "val": 7, "test": 9}


def test_what_official_splits_lack_is_taken_from_the_train_images(tmp_path):
    config = Config(train_sources="small", test_sources="small", data=tmp_path)
    labelled(config, "small", {"train": 400, "val": 7})
    found = counts("small", config)
    assert found["val"] == 7
    assert 30 < found["test"] < 90
    assert sum(found.values()) == 407
    other = Config(train_sources="test_named", test_sources="wiki", data=tmp_path)
    labelled(other, "test_named", {"train": 400, "test": 7})
    found = counts("test_named", other)
    assert found["test"] == 7
    assert 30 < found["val"] < 90


@pytest.mark.parametrize(
    ("splits", "tested"),
    [
        ({"train": 9, "val": 7, "test": 5}, "test"),
        ({"train": 9, "validation": 7}, "validation"),
        ({"train": 9}, "train"),
    ],
)
def test_a_set_that_is_only_tested_on_is_tested_by_its_official_split(tmp_path, splits, tested):
    config = Config.from_profile("wiki", test_sources="small", data=tmp_path)
    labelled(config, "small", splits)
    table = read_table("small", config)
    kept = table[table["reject"] == ""]
    assert kept["path"].str.startswith(tested).all()
    assert (kept["split"] == "test").all()
    assert len(kept) == splits[tested]
    assert set(table["reject"][table["reject"] != ""]) <= {"not_test"}


def test_an_unknown_split_is_no_reason_to_guess(tmp_path):
    config = Config(train_sources="small", data=tmp_path)
    labelled(config, "small", {"train": 9, "fold_1": 7})
    with pytest.raises(AgelibError, match="'fold_1' in its column split: write train, val or test"):
        read_table("small", config)


def test_several_test_sets_give_up_a_share_of_those_that_are_trained_on(sample_config):
    config = dataclasses.replace(
        sample_config, train_sources=("wiki", "utkface"), test_sources=("utkface", "wiki")
    )
    for name in config.sources:
        assert set(read_table(name, config)["split"]) == {"train", "val", "test"}


def test_a_set_without_any_usable_image_says_what_is_wrong_with_them(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    rows = [f"{folder}/{i}.jpg,30,m" for i in range(20)] + ["nobody.jpg,30,m", "a.jpg,old,m"]
    (folder / "a.jpg").touch()
    (folder / "labels.csv").write_text("path,age,gender\n" + "\n".join(rows))
    config = Config.from_profile("own", own=folder, data=tmp_path)
    with pytest.raises(AgelibError) as caught:
        read_table("own", config)
    text = str(caught.value)
    assert text.startswith("None of the 22 images in ")
    assert "(20 outside, 1 missing, 1 age, " in text
    assert f"{folder}/0.jpg for one): write paths relative to the folder" in text


def test_a_useless_image_that_is_named_many_times_is_a_sentence_too(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.jpg").touch()
    (folder / "labels.csv").write_text("path,age,gender\n" + "a.jpg,old,m\n" * 3)
    config = Config.from_profile("own", own=folder, data=tmp_path)
    with pytest.raises(AgelibError, match=r"\(1 age, a\.jpg for one\): write ages"):
        read_table("own", config)


def test_person_hash_never_changes():
    # A different hash would move people between train and val of every set made so far.
    assert person_hash("1000") == 4634487095784212721
    assert person_hash("nm0000001") == 9006164640463662729
    assert person_hash("é") == 5375421630974772051


def hashes(names):
    return np.array([person_hash(name) for name in names], np.uint64)


PERSONS = hashes(str(i) for i in range(1000))


def test_an_official_split_without_train_images_is_named(tmp_path):
    config = Config(train_sources="small", test_sources="wiki", data=tmp_path)
    labelled(config, "small", {"val": 30})
    with pytest.raises(AgelibError, match="for train: write that into its column split"):
        read_table("small", config)


def test_a_person_keeps_the_split_whatever_else_is_there(rng):
    splits = dict(zip(PERSONS, split_by_person(PERSONS, 0.15, 0), strict=True))
    shuffled = rng.permutation(PERSONS)[:300]
    assert split_by_person(shuffled, 0.15, 0).tolist() == [splits[person] for person in shuffled]
    assert set(splits.values()) == {"train", "val"}


def test_a_larger_val_fraction_only_adds_persons():
    small, large = (split_by_person(PERSONS, share, 0) == "val" for share in (0.15, 0.3))
    assert (small <= large).all()
    assert small.sum() < large.sum()


def test_test_persons_are_taken_from_train_alone():
    without, splits = split_by_person(PERSONS, 0.15, 0), split_by_person(PERSONS, 0.15, 0.15)
    assert ((splits == "val") == (without == "val")).all()
    assert (splits == "test").mean() == pytest.approx(0.15, abs=0.03)
    assert set(without[splits == "test"]) == {"train"}


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5])
def test_val_gets_its_share(share):
    splits = split_by_person(hashes(f"nm{i:07d}" for i in range(10_000)), share, 0)
    assert (splits == "val").mean() == pytest.approx(share, abs=0.012)


def test_images_are_counted_by_group_before_and_after(tmp_path):
    names = ["8_0_0_1.jpg", "9_1_0_1.jpg", "30_1_0_1.jpg", "30_1_0_2.jpg", "99_1_0_1.jpg"]
    for name in names:
        (tmp_path / name).touch()
    counts = kept_by_group(read_utkface(tmp_path), ["30_1_0_2.jpg", "99_1_0_1.jpg"])
    assert counts.index.tolist() == [*BRANCH_NAMES, *GENDERS]
    assert counts["usable"].tolist() == [2, 0, 2, 0, 0, 1, 3]
    assert counts["kept"].tolist() == [2, 0, 1, 0, 0, 1, 2]
    assert counts["share"]["24-39"] == 0.5
