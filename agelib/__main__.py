"""The command line: `python -m agelib run`, or one step at a time."""

import argparse
import dataclasses
import io
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from agelib import AgelibError, first_line
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
    "one that comes with agelib",
    "serve": "a model.keras; default as for predict",
}

# What these need of a run is where it lies, and export its test faces. They take the other settings
# too, for scripts that give each command the same, but do not explain them.
_PLACE = ("profile", "data", "run")
_EXPLAINED = {"predict": _PLACE, "serve": _PLACE, "export": (*_PLACE, "test_sources")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; an error that the user can mend becomes one line and exit status 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    options = vars(_parser().parse_args(arguments))
    given = {name: value for name, value in options.items() if value is not None}
    settings = {f.name: given[f.name] for f in dataclasses.fields(Config) if f.name in given}
    try:
        config = Config.from_profile(**settings)
        COMMANDS[options["command"]](config, options)
    except AgelibError as error:
        print(f"agelib: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename} cannot be used" if error.filename else "A file cannot be used"
        print(
            f"agelib: {where} ({error.strerror or first_line(error)}): make room or name another "
            "folder, then run this again.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        goes_on = options["command"] not in ("predict", "export", "serve")
        more = "; the same command goes on from here" if goes_on else ""
        print(f"agelib: stopped{more}.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m agelib", description="Age and gender from faces.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _STEPS.items():
        command = commands.add_parser(name, help=text, description=text)
        settings = command.add_argument_group("settings", _settings_of(name))
        for field in dataclasses.fields(Config):
            explained = field.name in _EXPLAINED.get(name, (field.name,))
            _add_setting(
                settings, field, field.metadata["help"] if explained else argparse.SUPPRESS
            )
    _add_options(commands.choices)
    return parser


def _settings_of(command: str) -> str:
    if command in _EXPLAINED:
        return "of a run of yours; without any, the model that comes along answers"
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
        "--against", nargs="+", metavar="RUN", help="runs to set beside this one, on the same faces"
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
