import csv
import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster

from agelib import AgelibError
from agelib.config import Config, Crop
from agelib.datasets import download, tables
from agelib.datasets.readers import read_imdb_wiki, read_utkface
from agelib.datasets.registry import DATASETS
from agelib.datasets.sample import make_own
from agelib.faces import cleaning, shards
from agelib.faces import crop as cropping
from agelib.faces.crop import choose_face, crop_face
from agelib.faces.images import Rejected, read_image
from agelib.faces.shards import FaceSet, read_manifest

KEPT = {"wiki": {"train": 276, "val": 44}, "utkface": {"test": 140}}
COUNTS = {
    "wiki": {
        "kept": 320,
        "age": 2,
        "gender": 1,
        "face_score": 2,
        "second_face": 1,
        "missing": 1,
        "no_face": 1,
        "ambiguous": 1,
        "unreadable": 2,
    },
    "utkface": {"kept": 140, "age": 3, "name": 3, "no_face": 1, "unreadable": 2},
}
# Killed

# Cleans with a detector that takes its time and looks at the middle of each image; without
# TensorFlow, so that starting it again and again takes no time.
CHILD = """
import sys, time
from pathlib import Path
import numpy as np
from agelib.faces import cleaning
from agelib.faces import crop as cropping
from agelib.config import Config
from agelib.faces.crop import Face

class Detector:
    def detect(self, images):
        time.sleep(0.02)
        boxes = [np.multiply((0.25, 0.25, 0.75, 0.75), (i.shape[:2] * 2)[::-1]) for i in images]
        return [[Face(tuple(map(float, box)), 0.99, np.zeros((5, 2)))] for box in boxes]

cropping.detector = lambda shared: Detector()
cropping.BATCH = 8
cleaning.UNIT_ROWS = 20
config = Config.from_profile("sample", data=Path(sys.argv[1]))
clean_unit = cleaning._clean_unit

def say_what_is_made(*arguments, **options):
    result = clean_unit(*arguments, **options)
    print(result[0], flush=True)
    return result

cleaning._clean_unit = say_what_is_made
print("begin", flush=True)
cleaning.clean("wiki", config)
"""
CROP = Crop(64, 0.3)


@pytest.fixture
def config(sample_faces, tmp_path):
    """A copy of the cleaned sample that a test may spoil; the images are shared."""
    shutil.copytree(sample_faces.faces, tmp_path / "sample" / "faces")
    (tmp_path / "sample" / "raw").symlink_to(sample_faces.raw)
    return dataclasses.replace(sample_faces, data=tmp_path)


@pytest.fixture
def uncleaned(config):
    shutil.rmtree(config.faces)
    return config


@pytest.fixture
def no_detector(monkeypatch):
    def refuse(shared):
        raise AssertionError("the detector was asked for")

    monkeypatch.setattr(cropping, "detector", refuse)


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(cleaning, "UNIT_ROWS", 40)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What is kept, and why the rest is not


@pytest.mark.parametrize("name", ["wiki", "utkface"])
def test_every_trouble_is_counted_under_its_reason(sample_faces, name):
    manifest = read_manifest(sample_faces.faces / name)
    assert manifest["counts"] == COUNTS[name]
    assert manifest["splits"] == KEPT[name]
    assert manifest["rows"] == sum(COUNTS[name].values())


@pytest.mark.parametrize("name", ["wiki", "utkface"])
def test_every_image_is_either_a_face_or_rejected_once(sample_faces, name):
    folder = sample_faces.faces / name
    kept = [path for split in KEPT[name] for path in FaceSet([folder], split).paths]
    with open(folder / "rejected.csv", newline="") as file:
        rejected = [row["path"] for row in csv.DictReader(file)]
    table = tables.read_table(name, sample_faces)
    assert sorted(kept + rejected) == sorted(table["path"])


def test_rejected_images_carry_the_reasons_that_are_counted(sample_faces):
    rejected = pd.read_csv(sample_faces.faces / "wiki" / "rejected.csv")
    counts = {k: v for k, v in COUNTS["wiki"].items() if k != "kept"}
    assert rejected["reason"].value_counts().to_dict() == counts


@pytest.mark.parametrize("name", ["wiki", "utkface"])
def test_each_face_keeps_the_labels_of_its_own_image(sample_faces, name):
    table = tables.read_table(name, sample_faces).set_index("path")
    for split in KEPT[name]:
        faces = FaceSet([sample_faces.faces / name], split)
        rows = table.loc[faces.paths]
        assert faces.age.tolist() == rows["age"].tolist()
        assert faces.gender.tolist() == rows["gender"].tolist()
        assert (rows["split"] == split).all()


def test_each_crop_comes_from_the_image_it_names(sample_faces):
    # Cropped once more by hand, from the file that the index names.
    faces = FaceSet([sample_faces.faces / "utkface"], "test")
    folder = sample_faces.raw / "UTKFace"
    settings = sample_faces.crop
    for i in (0, 77, len(faces) - 1):
        image = read_image(folder / faces.paths[i])
        [found] = cropping.detector(shared=False).detect([image])
        crop = crop_face(image, choose_face(found, image.shape), settings)
        assert np.abs(crop.astype(int) - faces.image(i)).mean() < 4


def test_train_and_val_share_no_person(uncleaned, monkeypatch):
    def few_people(folder):
        table = read_imdb_wiki(folder, "wiki").iloc[:120]
        return table.assign(person=[f"person {i // 4}" for i in range(len(table))])

    known = dataclasses.replace(DATASETS["wiki"], reader=few_people)
    monkeypatch.setitem(DATASETS, "wiki", known)
    cleaning.clean("wiki", uncleaned)
    folder = uncleaned.faces / "wiki"
    train, val = (FaceSet([folder], split).index["person"] for split in ("train", "val"))
    assert len(train) + len(val) == 120
    assert len(set(train)) + len(set(val)) == 30
    assert not set(train) & set(val)


def test_the_manifest_says_how_the_faces_were_made(sample_faces):
    manifest = read_manifest(sample_faces.faces / "wiki")
    assert manifest["dataset"] == "wiki"
    crop = sample_faces.crop
    assert manifest["crop"] == crop.to_json()
    assert manifest["detector"]["name"] == "mtcnn"
    assert set(manifest["versions"]) >= {"mtcnn", "numpy", "pillow", "tensorflow"}


def test_notes_of_unfinished_work_are_cleared_away(sample_faces):
    assert not (sample_faces.faces / "wiki" / cleaning.PARTS).exists()


# Again, and after a cut


def test_a_second_run_does_nothing(config, no_detector):
    folder = config.faces / "wiki"
    before, times = contents(folder), {p: p.stat().st_mtime_ns for p in folder.glob("*.npy")}
    called = []
    assert cleaning.clean("wiki", config, called.append)["counts"] == COUNTS["wiki"]
    assert called == []
    assert contents(folder) == before
    assert {p: p.stat().st_mtime_ns for p in folder.glob("*.npy")} == times


@pytest.mark.parametrize("damage", ["delete", "cut short"])
def test_a_lost_shard_alone_is_rebuilt_byte_for_byte(config, damage):
    folder = config.faces / "wiki"
    before = contents(folder)
    untouched = (folder / "train-00000.images.npy").stat().st_mtime_ns
    victim = folder / "val-00000.images.npy"
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    rebuilt = []
    cleaning.clean("wiki", config, rebuilt.append)
    assert [[path.name for path in files] for files in rebuilt] == [
        ["val-00000.images.npy", "val-00000.index.npy", "val-00000.json"]
    ]
    assert contents(folder) == before
    assert (folder / "train-00000.images.npy").stat().st_mtime_ns == untouched


@pytest.mark.usefixtures("small_units")
def test_a_run_cut_off_goes_on_and_ends_as_an_uninterrupted_one(uncleaned, monkeypatch):
    folder, expected_folder = uncleaned.faces / "wiki", uncleaned.data / "uninterrupted"
    table = tables.read_table("wiki", uncleaned)
    images = uncleaned.raw / "wiki_crop"
    cleaning.clean_table(table, images, expected_folder, "wiki", uncleaned)

    def stop_after_three(files):
        done.append(files[0].name)
        if len(done) == 3:
            raise KeyboardInterrupt

    done = []
    with pytest.raises(KeyboardInterrupt):
        cleaning.clean("wiki", uncleaned, stop_after_three)
    assert not (folder / "manifest.json").exists()

    write_shard, again = shards.write_shard, []

    def counting(folder, name, jpegs, rows):
        again.append(name)
        return write_shard(folder, name, jpegs, rows)

    monkeypatch.setattr(shards, "write_shard", counting)
    cleaning.clean("wiki", uncleaned)
    total = {path.name.split(".")[0] for path in expected_folder.glob("*.images.npy")}
    assert len(total) == 9
    assert sorted(again + [name.split(".")[0] for name in done]) == sorted(total)
    assert contents(folder) == contents(expected_folder)


@pytest.mark.usefixtures("small_units")
def test_a_unit_cut_off_in_its_middle_is_made_again(uncleaned, monkeypatch):
    table = tables.read_table("utkface", uncleaned)
    images, folder = uncleaned.raw / "UTKFace", uncleaned.faces / "utkface"
    expected = uncleaned.data / "uninterrupted"
    cleaning.clean_table(table, images, expected, "utkface", uncleaned)
    # The first file is there, the second and the note are not.
    folder.mkdir(parents=True)
    shutil.copy(expected / "test-00000.images.npy", folder)
    cleaning.clean("utkface", uncleaned)
    assert contents(folder) == contents(expected)


@pytest.mark.usefixtures("small_units")
def test_the_caller_is_handed_files_that_are_whole(uncleaned):
    seen, rows = [], []

    def check(files):
        assert all(path.stat().st_size for path in files)
        note = json.loads(files[-1].read_text())
        [[stem, shard]] = note["shards"].items()
        assert {path.name for path in files[:-1]} == set(shard["files"])
        for path in files[:-1]:
            assert path.stat().st_size == shard["files"][path.name]["size"]
        seen.append(stem)
        rows.append(shard["rows"])

    cleaning.clean("utkface", uncleaned, check)
    assert sorted(seen) == [f"test-{i:05d}" for i in range(4)]
    assert max(rows) == 40
    assert sum(rows) == sum(tables.read_table("utkface", uncleaned)["reject"] == "")


@pytest.mark.slow
@pytest.mark.usefixtures("small_units")
def test_two_workers_give_the_same_bytes_as_one(uncleaned):
    # A worker process takes the unit's rows from its caller, small here too.
    table = tables.read_table("wiki", uncleaned)
    images = uncleaned.raw / "wiki_crop"
    one, two = uncleaned.data / "one", uncleaned.data / "two"
    cleaning.clean_table(table, images, one, "wiki", uncleaned)
    cleaning.clean_table(table, images, two, "wiki", dataclasses.replace(uncleaned, workers=2))
    assert len(list(one.glob("*.npy"))) == 18
    assert contents(two) == contents(one)


def test_a_dask_cluster_gives_the_same_bytes_as_one_process(uncleaned, small_units):
    table = tables.read_table("wiki", uncleaned)
    images = uncleaned.raw / "wiki_crop"
    alone, cluster = uncleaned.data / "alone", uncleaned.data / "cluster"
    cleaning.clean_table(table, images, alone, "wiki", uncleaned)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as two,
        Client(two),
        joblib.parallel_config(backend="dask"),
    ):
        cleaning.clean_table(table, images, cluster, "wiki", uncleaned)
    assert len(list(alone.glob("*.npy"))) == 18
    assert contents(cluster) == contents(alone)


def test_killed_at_any_moment_it_goes_on_and_ends_as_if_never_killed(sample_faces, tmp_path):
    def start(data):
        (data / "sample").mkdir(parents=True, exist_ok=True)
        raw = data / "sample" / "raw"
        if not raw.exists():
            raw.symlink_to(sample_faces.raw)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(data)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(cleaning.__file__).parents[2],
        )
        assert child.stdout.readline() == "begin\n"
        return child

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = start(whole)
    began = time.monotonic()
    made = child.communicate()[0].split()
    duration = time.monotonic() - began
    manifest = killed / "sample" / "faces" / "wiki" / "manifest.json"
    moments, finished, cut_off = random.Random(0), [], 0
    for _ in range(10):
        child = start(killed)
        time.sleep(moments.uniform(0, duration / 6))
        child.kill()
        finished += child.communicate()[0].split()
        cut_off += not manifest.exists()
    assert cut_off >= 3
    finished += start(killed).communicate()[0].split()
    # A kill may leave a shard finished and no time to say so, but none is made twice.
    assert len(finished) == len(set(finished)) <= len(made)
    assert contents(killed / "sample" / "faces") == contents(whole / "sample" / "faces")


# Refusals


@pytest.mark.parametrize("change", [{"crop_size": 96}, {"margin": 0.7}, {"align": True}])
def test_other_crop_settings_on_the_same_folder_are_refused(config, change, no_detector):
    before = contents(config.faces)
    with pytest.raises(AgelibError, match=r"holds crops of .*margin.* this run needs .*margin"):
        cleaning.clean("utkface", dataclasses.replace(config, **change))
    assert contents(config.faces) == before


def test_another_val_fraction_on_the_same_folder_is_refused(config, no_detector):
    with pytest.raises(AgelibError, match="was made of other images"):
        cleaning.clean("wiki", dataclasses.replace(config, val_fraction=0.4))


def test_other_images_in_the_same_folder_are_refused(config, no_detector):
    table = tables.read_table("wiki", config).iloc[:-1]
    folder = config.faces / "wiki"
    with pytest.raises(AgelibError, match="was made of other images"):
        cleaning.clean_table(table, config.raw / "wiki_crop", folder, "wiki", config)


@pytest.mark.usefixtures("small_units")
def test_other_settings_are_refused_after_a_cut_too(uncleaned):
    def stop(files):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cleaning.clean("utkface", uncleaned, stop)
    with pytest.raises(AgelibError, match="holds crops of"):
        cleaning.clean("utkface", dataclasses.replace(uncleaned, margin=0.5))


def test_images_that_are_not_there_are_asked_for(tmp_path):
    config = Config.from_profile("sample", data=tmp_path)
    for name in config.sources:
        with pytest.raises(AgelibError, match="extract"):
            cleaning.clean(name, config)


def test_a_data_set_without_a_usable_image_gives_an_empty_manifest(config, tmp_path):
    table = tables.read_table("utkface", config).assign(reject="age")
    folder = tmp_path / "none"
    manifest = cleaning.clean_table(table, config.raw / "UTKFace", folder, "utkface", config)
    assert manifest["counts"] == {"kept": 0, "age": 149}
    assert len(pd.read_csv(folder / "rejected.csv")) == 149
    with pytest.raises(AgelibError, match="holds no test faces"):
        FaceSet([folder], "test")


def test_photos_that_are_gone_are_not_counted_as_unreadable(tmp_path, monkeypatch):
    config = Config.from_profile("own", own=tmp_path / "own", data=tmp_path, workers=1)
    make_own(config.own)

    def pull_the_plug(paths, crop, shared):
        shutil.rmtree(config.own)
        yield from (Rejected("unreadable", "no such file") for _ in paths)

    monkeypatch.setattr(cleaning, "crop_images", pull_the_plug)
    with pytest.raises(
        AgelibError, match=r"are gone: connect their disk again, then run this again"
    ):
        cleaning.clean("own", config)
    assert not (config.faces / "own" / "manifest.json").exists()


def test_an_own_photo_that_cannot_be_read_just_now_has_not_changed(tmp_path, monkeypatch):
    config = Config.from_profile("own", own=tmp_path / "own", data=tmp_path)
    make_own(config.own)

    class Blind:
        def detect(self, images):
            return [[] for _ in images]

    def busy(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cropping, "detector", lambda shared: Blind())
    cleaning.clean("own", config)
    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "sha256", busy)
        patch.setattr("time.sleep", lambda seconds: None)
        with pytest.raises(AgelibError, match=r"could not be read \(Input/output error\)"):
            cleaning.is_current("own", config)
    assert cleaning.is_current("own", config)


def test_names_in_no_known_encoding_are_kept_in_the_books(config, tmp_path):
    images = tmp_path / "images"
    good = next((config.raw / "UTKFace").glob("*_20170116000000001.jpg.chip.jpg"))
    names = [b"\xff/30_1_0_1.jpg", b"30_1_0_\xff.jpg"]
    images.mkdir()
    for name in names:
        place = os.path.join(os.fsencode(images), name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        shutil.copy(good, place)
    table = read_utkface(images)
    table["split"] = "test"
    folder = tmp_path / "faces"
    manifest = cleaning.clean_table(table, images, folder, "odd", config)
    assert manifest["counts"] == {"kept": 1, "name": 1}
    assert FaceSet([folder], "test").paths == [os.fsdecode(names[0])]
    rejected = pd.read_csv(folder / "rejected.csv", encoding_errors="surrogateescape")
    assert rejected["path"].tolist() == [os.fsdecode(names[1])]


def test_a_unit_without_a_single_face_is_kept_in_the_books(config, tmp_path):
    table = tables.read_table("utkface", config)
    faceless = table[table["path"].str.endswith("525126.jpg.chip.jpg")]
    folder = tmp_path / "faceless"
    manifest = cleaning.clean_table(faceless, config.raw / "UTKFace", folder, "utkface", config)
    assert manifest["counts"] == {"kept": 0, "no_face": 1}
    assert cleaning.clean_table(faceless, config.raw / "UTKFace", folder, "utkface", config)


# Real images


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["wiki", "utkface"])
def test_nearly_all_real_images_keep_a_face(name, mirror, tmp_path):
    config = Config.from_profile("wiki", data=tmp_path, workers=1)
    assert config.mirror == str(mirror)
    download.fetch(name, config)
    folder = download.extract(name, config)
    table = tables.read_table(name, config)
    table = table[table["reject"] == ""].sample(300, random_state=0).assign(split="test")
    manifest = cleaning.clean_table(table, folder, tmp_path / "faces", name, config)
    assert manifest["rows"] == 300
    assert manifest["counts"]["kept"] >= 0.97 * 300
