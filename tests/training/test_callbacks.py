import functools

import numpy as np
import pandas as pd
import pytest
from conftest import equal_weights
from tqdm import tqdm

from agelib.backend import keras
from agelib.config import checkpoint_path
from agelib.model.network import build_model
from agelib.model.saved import load_model
from agelib.training import callbacks
from agelib.training.callbacks import (
    Checkpoint,
    Progress,
    averaged_weights,
    averaging,
    best_weights_path,
    reseeding,
)
from agelib.training.recipe import compile_model


@pytest.fixture
def model(tiny_networks):
    keras.utils.set_random_seed(0)
    model = tiny_networks("EfficientNetB0", 32)
    compile_model(model, steps=2000)
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture
def checkpoint(model, tmp_path):
    """Makes a callback, and remembers the histories that the caller is told."""

    def make(history=()):
        told = []
        callback = Checkpoint(
            tmp_path / "run", list(history), {"a": 1, "seconds": 7.0}, told.append
        )
        callback.set_model(model)
        return callback, told

    return make


def random_outputs(model, seed, epoch):
    reseeding(model, seed).on_epoch_begin(epoch, None)
    images = np.linspace(0, 255, 4 * 32 * 32 * 3, dtype=np.float32).reshape(4, 32, 32, 3)
    return np.asarray(model(images, training=True)["age"]), random_states(model)


def random_states(model):
    states = [v for v in model.variables if v.name == "seed_generator_state"]
    return [np.asarray(state).tolist() for state in states]


# Seeds


def test_an_epoch_has_the_same_randomness_whatever_came_before(model):
    weights = model.get_weights()
    expected, _ = random_outputs(model, 1, 5)
    random_outputs(model, 1, 6)
    random_outputs(model, 1, 6)
    model.set_weights(weights)
    found, _ = random_outputs(model, 1, 5)
    np.testing.assert_array_equal(found, expected)


def test_epochs_and_runs_differ_in_their_randomness(model):
    outputs = {}
    for seed, epoch in ((1, 5), (1, 6), (2, 5)):
        weights = model.get_weights()
        outputs[seed, epoch], _ = random_outputs(model, seed, epoch)
        model.set_weights(weights)
    assert np.abs(outputs[1, 5] - outputs[1, 6]).max() > 1e-4
    assert np.abs(outputs[1, 5] - outputs[2, 5]).max() > 1e-4


def test_every_random_layer_gets_another_seed(model):
    reseeding(model, 0).on_epoch_begin(0, None)
    states = random_states(model)
    assert len(states) > 2
    assert len(set(map(tuple, states))) == len(states)


def test_the_real_network_has_its_random_layers_within_reach():
    network = build_model("EfficientNetB0", 32)
    random_layers = [
        layer
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.Dropout) or type(layer).__name__.startswith("Random")
    ]
    assert len(random_layers) > 10
    assert len(random_states(network)) == len(random_layers)


# Checkpoints


def finish(callback, epoch, val_loss):
    callback.on_epoch_begin(epoch)
    callback.on_epoch_end(epoch, {"loss": np.float32(1.5), "val_loss": val_loss})


def row(epoch, val_loss):
    return {"epoch": epoch, "loss": 1.5, "val_loss": val_loss}


def step(model):
    """Moves a model's weights, and their average less far."""
    model.optimizer.learning_rate = 0.1
    model.optimizer.apply([keras.ops.ones_like(each) for each in model.trainable_variables])


def test_a_finished_epoch_is_kept_with_its_history(checkpoint, model, tmp_path):
    callback, told = checkpoint()
    finish(callback, 0, 3.0)
    finish(callback, 1, 2.5)
    loaded, note = load_model(checkpoint_path(tmp_path / "run"))
    assert note.pop("seconds") > 7
    assert note == {"a": 1, "history": [row(1, 3.0), row(2, 2.5)]}
    assert equal_weights(loaded, model)
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    rows = [row(1, 3.0) | {"best": False}, row(2, 2.5) | {"best": True}]
    assert history.to_dict("records") == rows
    assert [frame.to_dict("records") for frame in told] == [[row(1, 3.0) | {"best": True}], rows]


def best_weights(tmp_path):
    with np.load(best_weights_path(tmp_path / "run")) as arrays:
        return [arrays[name] for name in arrays.files]


def test_the_averaged_weights_of_the_best_epoch_are_kept(checkpoint, model, tmp_path):
    callback, told = checkpoint()
    averages = []
    for epoch, val_loss in enumerate([3.0, 2.0, 2.5, 2.0]):
        step(model)
        averages.append(averaged_weights(model))
        finish(callback, epoch, val_loss)
    assert told[-1]["best"].tolist() == [False, True, False, False]
    for kept, average in zip(best_weights(tmp_path), averages[1], strict=True):
        np.testing.assert_allclose(kept, average, rtol=1e-5, atol=1e-6)


def test_to_average_leaves_the_weights_as_they_were(model):
    after = []
    for _ in range(3):
        step(model)
        after.append(model.get_weights())
    average = averaged_weights(model)
    for one, other in zip(model.get_weights(), after[-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    [kernel] = [i for i, each in enumerate(average) if each.shape == (16, 85)]
    first, second, third = (weights[kernel] for weights in after)
    # It begins with the first step, and takes a hundredth of each later one.
    expected = 0.99 * (0.99 * first + 0.01 * second) + 0.01 * third
    np.testing.assert_allclose(average[kernel], expected, atol=1e-5)


def test_without_an_average_the_weights_stand_for_it(model):
    model.compile("sgd")
    assert averaging(model) == []
    for one, other in zip(averaged_weights(model), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_of_an_earlier_agelib_ends_with_its_last_epoch(checkpoint, tmp_path):
    callback, told = checkpoint([row(1, 1.0), row(2, 4.0)])
    finish(callback, 2, 3.0)
    finish(callback, 3, 0.5)
    assert told[-1]["best"].tolist() == [False, False, False, True]
    assert not best_weights_path(tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_an_epoch_that_is_no_number_leaves_the_last_good_one(checkpoint, tmp_path, name, value):
    callback, told = checkpoint()
    finish(callback, 0, 1.0)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    callback.on_epoch_end(1, {"loss": 1.0, "val_loss": 1.0} | {name: value})
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert len(told) == 1


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_checkpoint_is_whole_or_absent(checkpoint, model, tmp_path, monkeypatch, epoch):
    callback, told = checkpoint()
    for i in range(epoch):
        finish(callback, i, 1.0)
    path = checkpoint_path(tmp_path / "run")
    before = path.read_bytes() if epoch else None

    def cut_short(file, *arguments, **options):
        file.write_bytes(b"half a model")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save", cut_short)
    with pytest.raises(KeyboardInterrupt):
        finish(callback, epoch, 1.0)
    assert (path.read_bytes() if path.exists() else None) == before
    assert len(told) == epoch


# Progress


class Bar:
    def __init__(self, **options):
        self.options, self.initial, self.texts, self.closed = options, options["initial"], [], False
        self.n, self.begun_at = self.initial, []
        bars.append(self)

    def update(self, count):
        self.n += count

    def unpause(self):
        self.begun_at.append(self.n)

    def set_postfix_str(self, text):
        self.texts.append(text)

    def close(self):
        self.closed = True


bars = []


def test_training_goes_on_without_a_bar(model, monkeypatch, capsys):
    monkeypatch.setattr(callbacks, "tqdm", functools.partial(tqdm, disable=True))
    progress = Progress(1, 1, 0)
    progress.on_train_batch_end(0)
    progress.on_epoch_end(0, {"loss": 1.0})
    progress.close()
    assert capsys.readouterr().err == ""


def test_one_bar_runs_over_all_epochs_from_where_training_goes_on(tiny_networks, monkeypatch):
    monkeypatch.setattr(callbacks, "tqdm", Bar)
    bars.clear()
    model = tiny_networks("EfficientNetB0", 32)
    model.compile("sgd", loss={"gender": "sparse_categorical_crossentropy"})
    images, targets = np.zeros((6, 32, 32, 3)), {"gender": np.zeros(6, int)}
    for first, last in ((0, 1), (1, 3)):
        progress = Progress(3, 2, first)
        options = {"epochs": last, "initial_epoch": first, "batch_size": 3, "verbose": 0}
        model.fit(images, targets, callbacks=[progress], **options)
        progress.close()
    assert [(bar.options["total"], bar.options["initial"]) for bar in bars] == [(6, 0), (6, 2)]
    assert [bar.n for bar in bars] == [2, 6]
    assert [bar.begun_at for bar in bars] == [[1], [3]]  # the first step is compiled
    assert all(bar.closed for bar in bars)
    assert bars[1].texts[-1].startswith("epoch 3/3, loss 0.")
