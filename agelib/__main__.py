"""The command line: `python -m agelib run`, or one step at a time."""

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agelib import AgelibError
from agelib.config import PROFILES, Config

_STEPS = {
    "download": "archives to data/raw",
    "clean": "images to shards of faces",
    "upload": "shards to Google Drive, verified",
    "train": "shards to a model",
    "evaluate": "model and test faces to a results table",
    "predict": "photos to ages and genders",
    "ship": "a run's model to agelib/pretrained, for all who name none",
    "run": "the first six in order; what is done is skipped",
}

_NAMES_A_RUN = ("profile", "run", "data")
_MODEL_HELP = (
    "a model.keras; default: the run's where --profile, --run or --data names one, else the one "
    "that comes with agelib"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; an error that the user can mend becomes one line and exit status 1."""
    options = vars(_parser().parse_args(arguments))
    given = {name: value for name, value in options.items() if value is not None}
    settings = {f.name: given[f.name] for f in dataclasses.fields(Config) if f.name in given}
    try:
        config = Config.from_profile(**settings)
        _COMMANDS[options["command"]](config, options)
    except AgelibError as error:
        print(f"agelib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("agelib: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m agelib", description="Age and gender from faces.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in _STEPS.items():
        command = commands.add_parser(name, help=text, description=text)
        for field in dataclasses.fields(Config):
            _add_setting(command, field)
        if name in ("evaluate", "predict"):
            command.add_argument("--json", action="store_true", help="print JSON and nothing else")
            command.add_argument("--model", type=Path, help=_MODEL_HELP)
    clean, evaluate, predict = (commands.choices[name] for name in ("clean", "evaluate", "predict"))
    clean.add_argument(
        "--verify", action="store_true", help="hash every shard first, and rebuild the damaged ones"
    )
    evaluate.add_argument("--images", type=Path, help="a folder of images named as in UTKFace")
    predict.add_argument("photos", type=Path, nargs="+", help="image files or folders")
    predict.add_argument("--output", type=Path, help="folder for annotated pictures")
    return parser


def _add_setting(command: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    """Adds a field of Config as an option; None stands for the profile's value."""
    name, text = field.name, field.metadata["help"]
    flag = f"--{name.replace('_', '-')}"
    if name == "profile":
        command.add_argument(flag, choices=PROFILES, help=text)
    elif name == "train_sources":
        command.add_argument(flag, nargs="+", help=text)
    elif name == "data":
        command.add_argument(flag, type=Path, help=text)
    elif isinstance(field.default, bool):
        command.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    else:
        # Of `int | None`, int.
        kind = next(iter(typing.get_args(field.type)), field.type)
        command.add_argument(flag, type=kind, help=text)


def _download(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps
    from agelib.archives import ARCHIVES

    for name in config.sources:
        licence = "free" if config.profile == "sample" else ARCHIVES[name].licence
        print(f"{name}: {steps.download(name, config)} ({licence})")


def _clean(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps

    for name in config.sources:
        damaged = steps.verify(name, config) if options.get("verify") else None
        counts = steps.clean(name, config)["counts"]
        if damaged is not None:
            print(f"{name}: damaged and rebuilt: {', '.join(damaged) or 'nothing'}")
        order = sorted(counts.items(), key=lambda item: (item[0] != "kept", -item[1]))
        print(f"{name}: " + ", ".join(f"{count:,} {reason}" for reason, count in order))


def _upload(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps

    for name in config.sources:
        copied = steps.upload(name, config)
        print(
            f"{name}: {len(copied)} files copied to {config.drive / 'faces' / name}, all verified"
        )


def _train(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps

    last = steps.train(config).iloc[-1]
    print(
        f"{config.run_folder / 'model.keras'}: after {last.epoch:.0f} epochs, on validation faces "
        f"age branch {last.val_age_branch_accuracy:.1%}, gender {last.val_gender_accuracy:.1%}"
    )


def _evaluate(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps
    from agelib.evaluate import evaluate_folder
    from agelib.model import load_model
    from agelib.report import recall_table, results_table

    if options["images"] or options["model"]:
        path = _model_path(config, options)
        model, note = load_model(path)
        config = dataclasses.replace(config, **note["crop"], image_size=None)
        if not options["images"]:
            raise AgelibError("--model needs --images, a folder of images named as in UTKFace.")
        report = evaluate_folder(options["images"], model, path, config)
    else:
        report = steps.evaluate(config)
    if options["json"]:
        print(json.dumps(report, indent=1))
        return
    print(results_table(report).to_string(), recall_table(report).to_string(), sep="\n\n")
    rejected = ", ".join(f"{count:,} {reason}" for reason, count in report["rejected"].items())
    print(f"\nleft out of {report['dataset']}: {rejected or 'nothing'}")


def _model_path(config: Config, options: dict[str, Any]) -> Path:
    from agelib import steps
    from agelib.model import PRETRAINED

    if options["model"]:
        return options["model"]
    if any(options.get(name) for name in _NAMES_A_RUN):
        return steps.pull_model(config)
    return PRETRAINED


def _predict(config: Config, options: dict[str, Any]) -> None:
    from agelib.faces import Rejected, read_image
    from agelib.plots import annotate
    from agelib.predict import Estimator, find_photos, name_pictures

    if options["output"] and options["output"].is_file():
        raise AgelibError(f"{options['output']} is a file: name a folder as --output.")
    photos = find_photos(options["photos"])
    model = _model_path(config, options)
    estimator = Estimator(model)
    results: list[dict[str, Any]] = []
    for photo, name in zip(photos, name_pictures(photos), strict=True):
        try:
            image = read_image(photo)
        except Rejected as error:
            results.append({"photo": str(photo), "error": str(error), "faces": []})
            continue
        estimates = estimator.predict(image)
        result = {"photo": str(photo), "faces": [estimate.to_dict() for estimate in estimates]}
        if options["output"]:
            options["output"].mkdir(parents=True, exist_ok=True)
            target = options["output"] / name
            annotate(image, estimates).savefig(target)
            result["picture"] = str(target)
        results.append(result)
    if options["json"]:
        print(json.dumps(results, indent=1))
    else:
        print(f"model: {model}")
        for result in results:
            _print_faces(result)
    if all("error" in result for result in results):
        raise AgelibError("None of the photos could be read: name JPEG, PNG or other image files.")


def _print_faces(result: dict[str, Any]) -> None:
    if "error" in result:
        print(result["error"])
        return
    print(f"{result['photo']}: {len(result['faces']) or 'no'} face(s)")
    for face in result["faces"]:
        share = face["gender_probabilities"][face["gender"]]
        print(
            f"  {face['gender']} ({share:.0%}), {face['age']:.0f} years, branch "
            f"{face['age_branch']}, at {face['box']}"
        )
    if "picture" in result:
        print(f"  drawn in {result['picture']}")


def _ship(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps
    from agelib.model import PRETRAINED
    from agelib.ship import ship

    steps.pull_model(config)
    card = ship(config)
    print(f"{PRETRAINED}: {card['bytes'] / 1e6:.1f} MB")


def _run(config: Config, options: dict[str, Any]) -> None:
    for step in (_download, _clean, _upload, _train):
        step(config, options)
    _evaluate(config, {"images": None, "model": None, "json": False})
    photo = _astronaut(config)
    model = config.run_folder / "model.keras"
    _predict(config, {"photos": [photo], "model": model, "json": False, "output": photo.parent})


def _astronaut(config: Config) -> Path:
    """Returns a public-domain portrait to try the model on, as a file."""
    from PIL import Image
    from skimage import data

    path = config.run_folder / "figures" / "astronaut.png"
    if not path.exists():
        Image.fromarray(data.astronaut()).save(path)
    return path


_COMMANDS = {
    "download": _download,
    "clean": _clean,
    "upload": _upload,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "ship": _ship,
    "run": _run,
}

if __name__ == "__main__":
    sys.exit(main())
