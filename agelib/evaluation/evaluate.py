"""Evaluation: a model's scores on a run's faces or on any folder of labelled images."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from agelib import AgelibError, __version__
from agelib.config import Config, Crop
from agelib.datasets.registry import find_dataset
from agelib.datasets.tables import read_folder
from agelib.evaluation.scores import breakdown, metrics
from agelib.evaluation.tables import compare_table, estimates_table
from agelib.faces.cleaning import check_splits, clean_table
from agelib.faces.near_duplicates import label_agreement, near_duplicates, thumbnails
from agelib.faces.shards import MANIFEST, FaceSet, fingerprint, read_crop, read_manifest
from agelib.files import atomic, read_json, sha256, write_csv, write_json
from agelib.model import saved
from agelib.model.inference import estimate

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras

REPORT, ESTIMATES = "evaluation.json", "estimates.csv"


def evaluate_run(config: Config) -> dict[str, Any]:
    """Evaluates a run's model on train, val and test faces.

    Writes `evaluation.json`, and `estimates.csv` with a row for each face of the first test set,
    unless they exist for this version, model and faces. Raises AgelibError if there is no model or
    no faces.

    Returns:
        The scores of the first test set, with those of its `groups`, `near_duplicates` (see
        `score_split`), `no_face` (images in which MTCNN found none), `rejected` (images left out,
        by reason), `dataset`, `model` and `crop`; the scores of each split under `splits`, of each
        test set under `tests`; `train_left_out`, by data set the train faces that were
        near-duplicates of held-out ones.
    """
    folder = config.run_folder
    manifests = {name: read_manifest(config.faces / name) for name in config.sources}
    made_of = {
        "manifests": {name: sha256(config.faces / name / MANIFEST) for name in config.sources},
        "sources": {"train": list(config.train_sources), "test": list(config.test_sources)},
        "agelib": __version__,
    }
    if done := _evaluated(folder, made_of):
        return done
    model_path = folder / "model.keras"
    model, metadata = saved.load_model(model_path)
    splits, tests, estimates = score_model(model, metadata, config)
    with atomic(folder / ESTIMATES) as partial:
        write_csv(estimates, partial)
    tests = {name: _report(each, manifests[name], model_path) for name, each in tests.items()}
    report = tests[config.test_sources[0]] | {"splits": splits, "tests": tests} | made_of
    report["train_left_out"] = metadata.get("near_duplicates", {})
    write_json(folder / REPORT, report)
    return report


def _evaluated(folder: Path, made_of: dict[str, Any]) -> dict[str, Any] | None:
    """Returns a run's report if it is of the same model, faces and version."""
    if not all((folder / name).exists() for name in (REPORT, ESTIMATES, "model.keras")):
        return None
    report = read_json(folder / REPORT)
    made_of = made_of | {"model": {"file": "model.keras", "sha256": sha256(folder / "model.keras")}}
    if {name: report.get(name) for name in made_of} != made_of:
        return None
    # A JSON file has them sorted by name.
    report["tests"] = {name: report["tests"][name] for name in report["sources"]["test"]}
    return report


def compare_with_pretrained(reports: dict[str, dict[str, Any]], config: Config) -> pd.DataFrame:
    """Returns a `compare_table` of runs and, as "agelib", of the pretrained model.

    The faces are those of the first test source. `reports` has what `evaluate_run` returns, by run.
    Raises AgelibError if the pretrained model needs other crops.
    """
    model, metadata = saved.load_model(saved.PRETRAINED)
    name = config.test_sources[0]
    folder = config.faces / name
    Crop.from_json(metadata["crop"]).check(read_crop(folder), folder, user="the pretrained model")
    faces = FaceSet([folder], "test")
    models = [*_started_from(metadata), metadata]
    scores = metrics(faces, estimate(model, faces)) | _seen(name, models, config)
    return compare_table(reports | {"agelib": scores})


def _seen(name: str, models: list[dict[str, Any]], config: Config) -> dict[str, str]:
    """Returns `also_trained_on` if some of a set's test faces may have been train faces of models.

    Then the scores are too good. The models are given by their metadata.
    """
    if "test" in read_manifest(config.faces / name)["official"]:
        return {}
    people = {name, *find_dataset(name).same_people}
    for learned in (each["config"] for each in models):
        held_out = (
            name in learned.get("test_sources", ())
            and name in config.train_sources
            and learned["val_fraction"] == config.val_fraction
        )
        if people & set(learned["train_sources"]) and not held_out:
            return {"also_trained_on": name}
    return {}


def _started_from(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return saved.earlier_runs(metadata)
    except AgelibError:  # a model can be tested where the one that it began with is not
        return []


def score_model(
    model: "keras.Model", metadata: dict[str, Any], config: Config
) -> tuple[dict[str, dict], dict[str, dict], pd.DataFrame]:
    """Scores a model on a run's train and val faces of all sets, and on the test faces of each.

    Returns split -> scores, test set -> scores, and the `estimates_table` of the first test set,
    whose scores are those of the split "test". A test set's scores have `also_trained_on`, its
    name, if training began with a model that may have seen some of its faces. Raises AgelibError if
    there are no faces, or the model was trained on others or needs other crops.
    """
    _check_trained_on(config)
    check_splits(config.train_sources, config)
    crop = Crop.from_json(metadata["crop"])
    for folder in (config.faces / name for name in config.sources):
        crop.check(read_crop(folder), folder, user=f"the model of run {config.run}")
    splits, tests, estimates, before = {}, {}, None, _started_from(metadata)
    for split in ("train", "val"):
        faces = FaceSet([config.faces / name for name in config.train_sources], split)
        splits[split] = score_split(faces, estimate(model, faces))
    for name in config.test_sources:
        faces = FaceSet([config.faces / name], "test")
        outputs = estimate(model, faces)
        tests[name] = score_split(faces, outputs) | _seen(name, before, config)
        if estimates is None:
            estimates = estimates_table(faces, outputs)
    splits["test"] = tests[config.test_sources[0]]
    return splits, tests, estimates


def score_split(faces: FaceSet, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the `metrics` of faces, and under `groups` their `breakdown`.

    For test faces also the `label_agreement` of `near_duplicates`: no score on these faces can mean
    more than their labels do.
    """
    scores = metrics(faces, outputs) | {"groups": breakdown(faces, outputs)}
    if faces.split == "test":
        pairs = near_duplicates(thumbnails(faces))
        scores["near_duplicates"] = label_agreement(faces, pairs)
    return scores


def _check_trained_on(config: Config) -> None:
    """Makes sure that the held-out faces are not among those that the model was trained on."""
    path = config.run_folder / "config.json"
    here = {name: fingerprint(config.faces / name) for name in config.train_sources}
    # Without that file the model was not trained here.
    if path.exists() and read_json(path)["faces"] != here:
        raise AgelibError(
            f"Run {config.run} was trained on other faces than {' and '.join(here)} in "
            f"{config.faces}: give the --train-sources of its train command, or train again with "
            "another --run name."
        )


def evaluate_folder(images: Path, model_path: Path, config: Config) -> dict[str, Any]:
    """Evaluates a model on any folder of images with a `labels.csv`, or with UTKFace's names.

    The faces are found and cropped as the model needs them. Returns what `evaluate_run` does of one
    test set. Raises AgelibError if there is no model, or no image has labels and a face.
    """
    model, metadata = saved.load_model(model_path)
    config = dataclasses.replace(config, **Crop.from_json(metadata["crop"]).to_json())
    images = Path(images).absolute()
    if not images.is_dir():
        raise AgelibError(f"{images} is no folder: name one with images.")
    table = read_folder(images)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = clean_table(table, images, Path(scratch), images.name, config)
        if not manifest["counts"]["kept"]:
            raise AgelibError(f"{images} has no image with a usable face.")
        return _report(_score_folder(model, Path(scratch)), manifest, model_path)


def _score_folder(model: "keras.Model", folder: Path) -> dict[str, Any]:
    # In a function of its own: Windows deletes no file that is still mapped into memory.
    faces = FaceSet([folder], "test")
    return score_split(faces, estimate(model, faces))


def _report(found: dict, manifest: dict, model_path: Path) -> dict[str, Any]:
    return found | {
        "no_face": manifest["counts"].get("no_face", 0),
        "rejected": {k: v for k, v in manifest["counts"].items() if k != "kept"},
        "dataset": manifest["dataset"],
        "model": {"file": model_path.name, "sha256": sha256(model_path)},
        "crop": manifest["crop"],
    }
