import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

import agelib
from agelib import __main__ as command_line
from agelib import model
from agelib.__main__ import main
from agelib.config import PROFILES, Config
from agelib.files import sha256

ROOT = Path(agelib.__file__).parents[1]

# Each is other than the default of every profile.
VALUES = {
    "profile": "imdb-wiki",
    "train_sources": ["imdb", "utkface"],
    "test_source": "wiki",
    "backbone": "EfficientNetB7",
    "weights": "some/file.h5",
    "crop_size": "72",
    "image_size": "80",
    "margin": "0.45",
    "align": True,
    "val_fraction": "0.25",
    "epochs": "77",
    "head_epochs": "7",
    "batch_size": "19",
    "learning_rate": "0.0123",
    "drop_connect_rate": "0.15",
    "seed": "42",
    "run": "another",
    "workers": "5",
    "data": "some/where",
}


@pytest.fixture
def asked(monkeypatch):
    """The settings that a command is given; no command does anything."""
    configs = []

    def remember(config, options):
        configs.append(config)

    for name in command_line._COMMANDS:
        monkeypatch.setitem(command_line._COMMANDS, name, remember)
    return configs


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


def one_line(text):
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert "Traceback" not in text
    return text.strip()


def refused(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


# Settings


@pytest.mark.parametrize("command", ["download", "clean", "upload", "train", "evaluate", "run"])
def test_every_setting_is_an_option_of_every_command(asked, command):
    arguments = [command]
    for name, value in VALUES.items():
        values = {str: [value], list: value, bool: []}[type(value)]
        arguments += [f"--{name.replace('_', '-')}", *values]
    assert main(arguments) == 0
    [config] = asked
    assert set(VALUES) == {field.name for field in dataclasses.fields(Config)}
    expected = {
        **VALUES,
        "train_sources": ("imdb", "utkface"),
        "data": Path("some/where").absolute(),
        **{name: int(VALUES[name]) for name in ("crop_size", "image_size", "epochs")},
        **{name: int(VALUES[name]) for name in ("head_epochs", "batch_size", "seed", "workers")},
        **{name: float(VALUES[name]) for name in ("margin", "val_fraction", "learning_rate")},
        "drop_connect_rate": 0.15,
    }
    assert {name: getattr(config, name) for name in VALUES} == expected


@pytest.mark.parametrize("profile", PROFILES)
def test_without_options_the_profile_decides(asked, profile):
    main(["train", "--profile", profile])
    assert asked == [Config.from_profile(profile)]


def test_the_sample_is_the_default(asked):
    main(["run"])
    assert asked == [Config.from_profile("sample")]


def test_weights_none_overrides_a_profile(asked):
    main(["train", "--profile", "wiki", "--weights", "none"])
    assert asked[0].weights is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "ResNet50"], "agelib: backbone is 'ResNet50', but must be one of"),
        (["--crop-size", "7"], "agelib: crop_size is 7, but must be from 16 to 600 pixels."),
        (["--test-source", "faces"], "agelib: test_source is 'faces', but must be"),
        (["--run", "a/b"], "agelib: run is 'a/b', but must be a plain name"),
        (["--epochs", "0"], "agelib: epochs is 0, but must be 1 or more."),
    ],
)
def test_a_value_that_cannot_work_is_one_line(asked, capsys, arguments, message):
    assert main(["train", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert one_line(output.err).startswith(message)
    assert asked == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "--profile", "mine"], "'mine'"),
        (["train", "--epochs", "many"], "'many'"),
        (["train", "--margin", "wide"], "'wide'"),
        (["train", "--unheard-of", "1"], "--unheard-of"),
        (["dance"], "'dance'"),
        (["predict"], "photos"),
        ([], "command"),
    ],
)
def test_a_command_that_cannot_be_understood_is_explained(asked, capsys, arguments, named):
    assert refused(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert named in output.err.splitlines()[-1]
    assert asked == []


@pytest.mark.parametrize("command", command_line._COMMANDS)
def test_help_explains_every_setting(capsys, command):
    assert refused([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
        assert field.metadata["help"].split(";")[0] in text


def test_stopping_by_hand_is_one_line(monkeypatch, capsys):
    def stop(config, options):
        raise KeyboardInterrupt

    monkeypatch.setitem(command_line._COMMANDS, "train", stop)
    assert main(["train"]) == 130
    assert one_line(capsys.readouterr().err).startswith("agelib: stopped")


def test_a_real_terminal_sees_one_line_and_an_exit_status():
    done = subprocess.run(
        [sys.executable, "-m", "agelib", "train", "--backbone", "ResNet50"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert one_line(done.stderr).startswith("agelib: backbone is 'ResNet50'")


# Steps


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
    assert [line.split(" copied")[0] for line in lines] == ["wiki: 0 files", "utkface: 0 files"]


def test_train_says_where_the_model_is_and_how_good(trained, options, capsys):
    assert main(["train", *options]) == 0
    line = one_line(capsys.readouterr().out)
    assert line.startswith(f"{trained.run_folder / 'model.keras'}: after 2 epochs")
    assert line.count("%") == 2


@pytest.mark.slow
def test_run_does_all_steps_and_nothing_twice(
    trained, sample_config, tmp_path, capsys, monkeypatch
):
    shutil.copytree(trained.folder, tmp_path / "sample")
    shutil.copytree(sample_config.mirror, tmp_path / "sample" / "mirror")
    (tmp_path / "sample" / "raw").symlink_to(sample_config.raw)
    config = dataclasses.replace(trained, data=tmp_path)
    for place in ("agelib.train.build_model", "agelib.crops.detector", "agelib.evaluate.estimate"):
        monkeypatch.setattr(place, None)
    assert main(["run", *options_of(config)]) == 0
    text = capsys.readouterr().out
    order = ["wiki_crop", "320 kept", "all verified", "after 2 epochs", "AGE accuracy", "astronaut"]
    places = [text.index(mark) for mark in order]
    assert places == sorted(places)
    picture = Path(text.strip().splitlines()[-1].removeprefix("  drawn in "))
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
    np.testing.assert_allclose(face["box"], (182, 64, 265, 171), atol=9)
    assert 1 <= face["age"] <= 85


def test_predict_tells_what_it_sees(options, album, capsys):
    main(["predict", *options, str(album)])
    text = capsys.readouterr().out
    assert "a-broken.jpg cannot be read as an image" in text
    assert "b-astronaut.png: 1 face(s)\n  " in text
    assert "c-wall.png: no face(s)" in text
    assert " years, branch " in text


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
    monkeypatch.setattr(model, "PRETRAINED", shipped)
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
