"""Evaluation: what a model gets right, on faces it has not been trained on."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score
from tqdm import tqdm

from agelib import AgelibError, __version__
from agelib.bootstrap import score_intervals
from agelib.config import Config
from agelib.faces import resize
from agelib.files import read_json, sha256, write_json
from agelib.labels import BRANCH_NAMES, GENDERS, MAX_AGE, MIN_AGE, read_utkface
from agelib.shards import MANIFEST, FaceSet, read_manifest

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras

_AGES = np.arange(MIN_AGE, MAX_AGE + 1)


def mean_age(age: np.ndarray) -> np.ndarray:
    """Returns the estimated age: the mean of the distribution over 1 to 85.

    Args:
        age: Probabilities of shape (n, 85).

    Returns:
        Years, float of shape (n,).
    """
    return age @ _AGES


def metrics(faces: FaceSet, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compares a model's probabilities with the labels.

    Args:
        faces: Anything with `age`, `age_branch`, `gender` and `person`, each of shape (n,).
        outputs: `age` (n, 85), `age_branch` (n, 5) and `gender` (n, 2).

    Returns:
        JSON types: `n`, accuracy, balanced accuracy (mean recall of the classes that occur),
        recall (None for a class that does not occur) and confusion (rows are true) of both heads,
        `age_mae` in years, what always answering the commonest class would score, and under
        `intervals` the 95 % intervals of `agelib.bootstrap`.
    """
    heads = {
        "age_branch": (faces.age_branch, outputs["age_branch"].argmax(axis=1), len(BRANCH_NAMES)),
        "gender": (faces.gender, outputs["gender"].argmax(axis=1), len(GENDERS)),
    }
    years_off = np.abs(mean_age(outputs["age"]) - faces.age)
    scores: dict[str, Any] = {"n": len(faces.age), "age_mae": float(years_off.mean())}
    for head, codes in heads.items():
        scores |= _classification(head, *codes)
    return scores | {"intervals": score_intervals(faces.person, years_off, heads)}


def _classification(head: str, true: np.ndarray, said: np.ndarray, count: int) -> dict[str, Any]:
    classes = np.arange(count)
    recall = recall_score(true, said, labels=classes, average=None, zero_division=np.nan)
    occurs = np.bincount(true, minlength=count)
    recall = [float(value) if n else None for value, n in zip(recall, occurs, strict=True)]
    present = [value for value in recall if value is not None]
    return {
        f"{head}_accuracy": float(accuracy_score(true, said)),
        f"{head}_balanced_accuracy": float(np.mean(present)),
        f"{head}_recall": recall,
        f"{head}_confusion": confusion_matrix(true, said, labels=classes).tolist(),
        f"{head}_commonest_accuracy": float(occurs.max() / len(true)),
        f"{head}_commonest_balanced_accuracy": 1 / len(present),
    }


def estimate(model: "keras.Model", faces: FaceSet, batch_size: int = 256) -> dict[str, np.ndarray]:
    """Runs a model on all faces of a set.

    Args:
        model: From `agelib.model`.
        faces: Crops; they are resized to what the model sees.
        batch_size: Faces at a time.

    Returns:
        The model's outputs by name, each of shape (n, ...).
    """
    size = model.input_shape[1:3]
    steps = -(-len(faces) // batch_size)
    batches = tqdm(faces.batches(batch_size), f"evaluate {faces.split}", steps, unit=" batches")
    outputs = [
        probabilities(model, np.stack([resize(image, size) for image in batch]))
        for batch in batches
    ]
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}


def probabilities(model: "keras.Model", crops: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a model says of face crops: the mean over each crop and its mirror image.

    Args:
        model: From `agelib.model`.
        crops: RGB uint8 of shape (n, size, size, 3), of the model's size.

    Returns:
        `age` (n, 85), `age_branch` (n, 5) and `gender` (n, 2).
    """
    seen, mirrored = (model.predict_on_batch(images) for images in (crops, crops[:, :, ::-1]))
    return {name: (seen[name] + mirrored[name]) / 2 for name in seen}


def evaluate_run(config: Config) -> dict[str, Any]:
    """Evaluates a run's model on train, val and test faces, and writes `evaluation.json`.

    Done already by this version for this model and these faces, it is not done again.

    Args:
        config: Says which run, and where its faces are.

    Returns:
        The metrics of the test faces, with `no_face` (images in which MTCNN found none),
        `rejected` (images left out, by reason), `dataset`, `model` and `crop`; those of the
        other splits under `splits`.

    Raises:
        AgelibError: If there is no model or no faces.
    """
    # Imported here: it loads TensorFlow, which the metrics do without.
    from agelib.model import load_model

    model_path, path = config.run_folder / "model.keras", config.run_folder / "evaluation.json"
    for name in config.sources:
        read_manifest(config.faces / name)  # says what to do where there is none
    manifests = {name: sha256(config.faces / name / MANIFEST) for name in config.sources}
    done = read_json(path) if path.exists() and model_path.exists() else {}
    same = done.get("agelib") == __version__ and done["manifests"] == manifests
    if same and done["model"]["sha256"] == sha256(model_path):
        return done
    model, note = load_model(model_path)
    splits = evaluate_splits(model, note, config)
    report = _report(splits["test"], read_manifest(config.faces / config.test_source), model_path)
    report |= {"splits": splits, "manifests": manifests, "agelib": __version__}
    write_json(path, report)
    return report


def evaluate_splits(
    model: "keras.Model", note: dict[str, Any], config: Config
) -> dict[str, dict[str, Any]]:
    """Returns the metrics of "train", "val" and "test" faces.

    Args:
        model: The model.
        note: What its file says of it.
        config: Says where the faces are.

    Raises:
        AgelibError: If there are no faces, or they were cropped otherwise than the model's.
    """
    for name in config.sources:
        if (crop := read_manifest(config.faces / name)["crop"]) != note["crop"]:
            raise AgelibError(
                f"{config.faces / name} holds crops of {crop}, but the model of run {config.run} "
                f"was made for {note['crop']}: clean again with those settings."
            )
    train, test = config.train_sources, (config.test_source,)
    splits = {}
    for split, names in (("train", train), ("val", train), ("test", test)):
        faces = FaceSet([config.faces / name for name in names], split)
        splits[split] = metrics(faces, estimate(model, faces))
    return splits


def evaluate_folder(
    images: Path, model: "keras.Model", model_path: Path, config: Config
) -> dict[str, Any]:
    """Evaluates a model on any folder of images named as UTKFace names them.

    They are detected and cropped exactly as in cleaning.

    Args:
        images: The folder.
        model: The model.
        model_path: Where it was loaded from.
        config: Crop settings: those of the model.

    Returns:
        As `evaluate_run`, without `splits`.

    Raises:
        AgelibError: If no image has a valid name and a face.
    """
    from agelib.clean import clean_table  # here for the same reason

    if not Path(images).is_dir():
        raise AgelibError(f"{images} is no folder: name one with images.")
    table = read_utkface(images).assign(split="test")
    if not (table["reject"] == "").any():
        raise AgelibError(f"{images} holds no image named age_gender_race_date.jpg.")
    with tempfile.TemporaryDirectory() as scratch:
        manifest = clean_table(table, images, Path(scratch), Path(images).name, config)
        if not manifest["counts"]["kept"]:
            raise AgelibError(f"{images} has no image with a usable face.")
        faces = FaceSet([Path(scratch)], "test")
        return _report(metrics(faces, estimate(model, faces)), manifest, model_path)


def _report(scores: dict, manifest: dict, model_path: Path) -> dict[str, Any]:
    return scores | {
        "no_face": manifest["counts"].get("no_face", 0),
        "rejected": {k: v for k, v in manifest["counts"].items() if k != "kept"},
        "dataset": manifest["dataset"],
        "model": {"file": model_path.name, "sha256": sha256(model_path)},
        "crop": manifest["crop"],
    }
