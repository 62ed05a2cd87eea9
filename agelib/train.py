"""Training: shards to `runs/<name>/model.keras`, continued from the last finished epoch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agelib import AgelibError, __version__, drive
from agelib.backend import keras, tf
from agelib.callbacks import (
    Checkpoint,
    Progress,
    Reseed,
    Schedule,
    checkpoint_path,
    write_history,
)
from agelib.config import Config
from agelib.files import read_json, write_json
from agelib.labels import BRANCH_NAMES, GENDERS, MAX_AGE, MIN_AGE
from agelib.model import build_model, load_model, save_model
from agelib.pipeline import ordered_batches, train_batches
from agelib.shards import FaceSet, fingerprint, read_manifest

_WARM_UP_SHARE = 0.1
_WEIGHT_DECAY = 1e-3


def train(
    config: Config, remote: Path | None = None, on_epoch: Callable[[pd.DataFrame], None] = print
) -> pd.DataFrame:
    """Trains a model, or goes on where a run that was cut off stopped.

    Args:
        config: All settings; the run's folder is `config.run_folder`.
        remote: The run's folder on Drive; each finished epoch is pushed there.
        on_epoch: Called after each epoch with the history so far.

    Returns:
        The history: one row an epoch, losses and metrics of train and `val_`.

    Raises:
        AgelibError: If there is nothing to learn from, the run was begun with other settings, or
            the loss is no longer a number.
    """
    folder = config.run_folder
    made_of = config.to_dict() | {"faces": _fingerprints(config)}
    _check_settings(config, made_of, remote)
    done = folder / "model.keras"
    if done.exists():
        return read_history(folder)
    faces = {split: _open_faces(config, split) for split in ("train", "val")}
    batch_size = min(config.batch_size, len(faces["train"]))
    steps = len(faces["train"]) // batch_size
    model, history = _begin(config)
    write_json(folder / "config.json", made_of)
    if history:
        write_history(folder, history)
    note = _note(config, faces)
    checkpoint = Checkpoint(folder, history, note, remote, on_epoch)
    _fit(model, faces, config, batch_size, steps, len(history), checkpoint)
    if len(history) < config.epochs:
        raise AgelibError(
            f"The loss of run {config.run} is no longer a number after epoch {len(history)}: use a "
            "smaller --learning-rate and another --run name."
        )
    # Without optimizer and losses, the file needs nothing of ours to load.
    save_model(keras.Model(model.input, model.output, name="agelib"), done, note)
    if remote:
        drive.push(folder, remote)
    return read_history(folder)


def _fit(
    model: keras.Model,
    faces: dict[str, FaceSet],
    config: Config,
    batch_size: int,
    steps: int,
    first_epoch: int,
    checkpoint: Checkpoint,
) -> None:
    """Runs the epochs that are left."""
    size = config.image_size
    validation = ordered_batches(faces["val"], batch_size, size)
    _make_variables(model, validation)
    model.fit(
        train_batches(faces["train"], batch_size, size, config.seed, first_epoch),
        epochs=config.epochs,
        initial_epoch=first_epoch,
        steps_per_epoch=steps,
        validation_data=validation,
        shuffle=False,  # the stream is shuffled already
        verbose=0,
        callbacks=[
            Reseed(config.seed),
            Schedule(learning_rates(config.learning_rate, config.epochs * steps)),
            keras.callbacks.TerminateOnNaN(),
            Progress(config.epochs, steps),
            checkpoint,
        ],
    )


def _make_variables(model: keras.Model, batches: tf.data.Dataset) -> None:
    """Makes the variables of optimizer, losses and metrics.

    Left to the first training step, they cost it a second tracing of its graph, half its time.
    """
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


def learning_rates(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns step -> learning rate: it warms up to its peak, then falls to 0 along a cosine.

    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    Args:
        peak: The highest rate.
        steps: Training steps in all.
    """
    warm_up = max(1, round(_WARM_UP_SHARE * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=peak, warmup_steps=warm_up
    )


def compile_model(model: keras.Model) -> None:
    """Sets losses, metrics and the optimizer.

    The age is learned twice: as a distribution over the years, which knows that 38 is nearly 39,
    and by the probability of the right branch, which is what the results table counts.

    Args:
        model: From `build_model`.
    """
    model.compile(
        keras.optimizers.AdamW(weight_decay=_WEIGHT_DECAY),
        loss={
            "age": "categorical_crossentropy",
            "age_branch": "sparse_categorical_crossentropy",
            "gender": "sparse_categorical_crossentropy",
        },
        metrics={"age": [YearsOff()], "age_branch": ["accuracy"], "gender": ["accuracy"]},
    )


@keras.saving.register_keras_serializable("agelib")
class YearsOff(keras.metrics.MeanMetricWrapper):
    """Mean absolute difference, in years, between the means of two age distributions."""

    def __init__(self, name: str = "mae", dtype: str | None = None):
        super().__init__(_years_off, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras needs to make the metric again."""
        return {"name": self.name, "dtype": self.dtype}


def _years_off(true: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    years = tf.range(MIN_AGE, MAX_AGE + 1, dtype=tf.float32)
    difference = tf.cast(true, tf.float32) - tf.cast(predicted, tf.float32)
    return tf.abs(tf.reduce_sum(difference * years, axis=-1))


def _fingerprints(config: Config) -> dict[str, str]:
    """Returns what tells the train sources' faces from those of another cleaning."""
    return {name: fingerprint(config.faces / name) for name in config.train_sources}


def _check_settings(config: Config, made_of: dict[str, Any], remote: Path | None) -> None:
    """Makes sure that a run goes on with its own settings and faces."""
    path = config.run_folder / "config.json"
    if not path.exists():
        return
    noted = read_json(path)
    for name, value in made_of.items():
        if noted.get(name) != value:
            differs = f"has {name} {noted.get(name)}, but {value} is asked for"
            if name == "faces":
                differs = f"was trained on other faces than those in {config.faces}"
            places = " and ".join(str(p) for p in (path.parent, remote) if p and p.exists())
            raise AgelibError(
                f"Run {config.run} in {path.parent} {differs}: choose another name with --run, or "
                f"delete {places}."
            )


def _open_faces(config: Config, split: str) -> FaceSet:
    """Opens a split and makes sure that its crops fit and that there is something to tell apart."""
    folders = [config.faces / name for name in config.train_sources]
    for folder in folders:
        if (crop := read_manifest(folder)["crop"]) != config.crop:
            raise AgelibError(
                f"{folder} holds crops of {crop}, but {config.crop} is asked for: train with those "
                "settings, or clean again with these."
            )
    faces = FaceSet(folders, split)
    if split == "train":
        _check_classes("gender", faces.gender, GENDERS)
        _check_classes("age branch", faces.age_branch, BRANCH_NAMES)
    return faces


def _check_classes(label: str, codes: np.ndarray, names: Sequence[str]) -> None:
    present = np.unique(codes)
    if len(present) < 2:
        raise AgelibError(
            f"All {len(codes)} training faces are of {label} {names[present[0]]}: there is nothing "
            "to tell apart; use more data."
        )


def _begin(config: Config) -> tuple[keras.Model, list[dict]]:
    """Returns the model to train and the epochs behind it: those of the checkpoint, or none."""
    keras.utils.set_random_seed(config.seed)
    checkpoint = checkpoint_path(config.run_folder)
    if checkpoint.exists():
        model, note = load_model(checkpoint)
        return model, note["history"]
    model = build_model(
        config.backbone,
        config.image_size,
        config.weights,
        drop_connect_rate=config.drop_connect_rate,
    )
    compile_model(model)
    return model, []


def _note(config: Config, faces: dict[str, FaceSet]) -> dict[str, Any]:
    """Returns what a model file says about itself."""
    return {
        "agelib": __version__,
        "crop": config.crop,
        "config": config.to_dict(),
        "faces": {split: len(found) for split, found in faces.items()},
    }
