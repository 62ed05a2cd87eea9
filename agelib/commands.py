"""What each command does: a step of `agelib.steps`, and what it says to a terminal.

A command gets the settings, and its own options by name. The imports stand inside the functions,
so that `--help` and a wrong option need no TensorFlow.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agelib import AgelibError
from agelib.config import Config, Crop


def _download(config: Config) -> None:
    from agelib import steps
    from agelib.datasets.tables import find_dataset

    for name in config.sources:
        licence = "free" if config.profile == "sample" else find_dataset(name).licence
        print(f"{name}: {steps.download(name, config)} ({licence})")


def _clean(config: Config, verify: bool = False) -> None:
    from agelib import steps

    for name in config.sources:
        damaged = steps.verify(name, config) if verify else None
        counts = steps.clean(name, config)["counts"]
        if damaged is not None:
            print(f"{name}: damaged and rebuilt: {', '.join(damaged) or 'nothing'}")
        order = sorted(counts.items(), key=lambda item: (item[0] != "kept", -item[1]))
        print(f"{name}: " + ", ".join(f"{count:,} {reason}" for reason, count in order))


def _upload(config: Config) -> None:
    from agelib import steps

    for name in config.sources:
        copied = steps.upload(name, config)
        place = config.drive / "faces" / name
        print(f"{name}: all verified in {place}; files copied now: {len(copied)}")


def _train(config: Config) -> None:
    from agelib import steps

    last = steps.train(config).iloc[-1]
    print(
        f"{config.run_folder / 'model.keras'}: after {last.epoch:.0f} epochs, on validation faces "
        f"(each seen once, without its mirror image): age branch "
        f"{last.val_age_branch_accuracy:.1%}, gender {last.val_gender_accuracy:.1%}"
    )


def _evaluate(
    config: Config,
    images: Path | None = None,
    model: Path | None = None,
    of_run: bool = True,
    against: Sequence[str] | None = None,
    json: bool = False,
) -> None:
    from agelib import steps

    if against and (images or model):
        raise AgelibError("--against sets runs side by side: leave out --images and --model.")
    if model and not images:
        raise AgelibError("--model needs --images, a folder with a labels.csv or UTKFace's names.")
    if against:
        table = steps.compare(config, [config.run, *against])
        text = f"\nHow good is each run on the same test faces?\n\n{table.to_string()}"
        print(table.to_json(indent=1) if json else text)
        return
    if images:
        report = _evaluate_folder(config, images, _model_path(config, model, of_run))
    else:
        report = steps.evaluate(config)
    (_print_json if json else _print_report)(report)


def _evaluate_folder(config: Config, images: Path, path: Path) -> dict[str, Any]:
    from agelib.evaluation.evaluate import evaluate_folder
    from agelib.model.saved import load_model

    model, metadata = load_model(path)
    config = dataclasses.replace(
        config, **Crop.from_json(metadata["crop"]).to_json(), image_size=None
    )
    return evaluate_folder(images, model, path, config)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _print_report(report: dict[str, Any]) -> None:
    from agelib.evaluation.tables import (
        calibration_table,
        duplicates_sentence,
        groups_table,
        name_worst,
        recall_table,
        results_table,
    )

    print("\nHow often is the model right?\n", results_table(report).to_string(), sep="\n")
    print("\nHow far off is it, and how sure?\n", calibration_table(report).to_string(), sep="\n")
    for name, scores in report.get("tests", {report["dataset"]: report}).items():
        tables = (recall_table(scores).to_string(), groups_table(scores).to_string())
        limits = (name_worst(scores), duplicates_sentence(scores["near_duplicates"]))
        print(
            f"\nTested on {name}: each class, and each group of people",
            *tables,
            *limits,
            sep="\n\n",
        )
        rejected = ", ".join(f"{count:,} {reason}" for reason, count in scores["rejected"].items())
        print(f"left out of {name}: {rejected or 'nothing'}")
    print(
        "\nIn brackets: 95 % confidence interval. Balanced: the mean over the classes, each with "
        "the same weight. An estimate is the mean over a face and its mirror image."
    )


def _model_path(config: Config, model: Path | None, of_run: bool) -> Path:
    """Returns the model that was named, else that of the named run, else the pretrained one."""
    from agelib import steps
    from agelib.model.saved import PRETRAINED

    return model or (steps.pull_model(config) if of_run else PRETRAINED)


def _predict(
    config: Config,
    photos: Sequence[str | Path],
    model: Path | None = None,
    of_run: bool = True,
    output: Path | None = None,
    csv: Path | None = None,
    json: bool = False,
) -> None:
    from tqdm import tqdm

    from agelib.prediction.estimator import Estimator
    from agelib.prediction.photos import find_photos, is_video, name_others
    from agelib.prediction.results import predict_photos

    places = find_photos(photos)
    if others := name_others(photos):
        print(others, file=sys.stderr)
    path = _model_path(config, model, of_run)
    results = predict_photos(Estimator(path), places, output, csv)
    if not json:
        print(f"model: {path}")
    answered: list[dict[str, Any]] = []
    # A bar for a single photo would be gone before it is read.
    single = len(places) == 1 and not is_video(places[0])
    try:
        for result in tqdm(results, "predict", unit=" photos", disable=single):
            answered.append(result.to_dict())
            if not json:
                tqdm.write(str(result))
    finally:
        if json:
            _print_json(answered)
    if answered and all("error" in result for result in answered):
        raise AgelibError("None of the photos could be read: name JPEG, PNG or other image files.")
    if any("picture_error" in result for result in answered):
        raise AgelibError("Not all pictures could be written: see the lines above.")


def _export(
    config: Config,
    output: Path,
    model: Path | None = None,
    of_run: bool = True,
    formats: Sequence[str] = (),
    images: Path | None = None,
    json: bool = False,
) -> None:
    from agelib.model.saved import load_model
    from agelib.prediction.export import (
        describe_input,
        export,
        faces_to_check,
        name_missing,
        readable,
    )

    path = _model_path(config, model, of_run)
    crops, what = faces_to_check(config, Crop.from_json(load_model(path)[1]["crop"]), images)
    table = export(path, output, crops, formats)
    if json:
        print(table.to_json(orient="records", indent=1))
    else:
        print(f"model: {path}, compared on {what}", readable(table).to_string(), sep="\n\n")
        print("\ndifferences from Keras; ms: the median call of one face on this machine\n")
        print(describe_input(path))
    if not formats and (missing := name_missing()):
        print(missing, file=sys.stderr)
    if problems := [problem for problem in table["problem"] if problem]:
        raise AgelibError(" ".join(problems))


def _serve(config: Config, host: str, port: int, model: Path | None, of_run: bool) -> None:
    from agelib.prediction.page import serve

    serve(_model_path(config, model, of_run), host, port)


def _ship(config: Config) -> None:
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


def _run(config: Config) -> None:
    from agelib import steps
    from agelib.model.saved import PRETRAINED

    for step in (_download, _clean, _upload, _train, _evaluate):
        step(config)
    if config.weights == "agelib":
        print("\nOn the same test faces, after training and before it (agelib):\n")
        print(steps.compare(config, [config.run, "agelib"]).to_string())
    photo = _astronaut(config)
    whose = (
        "knows only the sample's drawn faces, no real one"
        if config.profile == "sample"
        else ("was trained on " + " and ".join(config.train_sources))
    )
    print(
        f"\nA photo of the astronaut Eileen Collins, 41 or 42 years old. The run's model {whose}; "
        "the pretrained model was trained on real faces.\n"
    )
    for model in (PRETRAINED, config.run_folder / "model.keras"):
        _predict(config, [photo], model, output=photo.parent)
    print("\nNow a photo of yours: python -m agelib predict PHOTO --output FOLDER")


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


COMMANDS: dict[str, Callable[..., None]] = {
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
