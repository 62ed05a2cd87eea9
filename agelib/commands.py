"""What each command does: a step of `agelib.steps`, and what it says to a terminal.

A command gets the settings, and its own options by name; its docstring is its help. What loads
slowly is imported when it is used, so that `--help` and a wrong option need no TensorFlow.
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import agelib
from agelib import AgelibError
from agelib.config import Config
from agelib.model import saved


def download(config: Config) -> None:
    """Fetches the archives and extracts them to data/raw."""
    from agelib.datasets.registry import find_dataset

    for name in config.sources:
        known = find_dataset(name)
        drawn = known.archive.url or (name == "own" and not config.own)
        licence = "free" if config.profile == "sample" and drawn else known.licence
        print(f"{name}: {agelib.steps.download(name, config)} ({licence})")


def clean(config: Config, verify: bool = False) -> None:
    """Cuts out the faces of all images and stores them in shards."""
    for name in config.sources:
        damaged = agelib.steps.verify(name, config) if verify else None
        counts = agelib.steps.clean(name, config)["counts"]
        if damaged is not None:
            print(f"{name}: damaged and rebuilt: {', '.join(damaged) or 'nothing'}")
        order = sorted(counts.items(), key=lambda item: (item[0] != "kept", -item[1]))
        print(f"{name}: " + ", ".join(f"{count:,} {reason}" for reason, count in order))


def upload(config: Config) -> None:
    """Copies the shards to Google Drive and verifies them there."""
    for name in config.sources:
        copied = agelib.steps.upload(name, config)
        place = config.drive / "faces" / name
        print(f"{name}: all verified in {place}; files copied now: {len(copied)}")


def train(config: Config) -> None:
    """Trains a model on the shards."""
    history = agelib.steps.train(config)
    best = history[history["best"]].iloc[0]
    print(
        f"{config.run_folder / 'model.keras'}: epoch {best.epoch:.0f} of {len(history)} is kept. "
        "On validation faces (each seen once, without its mirror image): age branch "
        f"{best.val_age_branch_accuracy:.1%}, gender {best.val_gender_accuracy:.1%}"
    )


def evaluate(
    config: Config,
    images: Path | None = None,
    model: Path | None = None,
    of_run: bool = True,
    against: Sequence[str] | None = None,
    json: bool = False,
) -> None:
    """Scores a model on test faces and prints the results."""
    if against and (images or model):
        raise AgelibError("--against sets runs side by side: leave out --images and --model.")
    if model and not images:
        raise AgelibError("--model needs --images, a folder with a labels.csv or UTKFace's names.")
    if against:
        table = agelib.steps.compare(config, [config.run, *against])
        text = f"\nHow good is each run on the same test faces?\n\n{table.to_string()}"
        print(table.to_json(indent=1) if json else text)
        return
    if images:
        from agelib.evaluation.evaluate import evaluate_folder

        report = evaluate_folder(images, _model_path(config, model, of_run), config)
    else:
        report = agelib.steps.evaluate(config)
    (_print_json if json else _print_report)(report)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _print_report(report: dict[str, Any]) -> None:
    from agelib.evaluation import tables

    print("\nHow often is the model right?\n", tables.results_table(report).to_string(), sep="\n")
    print("\nHow far off is it, and how sure?\n")
    print(tables.calibration_table(report).to_string())
    for name, scores in report.get("tests", {report["dataset"]: report}).items():
        rejected = ", ".join(f"{count:,} {reason}" for reason, count in scores["rejected"].items())
        print(
            f"\nTested on {name}: each class, and each group of people",
            tables.recall_table(scores).to_string(),
            tables.groups_table(scores).to_string(),
            tables.name_worst(scores),
            tables.duplicates_sentence(scores["near_duplicates"]),
            sep="\n\n",
        )
        print(f"left out of {name}: {rejected or 'nothing'}")
    print(
        "\nIn brackets: 95 % confidence interval. Balanced: the mean over the classes, each with "
        "the same weight. An estimate is the mean over a face and its mirror image."
    )


def _model_path(config: Config, model: Path | None, of_run: bool) -> Path:
    """Returns the model that was named, else that of the named run, else the pretrained one."""
    return model or (agelib.steps.pull_model(config) if of_run else saved.PRETRAINED)


def predict(
    config: Config,
    photos: Sequence[str | Path],
    model: Path | None = None,
    of_run: bool = True,
    output: Path | None = None,
    csv: Path | None = None,
    json: bool = False,
) -> None:
    """Estimates ages and genders in photos."""
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


def export(
    config: Config,
    output: Path,
    model: Path | None = None,
    of_run: bool = True,
    formats: Sequence[str] = (),
    images: Path | None = None,
    json: bool = False,
) -> None:
    """Writes a model as SavedModel, TFLite (float32, int8) and ONNX, each compared with Keras."""
    from agelib.prediction import export as exporting
    from agelib.prediction.estimator import Estimator

    estimator = Estimator(_model_path(config, model, of_run))
    crops, what = exporting.faces_to_check(config, estimator.crop, images)
    table = exporting.export(estimator, output, crops, formats)
    if json:
        print(table.to_json(orient="records", indent=1))
    else:
        print(f"model: {estimator.path}, compared on {what}\n")
        print(f"{exporting.readable(table).to_string()}\n")
        print("differences from Keras; ms: the median call of one face on this machine\n")
        print(exporting.describe_input(estimator))
    if not formats and (missing := exporting.name_missing()):
        print(missing, file=sys.stderr)
    if problems := [problem for problem in table["problem"] if problem]:
        raise AgelibError(" ".join(problems))


def serve(config: Config, host: str, port: int, model: Path | None, of_run: bool) -> None:
    """Opens a page in the browser that estimates photos (needs Gradio)."""
    from agelib.prediction import page

    page.serve(_model_path(config, model, of_run), host, port)


def ship(config: Config) -> None:
    """Makes a run's model the pretrained one, in agelib/pretrained (for maintainers)."""
    from agelib import release

    if config.profile == "sample":
        raise AgelibError(
            "The sample's model knows no real faces: ship a run of another --profile."
        )
    agelib.steps.pull_model(config)
    agelib.steps.pull_faces(config)
    print(f"{saved.PRETRAINED}: {release.ship(config)['bytes'] / 1e6:.1f} MB")


def run(config: Config) -> None:
    """Does the first six steps in order; what is done is skipped."""
    for step in (download, clean, upload, train, evaluate):
        step(config)
    if config.weights == "agelib":
        print("\nOn the same test faces, after training and before it (agelib):\n")
        print(agelib.steps.compare(config, [config.run, "agelib"]).to_string())
    whose = f"was trained on {' and '.join(config.train_sources)}"
    if config.profile == "sample":
        whose = "knows only the sample's drawn faces, no real one"
    print(
        f"\nA photo of the astronaut Eileen Collins, 41 or 42 years old. The run's model {whose}; "
        "the pretrained model was trained on real faces.\n"
    )
    photo = _astronaut(config)
    for model in (saved.PRETRAINED, config.run_folder / "model.keras"):
        # One picture only: both would have the same name.
        predict(config, [photo], model, output=photo.parent if model == saved.PRETRAINED else None)
    print("\nNow a photo of yours: python -m agelib predict PHOTO --output FOLDER")


def _astronaut(config: Config) -> Path:
    from PIL import Image
    from skimage import data

    from agelib.files import atomic

    path = config.run_folder / "figures" / "astronaut.png"
    with atomic(path) as partial:
        Image.fromarray(data.astronaut()).save(partial, "PNG")
    return path


_ALL = (download, clean, upload, train, evaluate, predict, export, serve, ship, run)
COMMANDS: dict[str, Callable[..., None]] = {command.__name__: command for command in _ALL}
