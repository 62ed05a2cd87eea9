import functools

import numpy as np
import pandas as pd
import pytest
from tqdm import tqdm

from agelib.backend import keras
from agelib.config import checkpoint_path
from agelib.model.network import build_model
from agelib.model.saved import load_model
from agelib.training import callbacks
from agelib.training.callbacks import Checkpoint, Progress, Reseed


@pytest.fixture
def model(tiny_networks):
    keras.utils.set_random_seed(0)
    return tiny_networks("EfficientNetB0", 32)


@pytest.fixture
def checkpoint(model, tmp_path):
    """Makes a callback, and remembers the histories that the caller is told."""

    def make(history=()):
        told = []
        callback = Checkpoint(tmp_path / "run", list(history), {"a": 1}, told.append)
        callback.set_model(model)
        return callback, told

    return make


def random_outputs(model, seed, epoch):
    reseed = Reseed(seed)
    reseed.set_model(model)
    reseed.on_epoch_begin(epoch)
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
    reseed = Reseed(0)
    reseed.set_model(model)
    reseed.on_epoch_begin(0)
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


def test_a_finished_epoch_is_kept_with_its_history(checkpoint, model, tmp_path):
    callback, told = checkpoint([{"epoch": 1, "loss": 3.0}])
    callback.on_epoch_end(1, {"loss": np.float32(2.5)})
    loaded, note = load_model(checkpoint_path(tmp_path / "run"))
    assert note == {"a": 1, "history": [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.5}]}
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history.to_dict("records") == note["history"]
    assert [frame.to_dict("records") for frame in told] == [note["history"]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_an_epoch_that_is_no_number_leaves_the_last_good_one(checkpoint, tmp_path, name, value):
    callback, told = checkpoint()
    callback.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0})
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    callback.on_epoch_end(1, {"loss": 1.0, "val_loss": 1.0} | {name: value})
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert len(told) == 1


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_checkpoint_is_whole_or_absent(checkpoint, model, tmp_path, monkeypatch, epoch):
    callback, told = checkpoint()
    for i in range(epoch):
        callback.on_epoch_end(i, {"loss": 1.0})
    path = checkpoint_path(tmp_path / "run")
    before = path.read_bytes() if epoch else None

    def cut_short(file, *arguments, **options):
        file.write_bytes(b"half a model")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save", cut_short)
    with pytest.raises(KeyboardInterrupt):
        callback.on_epoch_end(epoch, {"loss": 1.0})
    assert (path.read_bytes() if path.exists() else None) == before
    assert len(told) == epoch


# Progress


class Bar:
    def __init__(self, **options):
        self.options, self.moved, self.texts, self.closed = options, 0, [], False
        bars.append(self)

    def update(self, count):
        self.moved += count

    def unpause(self):
        self.unpaused_at = self.moved

    def set_postfix_str(self, text):
        self.texts.append(text)

    def close(self):
        self.closed = True


bars = []


def test_training_goes_on_without_a_bar(model, monkeypatch):
    monkeypatch.setattr(callbacks, "tqdm", functools.partial(tqdm, disable=True))
    progress = Progress(1, 1)
    progress.on_train_batch_end(0)
    progress.on_epoch_end(0, {"loss": 1.0})
    progress.close()


def test_one_bar_runs_over_all_epochs_from_where_training_goes_on(model, monkeypatch):
    monkeypatch.setattr(callbacks, "tqdm", Bar)
    bars.clear()
    model.compile("sgd", loss={"gender": "sparse_categorical_crossentropy"})
    images, targets = np.zeros((6, 32, 32, 3)), {"gender": np.zeros(6, int)}
    for first, last in ((0, 1), (1, 3)):
        progress = Progress(3, 2, first)
        options = {"epochs": last, "initial_epoch": first, "batch_size": 3, "verbose": 0}
        model.fit(images, targets, callbacks=[progress], **options)
        progress.close()
    assert [(bar.options["total"], bar.options["initial"]) for bar in bars] == [(6, 0), (6, 2)]
    assert [bar.moved for bar in bars] == [2, 4]
    assert [bar.unpaused_at for bar in bars] == [1, 1]  # the first step is compiled
    assert all(bar.closed for bar in bars)
    assert bars[1].texts[-1].startswith("epoch 3/3, loss 0.")
