import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import one_line
from PIL import Image
from skimage import data

import agelib
from agelib.__main__ import main
from agelib.files import sha256
from agelib.model import saved

ROOT = Path(agelib.__file__).parents[1]


@pytest.fixture
def options(trained):
    """What names the trained run on the command line."""
    return options_of(trained)


def options_of(config):
    return ["--data", str(config.data), "--run", config.run, "--epochs", str(config.epochs)]


@pytest.fixture
def album(tmp_path):
    """A folder with a portrait, a photo without a face, and a broken one."""
    folder = tmp_path / "album"
    folder.mkdir()
    Image.fromarray(data.astronaut()).save(folder / "b-astronaut.png")
    Image.fromarray(np.full((200, 300, 3), 90, np.uint8)).save(folder / "c-wall.png")
    (folder / "a-broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    return folder


@pytest.mark.parametrize("command", ["clean", "upload", "train", "evaluate"])
def test_a_step_before_its_time_names_the_step_to_run_first(tmp_path, capsys, command):
    assert main([command, "--data", str(tmp_path)]) == 1
    assert "step (notebook 0" in one_line(capsys.readouterr().err)


def test_download_names_folders_and_licences(sample_config, tmp_path, capsys):
    shutil.copytree(sample_config.mirror, tmp_path / "sample" / "mirror")
    assert main(["download", "--data", str(tmp_path)]) == 0
    wiki, utkface = capsys.readouterr().out.splitlines()
    assert wiki.startswith(f"wiki: {tmp_path / 'sample' / 'raw' / 'wiki_crop'}")
    assert "(free)" in wiki
    assert "(free)" in utkface


def test_only_what_the_sample_draws_itself_is_free(tmp_path, capsys):
    for name in ("aaf", "mine"):
        (tmp_path / "sample" / "raw" / name).mkdir(parents=True)
        (tmp_path / "sample" / "raw" / name / "labels.csv").write_text("path,age,gender\n")
    sources = ["--train-sources", "aaf", "mine", "own", "--test-sources", "own"]
    assert main(["download", "--data", str(tmp_path), *sources]) == 0
    aaf, mine, own = capsys.readouterr().out.splitlines()
    assert "(research only, to be cited)" in aaf
    assert "(free)" not in mine
    assert "(free)" in own


def test_own_photos_that_are_not_there_are_named_at_once(tmp_path, capsys):
    where = ["--data", str(tmp_path), "--own", str(tmp_path / "photos")]
    assert main(["download", "--profile", "own", *where]) == 1
    assert f"{tmp_path / 'photos'} is no folder" in one_line(capsys.readouterr().err)


def test_clean_counts_what_is_kept_and_why_not(own_faces, sample_config, capsys):
    own_faces.raw.symlink_to(sample_config.raw)
    assert main(["clean", "--data", str(own_faces.data)]) == 0
    wiki, utkface = capsys.readouterr().out.splitlines()
    assert wiki.startswith("wiki: 320 kept, ")
    assert "1 ambiguous" in wiki
    assert utkface.startswith("utkface: 140 kept, ")
    assert "3 name" in utkface


def test_upload_says_how_many_files_were_copied(trained, options, capsys):
    assert main(["upload", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, line in zip(trained.sources, lines, strict=True):
        folder = trained.drive / "faces" / name
        assert line == f"{name}: all verified in {folder}; files copied now: 0"


def test_train_says_where_the_model_is_and_how_good(trained, options, capsys):
    assert main(["train", *options]) == 0
    line = one_line(capsys.readouterr().out)
    history = pd.read_csv(trained.run_folder / "history.csv")
    best = history.loc[history["val_loss"].idxmin()]
    assert line.startswith(f"{trained.run_folder / 'model.keras'}: epoch {best.epoch:.0f} of 2")
    assert f"age branch {best.val_age_branch_accuracy:.1%}" in line
    assert f"gender {best.val_gender_accuracy:.1%}" in line


@pytest.mark.slow
def test_run_does_all_steps_and_nothing_twice(
    trained, sample_config, tmp_path, capsys, monkeypatch
):
    shutil.copytree(trained.folder, tmp_path / "sample")
    shutil.copytree(sample_config.mirror, tmp_path / "sample" / "mirror")
    (tmp_path / "sample" / "raw").symlink_to(sample_config.raw)
    config = dataclasses.replace(trained, data=tmp_path)
    for place in (
        "agelib.training.loop.build_model",
        "agelib.faces.crop.detector",
        "agelib.evaluation.evaluate.estimate",
    ):
        monkeypatch.setattr(place, None)
    assert main(["run", *options_of(config)]) == 0
    text = capsys.readouterr().out
    order = ["wiki_crop", "320 kept", "all verified", "of 2 is kept", "AGE accuracy", "astronaut"]
    order += ["no real one", f"model: {saved.PRETRAINED}", f"model: {config.run_folder}"]
    places = [text.index(mark) for mark in [*order, "python -m agelib predict PHOTO"]]
    assert places == sorted(places)
    picture = Path(re.findall("drawn in (.*)", text)[-1])
    assert picture.parent == config.run_folder / "figures"
    with Image.open(picture) as image:
        assert image.size == (640, 640)


# Evaluate


def test_evaluate_prints_tables(trained, options, capsys):
    assert main(["evaluate", *options]) == 0
    text = capsys.readouterr().out
    for mark in ("train", "val", "test", "AGE accuracy", "GENDER accuracy", "14-23", "Female"):
        assert mark in text
    assert "left out of utkface: 3 age, 3 name" in text


def test_evaluate_as_json_is_nothing_but_json(trained, options, capsys):
    assert main(["evaluate", "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((trained.run_folder / "evaluation.json").read_text())


@pytest.mark.slow
def test_a_real_terminal_gets_nothing_but_json_on_standard_output(trained, options, album):
    command = [sys.executable, "-m", "agelib", "predict", "--json", *options, str(album)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 3
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_real_terminal_sees_nothing_of_tensorflow(trained, options):
    environment = os.environ | {"TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "agelib", "evaluate", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


def test_evaluate_takes_any_folder_of_images(trained, options, sample_config, capsys):
    images = sample_config.raw / "UTKFace"
    assert main(["evaluate", "--json", "--images", str(images), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = json.loads((trained.run_folder / "evaluation.json").read_text())
    for name in ("n", "age_mae", "age_branch_accuracy", "gender_confusion", "no_face", "model"):
        assert report[name] == expected[name]


def test_evaluate_takes_any_model_with_its_own_crops(trained, sample_config, tmp_path, capsys):
    # Neither the run nor the crop settings come from the command line.
    model = tmp_path / "elsewhere.keras"
    shutil.copy(trained.run_folder / "model.keras", model)
    images = sample_config.raw / "UTKFace"
    arguments = ["--images", str(images), "--model", str(model), "--data", str(tmp_path)]
    assert main(["evaluate", *arguments, "--crop-size", "100", "--margin", "0.9"]) == 0
    assert "left out of UTKFace" in capsys.readouterr().out


def test_evaluate_says_that_a_model_needs_images(trained, options, capsys):
    model = str(trained.run_folder / "model.keras")
    assert main(["evaluate", "--model", model, *options]) == 1
    assert one_line(capsys.readouterr().err).startswith("agelib: --model needs --images")


# Predict


def test_predict_as_json_reports_a_broken_photo_and_does_the_others(options, album, capsys):
    main(["predict", "--json", *options, str(album)])
    output = capsys.readouterr()
    results = {Path(result["photo"]).name: result for result in json.loads(output.out)}
    assert list(results) == ["a-broken.jpg", "b-astronaut.png", "c-wall.png"]
    assert "cannot be read as an image" in results["a-broken.jpg"]["error"]
    assert results["a-broken.jpg"]["faces"] == []
    assert results["c-wall.png"]["faces"] == []
    [face] = results["b-astronaut.png"]["faces"]
    np.testing.assert_allclose(list(face["box"].values()), (182, 64, 265, 171), atol=9)
    assert list(face["box"]) == ["left", "top", "right", "bottom"]
    assert 1 <= face["age"] <= 85


def test_predict_tells_what_it_sees(options, album, capsys):
    main(["predict", *options, str(album)])
    text = capsys.readouterr().out
    assert "a-broken.jpg cannot be read as an image" in text
    assert "b-astronaut.png: 1 face\n  " in text
    assert "c-wall.png: no face" in text
    assert re.search(r" years \(\d+-\d+\), branch ", text)


def test_predict_writes_a_table_with_every_face_and_what_has_none(options, album, tmp_path, capsys):
    table = tmp_path / "faces.csv"
    assert main(["predict", *options, str(album), "--csv", str(table)]) == 0
    found = pd.read_csv(table, keep_default_na=False, index_col="photo")
    found.index = [Path(name).name for name in found.index]
    assert found.loc["c-wall.png", "note"] == "no face"
    assert "cannot be read" in found.loc["a-broken.jpg", "note"]
    face = found.loc["b-astronaut.png"]
    assert face["note"] == ""
    assert 1 <= int(face["age_low"]) <= int(face["age_high"]) <= 85


def test_a_table_that_cannot_be_written_is_one_sentence(options, album, capsys):
    photo = str(album / "b-astronaut.png")
    assert main(["predict", *options, photo, "--csv", str(album / "no" / "faces.csv")]) == 1
    assert "faces.csv" in one_line(capsys.readouterr().err)


def test_runs_are_set_side_by_side(trained, options, capsys):
    other = trained.run_folder.with_name("other")
    other.mkdir()
    shutil.copy(trained.run_folder / "model.keras", other)
    assert main(["evaluate", *options, "--against", "other"]) == 0
    _, heading, _, columns, *_ = capsys.readouterr().out.splitlines()
    assert heading == "How good is each run on the same test faces?"
    assert columns.split() == ["trained", "other"]
    assert main(["evaluate", *options, "--against", "other", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"trained", "other"}
    shutil.rmtree(other)
    shutil.rmtree(trained.drive / "runs" / "other")
    assert main(["evaluate", *options, "--against", "nosuch"]) == 1
    assert "nosuch" in one_line(capsys.readouterr().err.splitlines()[-1] + "\n")


def test_predict_draws_what_it_sees(options, album, tmp_path, capsys):
    drawn = tmp_path / "new" / "drawn"
    photo = album / "b-astronaut.png"
    assert main(["predict", *options, str(photo), "--output", str(drawn)]) == 0
    [picture] = drawn.iterdir()
    assert str(picture) in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.size == (640, 640)


def test_a_file_in_place_of_the_output_folder_is_named(options, album, capsys):
    photo = str(album / "b-astronaut.png")
    assert main(["predict", *options, photo, "--output", photo]) == 1
    assert "is a file: name a folder" in one_line(capsys.readouterr().err)


def test_a_name_that_is_no_text_is_printed_all_the_same(options, album, capfd):
    photo = os.fsdecode(os.path.join(os.fsencode(album), b"\xff.png"))
    shutil.copy(album / "b-astronaut.png", photo)
    csv = str(album / "faces.csv")
    command = [sys.executable, "-m", "agelib", "predict", *options, photo, "--csv", csv]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert "\\udcff.png: 1 face" in capfd.readouterr().out
    assert os.path.exists(csv)


def test_photos_of_the_same_name_get_pictures_of_their_own(options, album, tmp_path, capsys):
    again = album / "again"
    again.mkdir()
    shutil.copy(album / "b-astronaut.png", again)
    Image.fromarray(data.astronaut()).save(album / "b-astronaut.jpg")
    drawn = tmp_path / "drawn"
    main(["predict", "--json", *options, str(album), "--output", str(drawn)])
    results = [r for r in json.loads(capsys.readouterr().out) if "astronaut" in r["photo"]]
    assert len(results) == 3
    assert len({result["picture"] for result in results}) == 3
    assert all(Path(result["picture"]).exists() for result in results)


def test_predicting_again_takes_no_picture_for_a_photo(options, album, capsys):
    arguments = ["predict", "--json", *options, str(album), "--output", str(album)]
    main(arguments)
    first = capsys.readouterr().out
    assert len(list(album.glob("*.estimates.png"))) == 2
    main(arguments)
    assert capsys.readouterr().out == first


def test_predict_takes_any_model(trained, album, tmp_path, capsys):
    model = str(trained.run_folder / "model.keras")
    photo = str(album / "b-astronaut.png")
    assert main(["predict", "--json", "--model", model, "--data", str(tmp_path), photo]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["faces"]) == 1


def test_where_no_run_is_named_the_model_that_comes_with_agelib_answers(
    trained, sample_config, album, monkeypatch, capsys
):
    shipped = trained.run_folder / "model.keras"
    monkeypatch.setattr(saved, "PRETRAINED", shipped)
    assert main(["predict", str(album / "b-astronaut.png")]) == 0
    assert f"model: {shipped}" in capsys.readouterr().out
    folder = sample_config.raw / "UTKFace"
    assert main(["evaluate", "--json", "--images", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["sha256"] == sha256(shipped)


@pytest.mark.parametrize("model", ["missing.keras", "text.keras"])
def test_predict_needs_a_model(album, tmp_path, capsys, model):
    (tmp_path / "text.keras").write_text("no model")
    assert main(["predict", "--model", str(tmp_path / model), str(album)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert model in one_line(output.err)


def test_predict_names_a_photo_that_does_not_exist(options, tmp_path, capsys):
    assert main(["predict", *options, str(tmp_path / "gone.jpg")]) == 1
    assert one_line(capsys.readouterr().err).endswith("gone.jpg does not exist.")


# Export


def test_export_shows_each_format_that_is_written(options, tmp_path, capsys):
    out = tmp_path / "out"
    formats = ["--formats", "saved_model", "tflite"]
    assert main(["export", *options, "--output", str(out), *formats]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["model.tflite", "saved_model"]
    text = capsys.readouterr().out
    assert "model.keras, compared on test faces of" in text
    for mark in ("Keras", "SavedModel", "TFLite", "ms a face"):
        assert mark in text


def test_export_writes_the_others_and_names_what_is_missing(options, tmp_path, monkeypatch, capsys):
    from agelib.prediction.export import FORMATS

    onnx = dataclasses.replace(FORMATS["onnx"], packages=("no_such_package",))
    monkeypatch.setitem(FORMATS, "onnx", onnx)
    arguments = ["--output", str(tmp_path), "--formats", "onnx", "tflite"]
    assert main(["export", "--json", *options, *arguments]) == 1
    output = capsys.readouterr()
    assert "pip install no_such_package" in output.err.splitlines()[-1]
    rows = {row["format"]: row for row in json.loads(output.out)}
    assert rows["ONNX"]["megabytes"] is None
    assert rows["TFLite"]["same_gender"] >= 0.95
    assert (tmp_path / "model.tflite").exists()


def test_export_checks_on_photos_of_one_s_own(options, album, tmp_path, capsys):
    arguments = ["--images", str(album), "--output", str(tmp_path / "out"), "--formats", "tflite"]
    assert main(["export", *options, *arguments]) == 0
    assert f"compared on faces in the photos of {album}, of 3 (1)" in capsys.readouterr().out


@pytest.mark.slow
def test_export_in_a_real_terminal_says_nothing_but_its_table(options, tmp_path):
    environment = os.environ | {"TQDM_DISABLE": "1"}
    arguments = ["--output", str(tmp_path), "--formats", "saved_model", "tflite", "int8"]
    command = [sys.executable, "-m", "agelib", "export", *options, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("model: ")
    assert "endpoint" not in done.stdout


# Ship


def test_the_sample_is_not_shipped(options, capsys):
    assert main(["ship", *options]) == 1
    assert "knows no real faces" in one_line(capsys.readouterr().err)


def test_ship_pulls_the_run_and_its_faces_and_says_where_the_model_is(
    monkeypatch, tmp_path, capsys
):
    pulled = []
    for name in ("pull_model", "pull_faces"):
        monkeypatch.setattr(f"agelib.steps.{name}", pulled.append)
    monkeypatch.setattr(
        "agelib.release.ship", lambda config: {"bytes": 8_250_000, "run": config.run}
    )
    assert main(["ship", "--profile", "wiki", "--data", str(tmp_path)]) == 0
    assert [config.run for config in pulled] == ["wiki", "wiki"]
    assert one_line(capsys.readouterr().out).endswith("model.keras: 8.2 MB")
