"""Training: shards to `runs/<name>/model.keras`, continued from the last finished epoch."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agelib import AgelibError, __version__
from agelib.backend import keras, keras_settings, tf
from agelib.config import Config, Crop, checkpoint_path
from agelib.faces.cleaning import check_splits
from agelib.faces.near_duplicates import duplicates_of_held_out
from agelib.faces.shards import FaceSet, fingerprint, read_crop
from agelib.files import read_json, write_json
from agelib.labels import AGE_BRANCHES, BRANCH_NAMES, GENDERS
from agelib.model.hardware import environment, even_share, precision, strategy
from agelib.model.network import backbone_of, build_model
from agelib.model.saved import earlier_runs, load_model, model_path, read_metadata, save_model
from agelib.training import callbacks, recipe
from agelib.training.batches import ordered_batches, train_batches

Faces = dict[str, FaceSet]  # by split, "train" and "val"


@keras_settings()
def train(config: Config, on_epoch: Callable[[pd.DataFrame], None]) -> pd.DataFrame:
    """Trains a model, or continues a run that was cut off, in the precision that it had.

    Returns the history: one row an epoch, losses and metrics of train and `val_`; `on_epoch` gets
    it after each epoch that is saved. Raises AgelibError if the faces have one class only, the run
    was started with other settings, the memory is too small, or the loss is no longer a number.
    """
    config, folder = config.resolved, config.run_folder
    prints = {name: fingerprint(config.faces / name) for name in config.train_sources}
    settings = config.to_dict() | {"faces": prints}
    _check_settings(config, settings)
    if (folder / "model.keras").exists():
        return read_history(folder)
    _check_teachers(config)
    faces, left_out = _open_faces(config)
    metadata = _metadata(config, faces, left_out)
    with strategy().scope():
        for part in faces.values():  # before config.json exists: they may need other settings
            _batch_size(part, config)
        model, done = _start_or_resume(config)
        history = done.pop("history")
        metadata |= done
        write_json(folder / "config.json", settings | {"environment": metadata["environment"]})
        if history:
            callbacks.write_history(folder, history)
        # Each finished epoch is appended to the history.
        checkpoint = callbacks.Checkpoint(folder, history, metadata, on_epoch)
        _train_phases(model, faces, config, checkpoint)
    if len(history) < config.epochs:
        raise AgelibError(
            f"The loss of run {config.run} is no longer a number after epoch {len(history)}: use a "
            "smaller --learning-rate and another --run name."
        )
    best = _best_model(model, config)
    metadata["temperatures"] = recipe.calibrate(best, faces["val"])
    made_in = metadata["environment"] | {"seconds": round(metadata["seconds"])}
    write_json(folder / "config.json", settings | {"environment": made_in})
    save_model(best, folder / "model.keras", metadata)  # last: a run that has it is finished
    return read_history(folder)


def _train_phases(
    model: keras.Model, faces: Faces, config: Config, checkpoint: callbacks.Checkpoint
) -> None:
    """Trains the new heads on frozen features, then everything; a phase that is done is skipped."""
    phases = ((True, 0, config.head_epochs), (False, config.head_epochs, config.epochs))
    for heads_only, first, last in phases:
        done = len(checkpoint.history)
        if not first <= done < last:
            continue
        steps = (last - first) * (len(faces["train"]) // _batch_size(faces["train"], config))
        if done == first:
            _start_phase(model, config, heads_only, steps)
        peak = config.learning_rate * (recipe.HEADS_RATE if heads_only else 1)
        schedule = callbacks.scheduling(model, recipe.learning_rates(peak, steps))
        _fit(model, faces, config, (done, last), [schedule, checkpoint])


def _start_phase(model: keras.Model, config: Config, heads_only: bool, steps: int) -> None:
    if heads_only:
        backbone_of(model).trainable = False
    elif config.new_heads:
        if model.optimizer:  # `fit` leaves the averaged weights, a checkpoint the others
            model.set_weights(callbacks.averaged_weights(model))
        backbone_of(model).trainable = True
    recipe.compile_model(model, steps)


def _batch_size(faces: FaceSet, config: Config) -> int:
    return even_share(min(config.batch_size, len(faces)))


def _fit(
    model: keras.Model, faces: Faces, config: Config, epochs: tuple[int, int], calls: list
) -> None:
    train, val, size = faces["train"], faces["val"], config.image_size
    batch_size = _batch_size(train, config)
    steps = len(train) // batch_size
    weights = recipe.sampling_weights(train)
    validation = ordered_batches(val, _batch_size(val, config), size)
    _make_variables(model, validation)
    progress = callbacks.Progress(config.epochs, steps, epochs[0])
    try:
        model.fit(
            train_batches(train, weights, batch_size, size, config.seed, epochs[0]),
            initial_epoch=epochs[0],
            epochs=epochs[1],
            steps_per_epoch=steps,
            validation_data=validation,
            shuffle=False,  # the stream is shuffled already
            verbose=0,
            callbacks=[
                callbacks.reseeding(model, config.seed),
                *callbacks.averaging(model),  # before the checkpoint
                keras.callbacks.TerminateOnNaN(),
                keras.callbacks.TensorBoard(config.logs, write_graph=False),
                progress,
                *calls,
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

    The first training step would make them too, and then trace its graph twice.
    """
    # To build a checkpoint's optimizer again would reset its state.
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
        raise AgelibError(f"{path} is missing: run the train step (notebook 04 or 07) first.")
    history = pd.read_csv(path)
    # Earlier versions kept the last epoch, and some marked none.
    if "best" not in history or not history["best"].any():
        history["best"] = history.index == history.index[-1]
    return history


def _check_settings(config: Config, settings: dict[str, Any]) -> None:
    """Makes sure that a run continues with its own settings and faces."""
    path = config.run_folder / "config.json"
    if not path.exists():
        return
    # The runs of earlier versions have fewer settings, and no teachers.
    stored, unrelated = {"teachers": []} | read_json(path), config.unrelated_to_training
    if (config.run_folder / "model.keras").exists():
        unrelated += ("test_sources",)
    for name, value in settings.items():
        if name in unrelated or stored.get(name, value) == value:
            continue
        differs = f"has {name} {stored[name]}, but {value} is asked for"
        if name == "faces":
            differs = f"was trained on other faces than those in {config.faces}"
        copies = (str(path.parent), str(config.drive / "runs" / config.run))
        # Unlike Path.exists, this raises nothing if Drive cannot be read.
        places = " and ".join(filter(os.path.exists, copies))
        raise AgelibError(
            f"Run {config.run} in {path.parent} {differs}: choose another name with --run, or "
            f"delete {places}."
        )


def _open_faces(config: Config) -> tuple[Faces, dict[str, int]]:
    """Opens the train and val faces, and makes sure that a model can learn from them.

    Train faces that are near-duplicates of held-out ones are left out, and counted by data set.
    """
    check_splits(config.train_sources, config)
    folders = [config.faces / name for name in config.train_sources]
    for folder in folders:
        config.crop.check(read_crop(folder), folder)
    train, val = FaceSet(folders, "train"), FaceSet(folders, "val")
    left_out = {}
    if not config.keep_near_duplicates:
        tests = [FaceSet([config.faces / name], "test") for name in config.test_sources]
        duplicate = duplicates_of_held_out(train, val, *tests)
        counts = np.bincount(train.source[duplicate], minlength=len(train.sources)).tolist()
        left_out = dict(zip(train.sources, counts, strict=True))
        if duplicate.all():
            raise AgelibError(
                f"All {len(train)} training faces nearly equal held-out ones: use more data."
            )
        train = train.select(~duplicate)
    _check_classes("gender", train.gender, GENDERS)
    _check_classes("age branch", train.age_branch, BRANCH_NAMES)
    return {"train": train, "val": val}, left_out


def _check_teachers(config: Config) -> None:
    for name in config.teachers:
        stored = Crop.from_json(read_metadata(model_path(name))["crop"])
        if dataclasses.replace(stored, size=config.crop_size) != config.crop:
            raise AgelibError(
                f"The teacher {name} knows crops of {stored}, but this run has {config.crop}: give "
                "the teacher's --margin and --align, or name another teacher."
            )


def _check_classes(label: str, codes: np.ndarray, names: Sequence[str]) -> None:
    present = np.unique(codes)
    if len(present) < 2:
        raise AgelibError(
            f"All {len(codes)} training faces are of {label} {names[present[0]]}: there is nothing "
            "to tell apart; use more data."
        )


def _start_or_resume(config: Config) -> tuple[keras.Model, dict[str, Any]]:
    """Returns the model to train, and what its metadata say of the epochs that are done.

    That is `history`, `seconds` and, but for the checkpoints of earlier versions, `before`.
    """
    keras.utils.set_random_seed(config.seed)
    checkpoint = checkpoint_path(config.run_folder)
    if checkpoint.exists():
        model, metadata = load_model(checkpoint)
        recipe.set_losses(model, model.optimizer)  # the checkpoints of earlier versions have others
        done = {name: metadata[name] for name in ("history", "before") if name in metadata}
        return model, done | {"seconds": metadata.get("seconds", 0.0)}
    shutil.rmtree(config.logs, ignore_errors=True)  # of a deleted run of the same name
    model = build_model(
        config.backbone,
        config.image_size,
        config.weights,
        drop_connect_rate=config.drop_connect_rate,
        precision=precision(),
        teachers=config.teachers,
    )
    before = earlier_runs({"config": config.to_dict()})
    return model, {"history": [], "seconds": 0.0, "before": before}


def _best_model(model: keras.Model, config: Config) -> keras.Model:
    """Returns the best epoch's model without the layers that only training needs."""
    best = build_model(config.backbone, config.image_size, augment=False)
    path = callbacks.best_weights_path(config.run_folder)
    if not path.exists():  # an earlier version kept the last epoch only
        best.set_weights(callbacks.averaged_weights(model))
        return best
    with np.load(path, allow_pickle=False) as arrays:
        best.set_weights([arrays[name] for name in arrays.files])
    return best


def _metadata(config: Config, faces: Faces, left_out: dict[str, int]) -> dict[str, Any]:
    return {
        "agelib": __version__,
        "crop": config.crop.to_json(),
        "config": config.to_dict(),
        "faces": {split: len(part) for split, part in faces.items()},
        "near_duplicates": left_out,
        "environment": environment(),
        "age_branches": [list(branch) for branch in AGE_BRANCHES],
    }
