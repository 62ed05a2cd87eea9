"""What each command does: a step of `agelib.steps`, and what it says to a terminal."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agelib import AgelibError
from agelib.config import Config

NAMES_A_RUN = ("profile", "run", "data")


def _download(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps
    from agelib.datasets.tables import find

    for name in config.sources:
        licence = "free" if config.profile == "sample" else find(name).licence
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
        place = config.drive / "faces" / name
        print(f"{name}: all verified in {place}, {len(copied)} files copied just now")


def _train(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps

    last = steps.train(config).iloc[-1]
    print(
        f"{config.run_folder / 'model.keras'}: after {last.epoch:.0f} epochs, on validation faces "
        f"age branch {last.val_age_branch_accuracy:.1%}, gender {last.val_gender_accuracy:.1%}"
    )


def _evaluate(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps
    from agelib.evaluation.evaluate import evaluate_folder
    from agelib.model.saved import load_model

    if options["against"] and (options["images"] or options["model"]):
        raise AgelibError("--against sets runs side by side: leave out --images and --model.")
    if options["model"] and not options["images"]:
        raise AgelibError("--model needs --images, a folder with a labels.csv or UTKFace's names.")
    if options["images"]:
        path = _model_path(config, options)
        model, note = load_model(path)
        config = dataclasses.replace(config, **note["crop"], image_size=None)
        report = evaluate_folder(options["images"], model, path, config)
    elif options["against"]:
        table = steps.compare(config, [config.run, *options["against"]])
        print(table.to_json(indent=1) if options["json"] else table.to_string())
        return
    else:
        report = steps.evaluate(config)
    if options["json"]:
        print(json.dumps(report, indent=1))
        return
    _print_report(report)


def _print_report(report: dict[str, Any]) -> None:
    from agelib.evaluation.tables import (
        calibration_table,
        duplicates_sentence,
        groups_table,
        name_worst,
        recall_table,
        results_table,
    )

    print(*(table(report).to_string() for table in (results_table, calibration_table)), sep="\n\n")
    for name, scores in report.get("tests", {report["dataset"]: report}).items():
        tables = (recall_table(scores).to_string(), groups_table(scores).to_string())
        limits = (name_worst(scores), duplicates_sentence(scores["near_duplicates"]))
        print(f"\ntested on {name}:", *tables, *limits, sep="\n\n")
        rejected = ", ".join(f"{count:,} {reason}" for reason, count in scores["rejected"].items())
        print(f"left out of {name}: {rejected or 'nothing'}")
    print(
        "\nin brackets: 95 % interval; balanced: the mean over the classes, each counting alike; "
        "estimates are means over a face and its mirror image"
    )


def _model_path(config: Config, options: dict[str, Any]) -> Path:
    from agelib import steps
    from agelib.model.saved import PRETRAINED

    if options["model"]:
        return options["model"]
    if any(options.get(name) for name in NAMES_A_RUN):
        return steps.pull_model(config)
    return PRETRAINED


def _predict(config: Config, options: dict[str, Any]) -> None:
    from tqdm import tqdm

    from agelib.prediction.estimator import Estimator
    from agelib.prediction.photos import find_photos, is_video, name_others
    from agelib.prediction.results import predict_photos

    places = find_photos(options["photos"])
    if others := name_others(options["photos"]):
        print(others, file=sys.stderr)
    model = _model_path(config, options)
    results = predict_photos(Estimator(model), places, options["output"], options["csv"])
    if not options["json"]:
        print(f"model: {model}")
    answered: list[dict[str, Any]] = []
    # A bar for a single photo would be gone before it is read.
    single = len(places) == 1 and not is_video(places[0])
    try:
        for result in tqdm(results, "predict", unit=" photos", disable=single):
            answered.append(result.to_dict())
            if not options["json"]:
                tqdm.write(str(result))
    finally:
        if options["json"]:
            print(json.dumps(answered, indent=1))
    if answered and all("error" in result for result in answered):
        raise AgelibError("None of the photos could be read: name JPEG, PNG or other image files.")
    if any("picture_error" in result for result in answered):
        raise AgelibError("Not all pictures could be written: see the lines above.")


def _export(config: Config, options: dict[str, Any]) -> None:
    from agelib.model.saved import load_model
    from agelib.prediction.export import (
        describe_input,
        export,
        faces_to_check,
        name_missing,
        readable,
    )

    path = _model_path(config, options)
    crops, what = faces_to_check(config, load_model(path)[1]["crop"], options["images"])
    table = export(path, options["output"], crops, options["formats"])
    if options["json"]:
        print(table.to_json(orient="records", indent=1))
    else:
        print(f"model: {path}, compared on {what}", readable(table).to_string(), sep="\n\n")
        print("\ndifferences from Keras; ms: the median call of one face on this machine\n")
        print(describe_input(path))
    if not options["formats"] and (missing := name_missing()):
        print(missing, file=sys.stderr)
    if problems := [problem for problem in table["problem"] if problem]:
        raise AgelibError(" ".join(problems))


def _serve(config: Config, options: dict[str, Any]) -> None:
    from agelib.prediction.page import serve

    serve(_model_path(config, options), options["host"], options["port"])


def _ship(config: Config, options: dict[str, Any]) -> None:
    from agelib import steps
    from agelib.model.saved import PRETRAINED
    from agelib.release import ship

    if config.profile == "sample":
        raise AgelibError(
            "The sample's model knows no real faces: ship a run of another --profile."
        )
    steps.pull_model(config)
    steps.pull_faces(config)
    card = ship(config)
    print(f"{PRETRAINED}: {card['bytes'] / 1e6:.1f} MB")


def _run(config: Config, options: dict[str, Any]) -> None:
    for step in (_download, _clean, _upload, _train):
        step(config, options)
    _evaluate(config, {"images": None, "model": None, "against": None, "json": False})
    photo = _astronaut(config)
    model = config.run_folder / "model.keras"
    options = {"photos": [photo], "model": model, "output": photo.parent}
    _predict(config, options | {"json": False, "csv": None})


def _astronaut(config: Config) -> Path:
    """Returns a public-domain portrait to try the model on, as a file."""
    from PIL import Image
    from skimage import data

    from agelib.files import atomic

    path = config.run_folder / "figures" / "astronaut.png"
    if not path.exists():
        with atomic(path) as partial:
            Image.fromarray(data.astronaut()).save(partial, "PNG")
    return path


COMMANDS: dict[str, Callable[[Config, dict[str, Any]], None]] = {
    "download": _download,
    "clean": _clean,
    "upload": _upload,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "serve": _serve,
    "ship": _ship,
    "run": _run,
}
