import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import one_line
from tqdm import tqdm

import agelib
from agelib import AgelibError
from agelib.__main__ import main
from agelib.commands import COMMANDS
from agelib.config import PROFILES, Config

ROOT = Path(agelib.__file__).parents[1]

# Each is other than the default of every profile.
VALUES = {
    "profile": "imdb-wiki",
    "train_sources": ["imdb", "utkface"],
    "test_sources": ["imdb", "own"],
    "backbone": "EfficientNetB7",
    "weights": "some/file.h5",
    "teachers": ["agelib", "some/model.keras"],
    "crop_size": "72",
    "image_size": "80",
    "margin": "0.45",
    "align": True,
    "keep_near_duplicates": True,
    "val_fraction": "0.25",
    "epochs": "77",
    "head_epochs": "7",
    "batch_size": "19",
    "learning_rate": "0.0123",
    "drop_connect_rate": "0.15",
    "seed": "42",
    "run": "another",
    "workers": "5",
    "own": ".",
    "data": "some/where",
}


@pytest.fixture
def asked(monkeypatch):
    """The settings that a command is given; no command does anything."""
    configs = []

    def remember(config, **options):
        configs.append(config)

    for name in COMMANDS:
        monkeypatch.setitem(COMMANDS, name, remember)
    return configs


def refused(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


# Settings


def test_one_test_set_may_be_asked_for_in_the_singular(asked):
    assert main(["evaluate", "--test-source", "aaf"]) == 0
    assert asked[0].test_sources == ("aaf",)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_an_option_of_every_command(asked, command):
    needed = {"predict": ["photo.jpg"], "export": ["--output", "out"]}
    arguments = [command, *needed.get(command, [])]
    for name, value in VALUES.items():
        values = {str: [value], list: value, bool: []}[type(value)]
        arguments += [f"--{name.replace('_', '-')}", *values]
    assert main(arguments) == 0
    [config] = asked
    assert set(VALUES) == {field.name for field in fields(Config)}
    expected = {
        **VALUES,
        "train_sources": ("imdb", "utkface"),
        "test_sources": ("imdb", "own"),
        "teachers": ("agelib", "some/model.keras"),
        "own": Path.cwd(),
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
        (["--crop-size", "7"], "agelib: crop_size is 7, but must be from 32 to 600 pixels."),
        (["--test-source", "a/b"], "agelib: test_sources is ('a/b',), but must be"),
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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_setting_that_matters(capsys, command):
    assert refused([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    settings = {field.name: field.metadata["help"].split(";")[0] for field in fields(Config)}
    place, sets = {"profile", "data", "run"}, {"own", "train_sources", "test_sources"}
    of_clean = {"crop_size", "margin", "align", "val_fraction", "workers"}
    few = {"predict": place, "serve": place, "export": place | {"test_sources"}}
    few |= dict.fromkeys(("download", "upload"), sets | {"profile", "data"})
    few |= {"clean": few["upload"] | of_clean, "evaluate": place | sets | {"val_fraction"}}
    explained = few.get(command, set(settings))
    for name, meaning in settings.items():
        assert (f"--{name.replace('_', '-')} " in text) == (name in explained), name
        assert (meaning in text) == (name in explained)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["download", "--data", str(tmp_path / "file" / "data")]) == 1
    said = one_line(capsys.readouterr().err)
    assert said.startswith("agelib: ")
    assert "file/data" in said
    assert "Not a directory" in said


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        ("train", True),
        ("evaluate", True),
        ("evaluate --images folder", False),
        ("predict photo.jpg", False),
        ("predict photo.jpg --csv table.csv", True),
        ("export --output folder", False),
    ],
)
def test_stopping_by_hand_is_one_line(monkeypatch, capsys, command, goes_on):
    def stop(config, **options):
        raise KeyboardInterrupt

    name, *_ = words = command.split()
    monkeypatch.setitem(COMMANDS, name, stop)
    assert main(words) == 130
    line = one_line(capsys.readouterr().err)
    assert line == "agelib: stopped" + "; the same command goes on from here" * goes_on + "."


def test_the_version_is_said(capsys):
    assert refused(["--version"]) == 0
    assert capsys.readouterr().out == f"agelib {agelib.__version__}\n"


# Prints more than a pipe holds, as a command does whose photos are many.
TALKING = """
import sys
from agelib import __main__
__main__.COMMANDS["upload"] = lambda config: print("line\\n" * 100_000)
sys.exit(__main__.main(["upload"]))
"""


def test_a_reader_that_has_enough_ends_a_command_quietly():
    process = subprocess.Popen(
        [sys.executable, "-c", TALKING], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_a_command_works_without_standard_error(monkeypatch, capsys):
    def work(config):
        print(sum(tqdm([1, 2])))

    monkeypatch.setitem(COMMANDS, "train", work)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["train"]) == 0
    assert capsys.readouterr().out == "3\n"


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


# Packages that are not installed

RUN = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
sys.modules[sys.argv.pop(1)] = None  # as if it were not installed
runpy.run_module("agelib", run_name="__main__")
"""


def run_without(package, *arguments, options=()):
    command = [sys.executable, *options, "-c", RUN, ROOT, package, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    return one_line(done.stderr)


def test_before_anything_is_installed_one_line_says_what_to_run():
    said = run_without("nothing", options=("-I", "-S"))
    assert "is not installed: run python -m pip install -r requirements.txt in" in said


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("lazy_loader", ["--version"]),
        ("joblib", ["--version"]),
        ("tqdm", ["predict", "photo.jpg"]),
        ("keras", ["predict", "photo.jpg"]),
    ],
)
def test_a_missing_package_is_named_in_one_line(package, arguments):
    assert run_without(package, *arguments).startswith(f"agelib: The package {package} is not")


def test_a_script_is_told_the_same(monkeypatch):
    monkeypatch.delattr(agelib, "steps")
    monkeypatch.delitem(sys.modules, "agelib.steps")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(AgelibError, match="The package pandas is not installed"):
        _ = agelib.steps


def test_a_missing_module_of_agelib_is_no_missing_package():
    error = ModuleNotFoundError("No module named 'agelib.old'", name="agelib.old")
    with pytest.raises(ModuleNotFoundError, match=r"agelib\.old"):
        agelib.missing_package(error)


def test_a_missing_package_without_a_name_is_quoted():
    said = agelib.missing_package(ModuleNotFoundError("No module named 'x'"))
    assert said.startswith("No module named 'x': run python -m pip install")
