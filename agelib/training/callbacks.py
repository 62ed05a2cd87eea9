"""What happens around each step and epoch: seeds, learning rate, progress bar, checkpoint."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from agelib.backend import keras, tf
from agelib.config import checkpoint_path
from agelib.files import atomic
from agelib.model.saved import save_model


def best_weights_path(folder: Path) -> Path:
    """Returns where a run keeps the weights of its best epoch so far."""
    return folder / "checkpoints" / "best.npz"


def write_history(folder: Path, history: list[dict]) -> pd.DataFrame:
    """Writes a run's history, one row an epoch, to history.csv and returns it.

    The column `best` marks the epoch whose model is the run's: the one with the lowest validation
    loss or, in a run that an earlier version started, the last.
    """
    table = pd.DataFrame(history)
    has_best = best_weights_path(folder).exists()
    best = table["val_loss"].idxmin() if has_best else table.index[-1]
    table["best"] = table.index == best
    with atomic(folder / "history.csv") as partial:
        table.to_csv(partial, index=False)
    return table


class Progress(keras.callbacks.Callback):
    """Shows a bar from the first epoch to the last on standard error, with the time left."""

    def __init__(self, epochs: int, steps_per_epoch: int, done: int):
        super().__init__()
        device = tf.config.list_logical_devices()[-1].device_type  # the fastest one is last
        total, initial = epochs * steps_per_epoch, done * steps_per_epoch
        self._bar = tqdm(total=total, initial=initial, desc=f"train on {device}", unit=" steps")
        self._epochs, self._compiled = epochs, False

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Moves the bar; the first step includes compiling and would spoil the time estimate."""
        self._bar.update(1)
        if not self._compiled:
            self._bar.unpause()
        self._compiled = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows the epoch's loss."""
        self._bar.set_postfix_str(f"epoch {epoch + 1}/{self._epochs}, loss {logs['loss']:.3f}")

    def close(self) -> None:
        """Closes the bar."""
        self._bar.close()


class Checkpoint(keras.callbacks.Callback):
    """Saves each finished epoch in the run's folder, and the averaged weights of the best one.

    Args:
        folder: The run's.
        history: A row for each finished epoch; new ones are appended.
        metadata: What the checkpoint says about itself; the `seconds` of each epoch are added.
        on_epoch: Called with the history after each epoch is saved.
    """

    def __init__(
        self, folder: Path, history: list, metadata: dict, on_epoch: Callable[[pd.DataFrame], None]
    ):
        super().__init__()
        self.history, self._folder, self._metadata = history, folder, metadata
        self._on_epoch = on_epoch

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes the files and tells the caller."""
        values = {name: float(value) for name, value in logs.items()}
        if not all(map(math.isfinite, values.values())):
            self.model.stop_training = True
            return
        best = best_weights_path(self._folder)
        before = [row["val_loss"] for row in self.history]
        # Epochs without a best one are of an earlier version, whose losses were others.
        if not before or (best.exists() and values["val_loss"] < min(before)):
            with atomic(best) as partial, open(partial, "wb") as file:
                np.savez(file, *averaged_weights(self.model))
        self.history.append({"epoch": epoch + 1, **values})
        self._metadata["seconds"] += time.monotonic() - self._began
        metadata = self._metadata | {"history": self.history}
        save_model(self.model, checkpoint_path(self._folder), metadata)
        self._on_epoch(write_history(self._folder, self.history))


def reseeding(model: keras.Model, seed: int) -> keras.callbacks.Callback:
    """Returns the callback that gives every random layer a seed of its own for each epoch.

    Keras does not save the state of random layers. A seed that depends on run and epoch makes an
    epoch the same in a run that was cut off before it.
    """

    def set_seeds(epoch: int, logs: dict | None) -> None:
        states = [v for v in model.variables if v.name == "seed_generator_state"]
        for i, state in enumerate(states):
            seeds = np.random.SeedSequence([seed, epoch, i]).generate_state(2)
            state.assign(seeds.astype(state.dtype))

    return keras.callbacks.LambdaCallback(on_epoch_begin=set_seeds)


def scheduling(
    model: keras.Model, rates: keras.optimizers.schedules.LearningRateSchedule
) -> keras.callbacks.Callback:
    """Returns the callback that sets the learning rate before each step.

    The optimizer would put the schedule into the graph once for each weight, which delays the first
    step by half a minute.
    """

    def set_rate(batch: int, logs: dict | None) -> None:
        model.optimizer.learning_rate = float(rates(model.optimizer.iterations))

    return keras.callbacks.LambdaCallback(on_train_batch_begin=set_rate)


def averaging(model: keras.Model) -> list[keras.callbacks.Callback]:
    """Returns the callback that validates with averaged weights, if the optimizer has them."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return [keras.callbacks.SwapEMAWeights()] if optimizer.use_ema else []


def averaged_weights(model: keras.Model) -> list[np.ndarray]:
    """Returns a model's weights as its optimizer averages them, if it does."""
    swaps = averaging(model)
    for swap in swaps:
        swap.set_model(model)
        swap.on_test_begin()
    weights = model.get_weights()
    for swap in swaps:
        swap.on_test_end()
    return weights
