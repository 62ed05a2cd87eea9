"""The command line: `python -m agelib run`, or one step at a time."""

import argparse
import dataclasses
import io
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from agelib import AgelibError, __version__, first_line, missing_package

try:
    from agelib.commands import COMMANDS
    from agelib.config import PROFILES, Config
except ModuleNotFoundError as error:
    sys.exit(f"agelib: {missing_package(error)}")

_MODEL = (
    "a model.keras; default: the run's if --profile, --run or --data is given, else the pretrained "
    "model"
)

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
_OF_PROFILE = "default: as the profile has them"
_DEFAULTS = dict.fromkeys(
    ("predict", "serve", "export"), "they name your run; without them, the pretrained model answers"
)


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
    except ModuleNotFoundError as error:
        return _fail(missing_package(error))
    except BrokenPipeError:
        # Whoever read this, such as `head`, has enough. Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename} cannot be used" if error.filename else "A file cannot be used"
        why = first_line(error)
        return _fail(f"{where} ({why}): make room or name another folder, then run this again.")
    except KeyboardInterrupt:
        how = "; the same command goes on from here" * _goes_on(command, options)
        return _fail(f"stopped{how}.", 130)
    return 0


def _goes_on(command: str, options: dict[str, typing.Any]) -> bool:
    """Tells whether a command that was stopped goes on when it is given again."""
    if command == "predict":
        return options["csv"] is not None
    return command not in ("export", "serve") and not options.get("images")


def _fail(why: str, status: int = 1) -> int:
    print(f"agelib: {why}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m agelib", description="Age and gender from faces.")
    parser.add_argument("--version", action="version", version=f"agelib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        settings = command.add_argument_group("settings", _DEFAULTS.get(name, _OF_PROFILE))
        for field in dataclasses.fields(Config):
            used = field.name in _USED.get(name, (field.name,))
            _add_setting(settings, field, field.metadata["help"] if used else argparse.SUPPRESS)
    _add_options(commands.choices)
    return parser


def _add_options(commands: dict[str, argparse.ArgumentParser]) -> None:
    """Adds what single commands take beside the settings."""
    evaluate, predict, export = (commands[name] for name in ("evaluate", "predict", "export"))
    serve = commands["serve"]
    for command in (evaluate, predict, export, serve):
        command.add_argument("--model", type=Path, help=_MODEL)
    for command in (evaluate, predict, export):
        command.add_argument("--json", action="store_true", help="print nothing but JSON")
    commands["clean"].add_argument(
        "--verify", action="store_true", help="check all shards first, and rebuild the damaged ones"
    )
    evaluate.add_argument(
        "--images",
        type=Path,
        help="test --model on a folder of images with a labels.csv, or named as in UTKFace",
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
    formats = ("saved_model", "tflite", "int8", "onnx")
    export.add_argument("--formats", nargs="+", choices=formats, default=(), help="default: all")
    export.add_argument("--images", type=Path, help="folder of photos to compare the formats on")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in too")
    serve.add_argument("--port", type=int, default=7860, help="default: 7860")


def _add_setting(settings: argparse._ArgumentGroup, field: dataclasses.Field, text: str) -> None:
    """Adds a field of Config as an option; None stands for the profile's value."""
    options: dict[str, typing.Any] = {"help": text}
    if field.type is bool:
        options["action"] = argparse.BooleanOptionalAction
    else:
        # Of `int | None` and `tuple[str, ...]`, the first.
        options["type"] = next(iter(typing.get_args(field.type)), field.type)
    if typing.get_origin(field.type) is tuple:
        options["nargs"] = "+"
    if field.name == "profile":
        options["choices"] = PROFILES
    settings.add_argument(f"--{field.name.replace('_', '-')}", **options)


if __name__ == "__main__":
    sys.exit(main())
