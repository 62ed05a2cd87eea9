"""The command line: `python -m agelib run`, or one step at a time."""

import argparse
import dataclasses
import io
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from agelib import AgelibError, __version__, first_line
from agelib.commands import COMMANDS
from agelib.config import PROFILES, Config

_STEPS = {
    "download": "archives to data/raw",
    "clean": "images to shards of faces",
    "upload": "shards to Google Drive, verified",
    "train": "shards to a model",
    "evaluate": "model and test faces to a results table",
    "predict": "photos to ages and genders",
    "export": "a model to SavedModel, TFLite (float32, int8) and ONNX, checked against Keras",
    "serve": "a page in the browser that estimates photos (needs Gradio)",
    "ship": "a run's model to agelib/pretrained (for maintainers)",
    "run": "the first six in order; what is done is skipped",
}

_MODEL_HELP = {
    "evaluate": "a model.keras to test on --images; default as for predict",
    "export": "a model.keras; default as for predict",
    "predict": "a model.keras; default: the run's if --profile, --run or --data is given, else the "
    "pretrained model",
    "serve": "a model.keras; default as for predict",
}

# The settings that a command uses, which its help explains; "train" and "run" use all. Each command
# takes the others too, for scripts that give all commands the same.
_PLACE = ("profile", "data", "run")
_SETS = ("profile", "data", "own", "train_sources", "test_sources")
_USED = {
    "download": _SETS,
    "clean": (*_SETS, "crop_size", "margin", "align", "val_fraction", "workers"),
    "upload": _SETS,
    "evaluate": (*_SETS, "run", "val_fraction"),
    "predict": _PLACE,
    "serve": _PLACE,
    "export": (*_PLACE, "test_sources"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; an error that the user can mend becomes one line and exit status 1."""
    if sys.stderr is None:  # pythonw.exe has none, and tqdm wants one
        sys.stderr = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    names = [field.name for field in dataclasses.fields(Config)]
    settings = {name: value for name in names if (value := options.pop(name)) is not None}
    if "model" in options:
        options["of_run"] = not settings.keys().isdisjoint(_PLACE)
    try:
        COMMANDS[command](Config.from_profile(**settings), **options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a closed pipe is caught
    except AgelibError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # Whoever read this, such as `head`, has enough. Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename} cannot be used" if error.filename else "A file cannot be used"
        why = error.strerror or first_line(error)
        return _fail(f"{where} ({why}): make room or name another folder, then run this again.")
    except KeyboardInterrupt:
        goes_on = command not in ("export", "serve")
        return _fail("stopped" + "; the same command goes on from here" * goes_on + ".", 130)
    return 0


def _fail(why: str, status: int = 1) -> int:
    print(f"agelib: {why}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m agelib", description="Age and gender from faces.")
    parser.add_argument("--version", action="version", version=f"agelib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _STEPS.items():
        command = commands.add_parser(name, help=text, description=text)
        settings = command.add_argument_group("settings", _settings_of(name))
        for field in dataclasses.fields(Config):
            used = field.name in _USED.get(name, (field.name,))
            _add_setting(settings, field, field.metadata["help"] if used else argparse.SUPPRESS)
    _add_options(commands.choices)
    return parser


def _settings_of(command: str) -> str:
    if command in ("predict", "serve", "export"):
        return "of a run of yours; without any, the pretrained model answers"
    return "default: as the profile has them"


def _add_options(commands: dict[str, argparse.ArgumentParser]) -> None:
    """Adds what single commands take beside the settings."""
    for name, text in _MODEL_HELP.items():
        commands[name].add_argument("--model", type=Path, help=text)
    for name in ("evaluate", "predict", "export"):
        commands[name].add_argument("--json", action="store_true", help="print nothing but JSON")
    commands["clean"].add_argument(
        "--verify", action="store_true", help="hash every shard first, and rebuild the damaged ones"
    )
    evaluate, predict, export = (commands[name] for name in ("evaluate", "predict", "export"))
    evaluate.add_argument(
        "--images", type=Path, help="a folder of images with a labels.csv, or named as in UTKFace"
    )
    evaluate.add_argument(
        "--against",
        nargs="+",
        metavar="RUN",
        help="runs to set beside this one, on the same faces; agelib: the pretrained model",
    )
    predict.add_argument(
        "photos", nargs="+", help="images or videos: files, folders, patterns, addresses"
    )
    predict.add_argument("--csv", type=Path, help="file for a table with a row for each face")
    predict.add_argument("--output", type=Path, help="folder for annotated pictures")
    export.add_argument("--output", type=Path, required=True, help="folder to write to")
    export.add_argument(
        "--formats",
        nargs="+",
        choices=("saved_model", "tflite", "int8", "onnx"),
        default=(),
        help="default: all",
    )
    export.add_argument("--images", type=Path, help="a folder of photos whose faces to check on")
    commands["serve"].add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets all in")
    commands["serve"].add_argument("--port", type=int, default=7860, help="default: 7860")


def _add_setting(settings: argparse._ArgumentGroup, field: dataclasses.Field, text: str) -> None:
    """Adds a field of Config as an option; None stands for the profile's value."""
    name = field.name
    flag = f"--{name.replace('_', '-')}"
    if name == "profile":
        settings.add_argument(flag, choices=PROFILES, help=text)
    elif name in ("train_sources", "test_sources"):
        settings.add_argument(flag, nargs="+", help=text)
    elif name in ("data", "own"):
        settings.add_argument(flag, type=Path, help=text)
    elif isinstance(field.default, bool):
        settings.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    else:
        # Of `int | None`, int.
        kind = next(iter(typing.get_args(field.type)), field.type)
        settings.add_argument(flag, type=kind, help=text)


if __name__ == "__main__":
    sys.exit(main())
