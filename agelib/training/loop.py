"""Training: shards to `runs/<name>/model.keras`, continued from the last finished epoch."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agelib import AgelibError, __version__
from agelib.backend import keras, keras_settings, tf
from agelib.config import Config, checkpoint_path
from agelib.faces.cleaning import check_splits
from agelib.faces.near_duplicates import duplicates_of_held_out
from agelib.faces.shards import FaceSet, fingerprint, read_crop
from agelib.files import read_json, write_json
from agelib.labels import AGE_BRANCHES, BRANCH_NAMES, GENDERS
from agelib.model.hardware import environment, even_share, precision, strategy
from agelib.model.network import build_model, freeze_backbone, unfreeze_backbone
from agelib.model.saved import load_model, save_model
from agelib.training.batches import ordered_batches, train_batches
from agelib.training.callbacks import (
    Checkpoint,
    Progress,
    Reseed,
    Schedule,
    averaged_weights,
    averaging,
    best_weights_path,
    write_history,
)
from agelib.training.recipe import (
    HEADS_RATE,
    calibrate,
    compile_model,
    learning_rates,
    sampling_weights,
    set_losses,
)

NOT_TRAINED_WITH = ("profile", "run", "test_sources")


@keras_settings()
def train(config: Config, on_epoch: Callable[[pd.DataFrame], None] = print) -> pd.DataFrame:
    """Trains a model, or goes on where a run that was cut off stopped, in the precision it had.

    Args:
        config: All settings; the run's folder is `config.run_folder`.
        on_epoch: Called with the history so far once an epoch is on the disk.

    Returns:
        The history: one row an epoch, losses and metrics of train and `val_`.

    Raises:
        AgelibError: If there is nothing to learn from, the run was begun with other settings, the
            memory is too small, or the loss is no longer a number.
    """
    config, folder = config.resolved, config.run_folder
    made_of = config.to_dict() | {"faces": _fingerprints(config)}
    _check_settings(config, made_of)
    done = folder / "model.keras"
    if done.exists():
        return read_history(folder)
    faces = {split: _open_faces(config, split) for split in ("train", "val")}
    faces["train"], left_out = _without_duplicates(faces["train"], faces["val"], config)
    _check_classes("gender", faces["train"].gender, GENDERS)
    _check_classes("age branch", faces["train"].age_branch, BRANCH_NAMES)
    note = _note(config, faces) | {"near_duplicates": left_out}
    with strategy().scope():
        for found in faces.values():  # before the run is noted: they may need other settings
            even_share(min(config.batch_size, len(found)))
        model, history, note["seconds"] = _begin(config)
        write_json(folder / "config.json", made_of | {"environment": note["environment"]})
        if history:
            write_history(folder, history)
        # Each finished epoch makes the history longer.
        checkpoint = Checkpoint(folder, history, note, on_epoch)
        phases = ((True, 0, config.head_epochs), (False, config.head_epochs, config.epochs))
        for heads_alone, first, last in phases:
            if first <= len(history) < last:
                if len(history) == first:
                    steps = (last - first) * _steps(faces["train"], config)
                    _begin_phase(model, config, heads_alone, steps)
                peak = config.learning_rate * (HEADS_RATE if heads_alone else 1)
                _fit(model, faces, config, len(history), (first, last), peak, checkpoint)
    if len(history) < config.epochs:
        raise AgelibError(
            f"The loss of run {config.run} is no longer a number after epoch {len(history)}: use a "
            "smaller --learning-rate and another --run name."
        )
    finished = _best_model(model, config)
    note |= {"temperatures": calibrate(finished, faces["val"])}
    made_in = note["environment"] | {"seconds": round(note["seconds"])}
    write_json(folder / "config.json", made_of | {"environment": made_in})
    save_model(finished, done, note)  # last, as a run that has it is finished
    return read_history(folder)


def _begin_phase(model: keras.Model, config: Config, heads_alone: bool, steps: int) -> None:
    if heads_alone:
        freeze_backbone(model)
    elif config.new_heads:
        if model.optimizer:  # as `fit` ends, and a checkpoint of its last epoch does not
            model.set_weights(averaged_weights(model))
        unfreeze_backbone(model)
    compile_model(model, steps)


def _steps(faces: FaceSet, config: Config) -> int:
    return len(faces) // even_share(min(config.batch_size, len(faces)))


def _fit(
    model: keras.Model,
    faces: dict[str, FaceSet],
    config: Config,
    done: int,
    phase: tuple[int, int],
    peak: float,
    checkpoint: Checkpoint,
) -> None:
    """Runs the epochs of a phase that are not done."""
    size = config.image_size
    batch_size = even_share(min(config.batch_size, len(faces["train"])))
    steps = _steps(faces["train"], config)
    weights = sampling_weights(faces["train"])
    validation = ordered_batches(faces["val"], even_share(min(batch_size, len(faces["val"]))), size)
    _make_variables(model, validation)
    progress = Progress(config.epochs, steps, done)
    try:
        model.fit(
            train_batches(faces["train"], weights, batch_size, size, config.seed, done),
            epochs=phase[1],
            initial_epoch=done,
            steps_per_epoch=steps,
            validation_data=validation,
            shuffle=False,  # the stream is shuffled already
            verbose=0,
            callbacks=[
                Reseed(config.seed),
                Schedule(learning_rates(peak, (phase[1] - phase[0]) * steps)),
                *averaging(model),
                keras.callbacks.TerminateOnNaN(),
                keras.callbacks.TensorBoard(config.logs, write_graph=False),
                progress,
                checkpoint,
            ],
        )
    except tf.errors.ResourceExhaustedError as error:
        raise AgelibError(
            f"There is too little memory to train on {batch_size} faces at a time: use a smaller "
            "--batch-size and another --run name."
        ) from error
    finally:
        progress.close()


def _make_variables(model: keras.Model, batches: tf.data.Dataset) -> None:
    """Makes the variables of optimizer, losses and metrics.

    Left to the first training step, they cost it a second tracing of its graph, half its time.
    """
    # Built again, the state of a checkpoint's would be lost.
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    images, targets = next(iter(batches.unbatch().batch(1)))
    outputs = model(images, training=False)
    model.compute_loss(images, targets, outputs)
    model.compute_metrics(images, targets, outputs)


def read_history(folder: Path) -> pd.DataFrame:
    """Returns a run's history, one row an epoch."""
    path = Path(folder) / "history.csv"
    if not path.exists():
        raise AgelibError(f"{path} is missing: run the train step (notebook 04) first.")
    return pd.read_csv(path)


def _fingerprints(config: Config) -> dict[str, str]:
    """Returns what tells the train sources' faces from those of another cleaning."""
    return {name: fingerprint(config.faces / name) for name in config.train_sources}


def _check_settings(config: Config, made_of: dict[str, Any]) -> None:
    """Makes sure that a run goes on with its own settings and faces."""
    path = config.run_folder / "config.json"
    if not path.exists():
        return
    noted = read_json(path)
    for name, value in made_of.items():
        # A run that an earlier agelib began notes fewer settings.
        if name in noted and name not in NOT_TRAINED_WITH and noted[name] != value:
            differs = f"has {name} {noted[name]}, but {value} is asked for"
            if name == "faces":
                differs = f"was trained on other faces than those in {config.faces}"
            copies = (path.parent, config.drive / "runs" / config.run)
            # Unlike Path.exists, this raises nothing if Drive cannot be read.
            places = " and ".join(str(copy) for copy in copies if os.path.exists(copy))
            raise AgelibError(
                f"Run {config.run} in {path.parent} {differs}: choose another name with --run, or "
                f"delete {places}."
            )


def _open_faces(config: Config, split: str) -> FaceSet:
    """Opens a split and makes sure that its crops fit."""
    check_splits(config.train_sources, config)
    folders = [config.faces / name for name in config.train_sources]
    for folder in folders:
        config.crop.check(read_crop(folder), folder)
    return FaceSet(folders, split)


def _without_duplicates(
    train: FaceSet, val: FaceSet, config: Config
) -> tuple[FaceSet, dict[str, int]]:
    """Leaves out train faces that nearly equal a held-out one, and counts them by data set."""
    if config.keep_near_duplicates:
        return train, {}
    tests = [FaceSet([config.faces / name], "test") for name in config.test_sources]
    duplicate = duplicates_of_held_out(train, val, *tests)
    counts = np.bincount(train.source[duplicate], minlength=len(train.sources)).tolist()
    if duplicate.all():
        raise AgelibError(
            f"All {len(train)} training faces nearly equal held-out ones: use more data."
        )
    return train.select(~duplicate), dict(zip(train.sources, counts, strict=True))


def _check_classes(label: str, codes: np.ndarray, names: Sequence[str]) -> None:
    present = np.unique(codes)
    if len(present) < 2:
        raise AgelibError(
            f"All {len(codes)} training faces are of {label} {names[present[0]]}: there is nothing "
            "to tell apart; use more data."
        )


def _begin(config: Config) -> tuple[keras.Model, list[dict], float]:
    """Returns the model to train, the epochs behind it and the seconds that they took."""
    keras.utils.set_random_seed(config.seed)
    checkpoint = checkpoint_path(config.run_folder)
    if checkpoint.exists():
        model, note = load_model(checkpoint)
        set_losses(model, model.optimizer)  # of a checkpoint of an earlier agelib, they were others
        return model, note["history"], note.get("seconds", 0.0)
    shutil.rmtree(config.logs, ignore_errors=True)  # of a run of this name that was deleted
    model = build_model(
        config.backbone,
        config.image_size,
        config.weights,
        drop_connect_rate=config.drop_connect_rate,
        precision=precision(),
    )
    return model, [], 0.0


def _best_model(model: keras.Model, config: Config) -> keras.Model:
    """Returns the best epoch's model without what only training needs, for any machine to load."""
    copy = build_model(config.backbone, config.image_size, augment=False)
    path = best_weights_path(config.run_folder)
    if not path.exists():  # the run of an earlier agelib, which kept the last epoch only
        copy.set_weights(averaged_weights(model))
        return copy
    with np.load(path, allow_pickle=False) as arrays:
        copy.set_weights([arrays[name] for name in arrays.files])
    return copy


def _note(config: Config, faces: dict[str, FaceSet]) -> dict[str, Any]:
    """Returns what a model file says about itself."""
    return {
        "agelib": __version__,
        "crop": config.crop.to_json(),
        "config": config.to_dict(),
        "faces": {split: len(found) for split, found in faces.items()},
        "environment": environment(),
        "age_branches": [list(branch) for branch in AGE_BRANCHES],
    }
