"""Evaluation: a model's scores on a run's faces or on any folder of labelled images."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from agelib import AgelibError, __version__
from agelib.config import Config, Crop
from agelib.datasets.tables import read_folder
from agelib.evaluation.scores import score_faces
from agelib.evaluation.tables import compare_table, estimates_table
from agelib.faces.cleaning import check_splits, clean_table
from agelib.faces.near_duplicates import label_agreement, near_duplicates, thumbnails
from agelib.faces.shards import MANIFEST, FaceSet, fingerprint, read_crop, read_manifest
from agelib.files import atomic, read_json, sha256, write_csv, write_json
from agelib.model import saved
from agelib.model.inference import estimate
from agelib.model.saved import load_model

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras

REPORT, ESTIMATES = "evaluation.json", "estimates.csv"


def evaluate_run(config: Config) -> dict[str, Any]:
    """Evaluates a run's model on train, val and test faces.

    Writes `evaluation.json`, and `estimates.csv` with a row for each face of the first test set,
    unless they exist for this version, model and faces.

    Args:
        config: The run's settings.

    Returns:
        The scores of the first test set, with those of its `groups`, `near_duplicates` (see
        `score_split`), `no_face` (images in which MTCNN found none), `rejected` (images left out,
        by reason), `dataset`, `model` and `crop`; the scores of each split under `splits`, of each
        test set under `tests`; `train_left_out`, by data set the train faces that were
        near-duplicates of held-out ones.

    Raises:
        AgelibError: If there is no model or no faces.
    """
    folder, first = config.run_folder, config.test_sources[0]
    for name in config.sources:
        read_manifest(config.faces / name)  # the error says what to do
    made_of = {
        "manifests": {name: sha256(config.faces / name / MANIFEST) for name in config.sources},
        "sources": {"train": list(config.train_sources), "test": list(config.test_sources)},
        "agelib": __version__,
    }
    if done := _evaluated(folder, made_of):
        return done
    model_path = folder / "model.keras"
    model, metadata = load_model(model_path)
    splits, tests = {}, {}
    for split, name, faces, outputs in estimate_splits(model, metadata, config):
        found = score_split(faces, outputs)
        splits.setdefault(split, found)
        if name == first:
            with atomic(folder / ESTIMATES) as partial:
                write_csv(estimates_table(faces, outputs), partial)
        if name:
            tests[name] = _report(found, read_manifest(config.faces / name), model_path)
    report = tests[first] | {"splits": splits, "tests": tests} | made_of
    report["train_left_out"] = metadata.get("near_duplicates", {})
    write_json(folder / REPORT, report)
    return report


def _evaluated(folder: Path, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """Returns a run's report if it is of the same model, faces and version."""
    if not all((folder / name).exists() for name in (REPORT, ESTIMATES, "model.keras")):
        return None
    report = read_json(folder / REPORT)
    made_of = made_of | {"model": {"file": "model.keras", "sha256": sha256(folder / "model.keras")}}
    return report if {name: report.get(name) for name in made_of} == made_of else None


def compare_with_pretrained(reports: dict[str, dict[str, Any]], config: Config) -> pd.DataFrame:
    """Returns a `compare_table` of runs and, as "agelib", of the pretrained model.

    Args:
        reports: Name of a run -> its report, from `evaluate_run`.
        config: The first test source gives the faces.

    Returns:
        The table; its last column is "agelib, trained on NAME" if the pretrained model may have
        been trained on some of these faces, so that its scores are too good.

    Raises:
        AgelibError: If that model needs other crops.
    """
    model, metadata = load_model(saved.PRETRAINED)
    name = config.test_sources[0]
    _check_crop(name, config, metadata, "the pretrained model")
    faces = FaceSet([config.faces / name], "test")
    learned = metadata["config"]
    held_out = (
        name not in learned["train_sources"]
        or "test" in read_manifest(config.faces / name).get("official", [])
        or (name in config.train_sources and config.val_fraction == learned["val_fraction"])
    )
    column = "agelib" if held_out else f"agelib, trained on {name}"
    return compare_table(reports | {column: score_faces(faces, estimate(model, faces))})


def estimate_splits(
    model: "keras.Model", metadata: dict[str, Any], config: Config
) -> Iterator[tuple[str, str, FaceSet, dict[str, np.ndarray]]]:
    """Runs a model on the train and val faces of all sets, then on the test faces of each set.

    Args:
        model: The model.
        metadata: From its file.
        config: The run's settings.

    Yields:
        The split, the test set's name ("" for train and val), faces, and what `estimate` returns.

    Raises:
        AgelibError: If there are no faces, the model was trained on others, or needs other crops.
    """
    _check_trained_on(config)
    check_splits(config.train_sources, config)
    for name in config.sources:
        _check_crop(name, config, metadata, f"the model of run {config.run}")
    parts = [("train", "", config.train_sources), ("val", "", config.train_sources)]
    parts += [("test", name, (name,)) for name in config.test_sources]
    for split, name, sources in parts:
        faces = FaceSet([config.faces / source for source in sources], split)
        yield split, name, faces, estimate(model, faces)


def _check_crop(name: str, config: Config, metadata: dict[str, Any], whose: str) -> None:
    folder = config.faces / name
    Crop.from_json(metadata["crop"]).check(read_crop(folder), folder, user=whose)


def score_split(faces: FaceSet, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns what `score_faces` does, and for test faces the `label_agreement` of near-duplicates.

    No score on these faces can mean more than their labels do.
    """
    scores = score_faces(faces, outputs)
    if faces.split != "test":
        return scores
    pairs = near_duplicates(thumbnails(faces))
    return scores | {"near_duplicates": label_agreement(faces, pairs)}


def _check_trained_on(config: Config) -> None:
    """Makes sure that the held-out faces are not among those that the model was trained on."""
    path = config.run_folder / "config.json"
    if not path.exists():  # the model was not trained here
        return
    here = {name: fingerprint(config.faces / name) for name in config.train_sources}
    if read_json(path)["faces"] != here:
        raise AgelibError(
            f"Run {config.run} was trained on other faces than {' and '.join(here)} in "
            f"{config.faces}: give the --train-sources of its train command, or train again with "
            "another --run name."
        )


def evaluate_folder(
    images: Path, model: "keras.Model", model_path: Path, config: Config
) -> dict[str, Any]:
    """Evaluates a model on any folder of images with a `labels.csv`, or with UTKFace's names.

    Args:
        images: The folder; its faces are found and cropped as in cleaning.
        model: The model.
        model_path: Its file.
        config: With the model's crop settings.

    Returns:
        As `evaluate_run` does of one test set.

    Raises:
        AgelibError: If no image has labels and a face.
    """
    images = Path(images).absolute()
    if not images.is_dir():
        raise AgelibError(f"{images} is no folder: name one with images.")
    table = read_folder(images)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = clean_table(table, images, Path(scratch), images.name, config)
        if not manifest["counts"]["kept"]:
            raise AgelibError(f"{images} has no image with a usable face.")
        faces = FaceSet([Path(scratch)], "test")
        return _report(score_split(faces, estimate(model, faces)), manifest, model_path)


def _report(found: dict, manifest: dict, model_path: Path) -> dict[str, Any]:
    return found | {
        "no_face": manifest["counts"].get("no_face", 0),
        "rejected": {k: v for k, v in manifest["counts"].items() if k != "kept"},
        "dataset": manifest["dataset"],
        "model": {"file": model_path.name, "sha256": sha256(model_path)},
        "crop": manifest["crop"],
    }
