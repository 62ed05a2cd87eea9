"""Data sets in their authors' layouts: the lines of data/README.md make their labels."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import agelib
from agelib import steps
from agelib.config import Config
from agelib.datasets.sample import N_UTKFACE, utkface_files
from agelib.datasets.tables import read_table
from agelib.evaluation.tables import groups_table, recall_table, results_table
from agelib.faces.shards import FaceSet

README = Path(agelib.__file__).parents[1] / "data" / "README.md"
RANGES = ["0-2", *(f"{a}-{b}" for a, b in [(3, 9), *((i, i + 9) for i in range(10, 70, 10))])]
RACES = ("East Asian", "Latino_Hispanic", "Middle Eastern", "Southeast Asian", "White")


def range_of(age):
    return "more than 70" if age >= 70 else RANGES[0 if age < 3 else 1 + age // 10]


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGELIB_DRIVE", str(tmp_path / "drive"))
    return tmp_path / "data" / "raw"


def make_labels(name):
    """Runs the lines that the README has for a data set."""
    [code] = [
        code
        for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
        if f"raw/{name}" in code
    ]
    exec(code, {})


def settings(name, **changes):
    return Config.from_profile(
        "wiki", train_sources=name, test_sources=name, data="data", **changes
    )


def test_all_age_faces(raw):
    for name in ("00000A02.jpg", "07380A64.jpg", "07381A05.jpg", "13321A80.jpg"):
        write(raw / "aaf" / name)
    make_labels("aaf")
    table = read_table("aaf", Config.from_profile("wiki", test_sources="aaf", data="data"))
    assert table["age"].tolist() == [2, 64, 5, 80]
    assert table["gender"].tolist() == [1, 1, 0, 0]
    assert table["person"].tolist() == ["00000", "07380", "07381", "13321"]
    assert (table["reject"] == "").all()


def test_appa_real(raw):
    folder = raw / "appa-real"
    for part, (split, count) in enumerate({"train": 30, "valid": 30, "test": 10}.items()):
        files = [f"{part}{i:05}.jpg" for i in range(count)]
        for file in files:
            write(folder / split / file)
            write(folder / split / f"{file}_face.jpg")
        ages = pd.DataFrame(
            {"file_name": files, "apparent_age_avg": 4.7, "real_age": range(1, count + 1)}
        )
        ages.to_csv(folder / f"gt_avg_{split}.csv", index=False)
        women = pd.DataFrame({"file": files[::-1], "gender": ["female", "male"] * (count // 2)})
        women.to_csv(folder / f"allcategories_{split}.csv", index=False)
    make_labels("appa-real")
    table = read_table("appa-real", settings("appa-real")).query("reject == ''")
    assert table["path"].str.match(r"(train|valid|test)/\d{6}\.jpg$").all()
    assert (table["age"] == table["path"].str[-9:-4].astype(int) + 1).all()
    assert (table["gender"] == 1 - table["age"] % 2).all()
    of_test = table["path"].str.startswith("test/")
    assert (of_test == (table["split"] == "test")).all()
    for folder in ("train/", "valid/"):  # both are learned from, and agelib takes val from both
        assert set(table["split"][table["path"].str.startswith(folder)]) == {"train", "val"}


@pytest.fixture
def fairface(raw):
    """Drawn faces in FairFace's layout: name of a part -> its labels."""
    rows = {"train": [], "val": []}
    for i, (name, image) in enumerate(utkface_files(np.random.default_rng(5))):
        if i == N_UTKFACE:  # the troubles come last
            break
        age, gender, race = map(int, name.split("_")[:3])
        part = rows["val" if i % 4 == 0 else "train"]
        file = f"{'val' if i % 4 == 0 else 'train'}/{len(part) + 1}.jpg"
        write(raw / "fairface" / file)
        (raw / "fairface" / file).write_bytes(image)
        gender = ("Male", "Female")[gender]
        part.append((file, range_of(age), gender, RACES[race], i % 2 == 0))
    columns = ["file", "age", "gender", "race", "service_test"]
    parts = {name: pd.DataFrame(part, columns=columns) for name, part in rows.items()}
    for name, part in parts.items():
        part.to_csv(raw / "fairface" / f"fairface_label_{name}.csv", index=False)
    make_labels("fairface")
    return parts


def test_fairface_is_trained_and_tested_on_by_its_ranges(fairface, tiny_networks):
    config = settings(
        "fairface",
        **{"backbone": "EfficientNetB0", "weights": "none", "crop_size": 64, "workers": 1},
        **{"epochs": 2, "batch_size": 16, "keep_near_duplicates": True},
    )
    steps.download("fairface", config)
    manifest = steps.clean("fairface", config)
    assert manifest["races"] == list(RACES)
    assert manifest["official"] == ["train", "val"]
    assert manifest["splits"]["val"] == len(fairface["val"])
    assert manifest["splits"]["train"] + manifest["splits"]["test"] == len(fairface["train"])
    faces = FaceSet([config.faces / "fairface"], "val")
    assert set(zip(faces.age, faces.age_high, strict=True)) <= {
        *((1, 2), (3, 9), (70, 85)),
        *((low, low + 9) for low in range(10, 70, 10)),
    }
    named = dict(zip(fairface["val"]["file"], fairface["val"]["race"], strict=True))
    assert [faces.races[race] for race in faces.race] == [named[path] for path in faces.paths]
    steps.train(config)
    report = steps.evaluate(config)
    for name in ("age_range_accuracy", "age_range_within_one", "gender_accuracy"):
        assert 0 <= report[name] <= 1
    assert report["age_range_accuracy"] <= report["age_range_within_one"]
    assert "age_branch_accuracy" not in report
    assert {group["by"] for group in report["groups"]} == {"age range and gender", "race"}
    assert {g["group"] for g in report["groups"] if g["by"] == "race"} <= set(RACES)
    assert "AGE in its range" in results_table(report).index
    assert recall_table(report).index.tolist() == ["Male", "Female"]
    assert "AGE in its range" in groups_table(report).columns
    listed = steps.read_estimates(config)
    inside = (listed["age"] <= listed["estimated_age"]) & (
        listed["estimated_age"] <= listed["age_to"]
    )
    assert inside.mean() == pytest.approx(report["age_range_accuracy"])


def test_fairface_as_a_test_set_is_its_validation_images(fairface):
    config = Config.from_profile("wiki", test_sources="fairface", data="data")
    table = read_table("fairface", config)
    kept = table[table["reject"] == ""]
    assert sorted(kept["path"]) == sorted(fairface["val"]["file"])
    assert (table["reject"] == "not_test").sum() == len(fairface["train"])
