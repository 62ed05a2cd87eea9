import codecs
import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agelib import AgelibError
from agelib.backend import keras
from agelib.datasets.sample import N_UTKFACE
from agelib.datasets.tables import read_folder, read_table
from agelib.evaluation import evaluate
from agelib.evaluation.evaluate import (
    compare_with_pretrained,
    evaluate_folder,
    evaluate_run,
)
from agelib.evaluation.tables import compare_table, results_table
from agelib.faces.cleaning import clean_table
from agelib.faces.near_duplicates import label_agreement, near_duplicates, thumbnails
from agelib.faces.shards import FaceSet, fingerprint, read_manifest
from agelib.files import write_json
from agelib.model import saved
from agelib.model.saved import load_model, save_model

REQUIRED = {
    "n",
    "no_face",
    "age_branch_accuracy",
    "age_branch_balanced_accuracy",
    "age_branch_recall",
    "age_mae",
    "gender_accuracy",
    "gender_balanced_accuracy",
    "age_branch_confusion",
    "model",
    "crop",
    "dataset",
}


@pytest.fixture
def model(tiny_networks):
    keras.utils.set_random_seed(3)
    return tiny_networks("EfficientNetB0", 64)


@pytest.fixture
def run(own_faces, model):
    """A run of which only the model is there."""
    crop = own_faces.crop.to_json()
    config = dataclasses.replace(own_faces, run="tiny")
    save_model(model, config.run_folder / "model.keras", {"crop": crop})
    return config


@pytest.fixture
def folder(sample_config):
    return sample_config.raw / "UTKFace"


# Running a model


def test_metrics_and_tables_need_no_tensorflow():
    code = "import agelib.evaluation.evaluate, sys; sys.exit('tensorflow' in sys.modules)"
    root = Path(evaluate.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


def test_a_run_is_evaluated_on_all_three_splits(run):
    report = evaluate_run(run)
    assert set(report) >= REQUIRED
    assert len(report["age_branch_recall"]) == 5
    assert np.shape(report["age_branch_confusion"]) == (5, 5)
    assert np.sum(report["age_branch_confusion"]) == report["n"] == N_UTKFACE
    assert set(report["splits"]) == {"train", "val", "test"}
    for split, name in (("train", "wiki"), ("val", "wiki"), ("test", "utkface")):
        faces = FaceSet([run.faces / name], split)
        assert report["splits"][split]["n"] == len(faces)
    assert report["splits"]["test"]["age_mae"] == report["age_mae"]
    assert report["dataset"] == "utkface"
    assert report["crop"] == run.crop.to_json()
    assert report["model"]["file"] == "model.keras"
    assert report["no_face"] == 1
    assert report["rejected"] == {"age": 3, "name": 3, "no_face": 1, "unreadable": 2}


def test_the_report_is_written_as_json(run):
    report = evaluate_run(run)
    assert json.loads((run.run_folder / "evaluation.json").read_text()) == report


def test_every_test_face_is_listed_with_its_estimate(run, model):
    report = evaluate_run(run)
    table = pd.read_csv(run.run_folder / "estimates.csv")
    faces = FaceSet([run.faces / "utkface"], "test")
    assert table["path"].tolist() == faces.paths
    assert (table["age_branch"] == table["estimated_branch"]).mean() == pytest.approx(
        report["age_branch_accuracy"]
    )
    assert (table["estimated_age"] - table["age"]).abs().mean() == pytest.approx(
        report["age_mae"], abs=0.01
    )


def test_spreadsheets_read_the_list_of_estimates_as_utf_8(run):
    evaluate_run(run)
    assert (run.run_folder / "estimates.csv").read_bytes().startswith(codecs.BOM_UTF8)


def test_near_duplicates_among_test_faces_are_counted_with_their_labels(run):
    config = dataclasses.replace(run, run="left_out")
    model, note = load_model(run.run_folder / "model.keras")
    left_out = {"wiki": 3}
    path = config.run_folder / "model.keras"
    save_model(model, path, note | {"near_duplicates": left_out})
    report = evaluate_run(config)
    faces = FaceSet([run.faces / "utkface"], "test")
    pairs = near_duplicates(thumbnails(faces))
    assert len(pairs)
    assert report["near_duplicates"] == label_agreement(faces, pairs)
    assert report["tests"]["utkface"]["near_duplicates"] == report["near_duplicates"]
    assert report["train_left_out"] == left_out


@pytest.fixture
def pretrained(run, tmp_path, monkeypatch):
    """Makes a model like the run's the pretrained one; returns what trains that on other sets."""
    path = tmp_path / "pretrained.keras"
    monkeypatch.setattr(saved, "PRETRAINED", path)
    model, note = load_model(run.run_folder / "model.keras")

    def train_on(*names, tested=(), **changed):
        learned = {"train_sources": names, "test_sources": tested, "val_fraction": 0.15}
        save_model(model, path, note | {"config": learned} | changed)
        return path

    return train_on


def test_a_run_is_compared_with_the_pretrained_model(run, pretrained):
    pretrained("aaf")
    table = compare_with_pretrained({"tiny": evaluate_run(run)}, run)
    assert table.columns.tolist() == ["tiny", "agelib"]
    assert table["tiny"].tolist() == table["agelib"].tolist()


def test_the_pretrained_model_s_own_train_faces_are_marked(run, pretrained):
    pretrained("wiki", "utkface")
    table = compare_with_pretrained({}, run)
    assert table.columns.tolist() == ["agelib, trained on utkface"]
    both = {"train_sources": ("utkface",), "test_sources": ("utkface",)}
    table = compare_with_pretrained({}, dataclasses.replace(run, **both))
    assert table.columns.tolist() == ["agelib, trained on utkface"]
    # It held out the same people.
    pretrained("wiki", "utkface", tested=("aaf", "utkface"))
    table = compare_with_pretrained({}, dataclasses.replace(run, **both))
    assert table.columns.tolist() == ["agelib"]
    table = compare_with_pretrained({}, dataclasses.replace(run, **both, val_fraction=0.3))
    assert table.columns.tolist() == ["agelib, trained on utkface"]


def test_the_train_faces_of_the_pretrained_model_s_teachers_are_marked(run, pretrained):
    seen = {"train_sources": ["utkface"], "test_sources": [], "val_fraction": 0.15}
    pretrained("aaf", before=[{"config": seen, "seconds": 1.0}])
    table = compare_with_pretrained({}, run)
    assert table.columns.tolist() == ["agelib, trained on utkface"]


def test_imdb_s_people_are_wiki_s(run, pretrained):
    shutil.copytree(run.faces / "utkface", run.faces / "imdb")
    pretrained("wiki")
    table = compare_with_pretrained({}, dataclasses.replace(run, test_sources="imdb"))
    assert table.columns.tolist() == ["agelib, trained on imdb"]


@pytest.mark.parametrize("weights", ["agelib", "file"])
def test_a_run_is_not_praised_for_faces_that_its_weights_were_trained_on(run, pretrained, weights):
    start = pretrained("wiki", "utkface")
    path = run.run_folder / "model.keras"
    model, note = load_model(path)
    settings = {"weights": "agelib" if weights == "agelib" else str(start)}
    save_model(model, path, note | {"config": settings})
    report = evaluate_run(run)
    columns = ["train", "val", "test, trained on utkface"]
    assert results_table(report).columns.tolist() == columns
    assert results_table(evaluate_run(run)).columns.tolist() == columns
    assert compare_table({"tiny": report}).columns.tolist() == ["tiny, trained on utkface"]


def test_a_run_is_evaluated_without_the_model_that_it_began_with(run):
    path = run.run_folder / "model.keras"
    model, note = load_model(path)
    save_model(model, path, note | {"config": {"weights": "lost.keras"}})
    assert results_table(evaluate_run(run)).columns.tolist() == ["train", "val", "test"]


def test_what_a_lost_teacher_had_seen_is_known(run):
    path = run.run_folder / "model.keras"
    model, note = load_model(path)
    seen = {"train_sources": ["wiki", "utkface"], "test_sources": ["aaf"], "val_fraction": 0.15}
    teacher = {"config": seen, "seconds": 1.0}
    save_model(model, path, note | {"config": {"teachers": ["lost.keras"]}, "before": [teacher]})
    columns = results_table(evaluate_run(run)).columns.tolist()
    assert columns == ["train", "val", "test, trained on utkface"]


def test_a_pretrained_model_of_another_crop_is_not_compared(run, pretrained):
    pretrained("aaf", crop=run.crop.to_json() | {"margin": 0.4})
    with pytest.raises(AgelibError, match=r"the pretrained model needs .*0\.4"):
        compare_with_pretrained({}, run)


def test_a_lost_list_of_estimates_is_made_again(run):
    evaluate_run(run)
    (run.run_folder / "estimates.csv").unlink()
    evaluate_run(run)
    assert (run.run_folder / "estimates.csv").exists()


def test_data_sets_in_other_roles_are_evaluated_anew(run):
    assert evaluate_run(run)["n"] == N_UTKFACE
    with pytest.raises(AgelibError, match="split into train, val and test by other settings"):
        evaluate_run(dataclasses.replace(run, train_sources=("utkface",), test_sources=("wiki",)))


def test_each_test_set_is_reported_under_its_own_name(run):
    config = dataclasses.replace(run, run="two", train_sources="wiki", test_sources="utkface")
    shutil.copytree(run.run_folder, config.run_folder)
    shutil.copytree(run.faces / "utkface", run.faces / "again")
    first = evaluate_run(config)
    config = dataclasses.replace(config, test_sources=("utkface", "again"))
    report = evaluate_run(config)
    assert list(report["tests"]) == ["utkface", "again"]
    for name, scores in report["tests"].items():
        assert scores["n"] == N_UTKFACE
        assert scores["age_mae"] == first["age_mae"]
        assert scores["dataset"] == "utkface"  # as its manifest has it
        assert name in report["sources"]["test"]
    assert report["splits"]["test"]["age_mae"] == report["age_mae"]
    for each in (report, evaluate_run(config)):  # the second is read from the file
        columns = results_table(each).columns.tolist()
        assert columns == ["train", "val", "test", "test on again"]
    listed = pd.read_csv(config.run_folder / "estimates.csv")
    assert len(listed) == N_UTKFACE


def test_groups_add_up_to_all_faces(run):
    report = evaluate_run(run)
    for by in ("age branch and gender", "race"):
        assert sum(g["n"] for g in report["groups"] if g["by"] == by) == report["n"]
    assert all(g["by"] != "race" for g in report["splits"]["val"]["groups"])  # WIKI names none


def test_an_evaluation_is_not_done_twice(run, monkeypatch):
    report = evaluate_run(run)
    monkeypatch.setattr(evaluate, "estimate", None)
    assert evaluate_run(run) == report


def test_another_model_is_evaluated_anew(run, model):
    before = evaluate_run(run)
    model.set_weights([weights + 0.5 for weights in model.get_weights()])
    save_model(model, run.run_folder / "model.keras", {"crop": before["crop"]})
    after = evaluate_run(run)
    assert after["model"]["sha256"] != before["model"]["sha256"]
    assert after["age_mae"] != before["age_mae"]


def test_other_faces_are_evaluated_anew(run, sample_config):
    assert evaluate_run(run)["n"] == N_UTKFACE
    shutil.rmtree(run.faces / "utkface")
    table = read_table("utkface", sample_config).iloc[:50]
    images = sample_config.raw / "UTKFace"
    manifest = clean_table(table, images, run.faces / "utkface", "utkface", run)
    assert evaluate_run(run)["n"] == manifest["counts"]["kept"] < N_UTKFACE


def test_faces_that_the_model_was_not_trained_on_are_refused(run, sample_config):
    faces = {"wiki": fingerprint(run.faces / "wiki")}
    write_json(run.run_folder / "config.json", {"faces": faces})
    assert evaluate_run(run)["n"] == N_UTKFACE
    shutil.rmtree(run.faces / "wiki")
    table = read_table("wiki", sample_config).iloc[:50]
    clean_table(table, sample_config.raw / "wiki_crop", run.faces / "wiki", "wiki", run)
    with pytest.raises(AgelibError, match=r"Run tiny was trained on other faces than wiki"):
        evaluate_run(run)


def test_a_missing_model_is_asked_for(own_faces):
    with pytest.raises(AgelibError, match=r"model\.keras is missing: run the train step"):
        evaluate_run(own_faces)


@pytest.mark.parametrize("name", ["wiki", "utkface"])
def test_missing_faces_are_asked_for(run, name):
    shutil.rmtree(run.faces / name)
    with pytest.raises(AgelibError, match=r"manifest\.json is missing: run the clean step"):
        evaluate_run(run)


@pytest.mark.parametrize(("name", "value"), [("crop_size", 96), ("margin", 0.7)])
def test_faces_cropped_otherwise_than_the_model_was_made_for_are_refused(
    own_faces, tiny_networks, name, value
):
    crop = own_faces.crop.to_json() | {name: value}
    path = own_faces.run_folder / "model.keras"
    save_model(tiny_networks("EfficientNetB0", crop["crop_size"]), path, {"crop": crop})
    with pytest.raises(AgelibError, match=str(value)):
        evaluate_run(own_faces)


@pytest.mark.parametrize("image_size", [32, 96])
def test_a_run_whose_network_sees_another_size_is_evaluated(own_faces, tiny_networks, image_size):
    # Training resizes the crops, and prediction does.
    config = dataclasses.replace(own_faces, run="other", image_size=image_size)
    crop = config.crop.to_json()
    network = tiny_networks("EfficientNetB0", image_size)
    save_model(network, config.run_folder / "model.keras", {"crop": crop})
    assert evaluate_run(config)["n"] == N_UTKFACE


# Any folder of images


def test_a_folder_of_images_scores_as_its_cleaned_shards_do(run, model, folder):
    from_shards = evaluate_run(run)
    report = evaluate_folder(folder, run.run_folder / "model.keras", run)
    assert set(report) >= REQUIRED
    assert report["dataset"] == "UTKFace"
    for name in REQUIRED - {"dataset"}:
        assert report[name] == from_shards[name], name
    assert report["rejected"] == from_shards["rejected"]


def test_a_folder_of_images_is_left_as_it_was(run, model, folder):
    before = sorted(path.name for path in folder.rglob("*"))
    evaluate_folder(folder, run.run_folder / "model.keras", run)
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert read_manifest(run.faces / "utkface")["dataset"] == "utkface"


def test_a_folder_without_a_valid_name_is_refused(run, model, tmp_path):
    images = tmp_path / "holiday"
    images.mkdir()
    (images / "beach.jpg").write_bytes(b"")
    with pytest.raises(
        AgelibError, match=r"holiday can be used .*: name them age_gender_race_date"
    ):
        evaluate_folder(images, run.run_folder / "model.keras", run)


def test_names_with_impossible_ages_are_no_reason_to_extract_an_archive(run, tmp_path):
    images = tmp_path / "holiday"
    images.mkdir()
    (images / "0_1_2_20170116000000000.jpg").write_bytes(b"")
    with pytest.raises(AgelibError, match=r"1 age, .*: write ages in years"):
        evaluate_folder(images, run.run_folder / "model.keras", run)


def test_a_folder_with_labels_needs_no_names(run, model, folder, tmp_path):
    images = tmp_path / "party"
    shutil.copytree(folder, images / "deeper")
    named = [path for path in read_folder(folder).query("reject == ''")["path"]]
    rows = [f"deeper/{name},{name.split('_')[0]},{name.split('_')[1]}" for name in named]
    (images / "labels.csv").write_text("path,age,gender\n" + "\n".join(rows))
    by_names = evaluate_folder(folder, run.run_folder / "model.keras", run)
    report = evaluate_folder(images, run.run_folder / "model.keras", run)
    assert report["dataset"] == "party"
    for name in ("n", "age_mae", "gender_accuracy", "no_face"):
        assert report[name] == by_names[name], name


def test_a_labelled_folder_without_a_usable_row_is_refused(run, model, tmp_path):
    (tmp_path / "labels.csv").write_text("path,age,gender\na.jpg,30,m\n")
    with pytest.raises(AgelibError, match=r"1 missing, a\.jpg for one"):
        evaluate_folder(tmp_path, run.run_folder / "model.keras", run)


@pytest.mark.parametrize("exists", [True, False])
def test_an_empty_or_missing_folder_is_refused(run, model, tmp_path, exists):
    images = tmp_path / "holiday"
    if exists:
        images.mkdir()
    with pytest.raises(AgelibError, match="holiday"):
        evaluate_folder(images, run.run_folder / "model.keras", run)


def test_a_folder_without_a_face_is_refused_by_its_own_name(run, model, folder, tmp_path):
    images = tmp_path / "landscapes"
    images.mkdir()
    shutil.copy(folder / "30_1_0_20170116174525126.jpg.chip.jpg", images)
    with pytest.raises(AgelibError, match=r"landscapes.*no.*face"):
        evaluate_folder(images, run.run_folder / "model.keras", run)
