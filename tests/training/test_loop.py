import dataclasses
import io
import itertools
import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import build_tiny_model, equal_weights

from agelib import AgelibError
from agelib.backend import keras, tf
from agelib.config import checkpoint_path
from agelib.datasets import tables
from agelib.datasets.tables import person_hash, split_by_person
from agelib.drive import sync
from agelib.faces import cleaning
from agelib.faces.shards import FaceSet, fingerprint
from agelib.model.hardware import environment
from agelib.model.inference import estimate_views, fit_temperature
from agelib.model.losses import YearsOff
from agelib.model.network import build_backbone, scale_logits
from agelib.model.saved import earlier_runs, load_model, save_model
from agelib.model.teachers import Teachers
from agelib.training import callbacks, loop
from agelib.training.batches import ordered_batches
from agelib.training.callbacks import averaged_weights, best_weights_path
from agelib.training.recipe import learning_rates, set_losses

EPOCHS = 3


def short_run(config, data, faces):
    """Returns settings of a short run in a folder of its own, on faces that lie elsewhere."""
    (data / "sample").mkdir()
    (data / "sample" / "faces").symlink_to(faces)
    return dataclasses.replace(
        config, data=data, run="tiny", epochs=EPOCHS, batch_size=32, learning_rate=0.002
    )


@pytest.fixture
def config(sample_faces, tmp_path, tiny_networks):
    return short_run(sample_faces, tmp_path, sample_faces.faces)


def watched_run(config):
    """Trains, and returns the settings, the rate of each step and the checkpoint of each epoch."""
    rates, checkpoints = [], []

    def note_rate(progress, batch, logs=None):
        rates.append(float(progress.model.optimizer.learning_rate))

    def keep_checkpoint(history):
        checkpoints.append(load_model(checkpoint_path(config.run_folder))[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_model", build_tiny_model)
        patch.setattr(callbacks.Progress, "on_train_batch_end", note_rate)
        loop.train(config, on_epoch=keep_checkpoint)
    return SimpleNamespace(config=config, rates=rates, checkpoints=checkpoints)


@pytest.fixture(scope="module")
def watched(sample_faces, tmp_path_factory):
    return watched_run(
        short_run(sample_faces, tmp_path_factory.mktemp("finished"), sample_faces.faces)
    )


@pytest.fixture(scope="module")
def finished(watched):
    """Settings of a run that nothing disturbed; to look at, not to touch."""
    return watched.config


@pytest.fixture(scope="module")
def uninterrupted(finished):
    """The weights, the history and the note that every run must end with."""
    return result_of(finished)


def first_the_heads(config):
    """Returns settings of a run in which the heads learn alone for two epochs of three.

    The tiny network takes no weights: it stands for one that has.
    """
    return dataclasses.replace(config, weights="imagenet", head_epochs=2)


@pytest.fixture
def heads_first(config):
    return first_the_heads(config)


@pytest.fixture(scope="module")
def watched_heads_first(sample_faces, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads_first")
    return watched_run(first_the_heads(short_run(sample_faces, folder, sample_faces.faces)))


def silent(history):
    pass


def result_of(config):
    model, note = load_model(config.run_folder / "model.keras")
    _, checkpoint = load_model(checkpoint_path(config.run_folder))
    assert checkpoint["history"][-1]["epoch"] == config.epochs
    return model.get_weights(), (config.run_folder / "history.csv").read_text(), note


def assert_same_result(config, expected):
    weights, history, note = result_of(config)
    expected_note = dict(expected[2])
    temperatures, expected_ones = (n.pop("temperatures") for n in (note, expected_note))
    assert temperatures == pytest.approx(expected_ones, rel=1e-3)
    assert note.pop("seconds") > 0
    expected_note.pop("seconds")
    assert note == expected_note
    one, other = (pd.read_csv(io.StringIO(text)) for text in (history, expected[1]))
    # Threads add up in any order, which moves the last digits of a float32.
    pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(weights, expected[0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def at_temperature(probabilities, temperature):
    scaled = probabilities ** (1 / temperature)
    return scaled / scaled.sum(axis=1, keepdims=True)


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


def refuse(*arguments, **options):
    raise AssertionError("there was nothing to do")


def on_call(number, function):
    """Returns a function that does as another, but is interrupted in its n-th call."""
    calls = itertools.count(1)

    def counting(*arguments, **options):
        return (interrupt if next(calls) == number else function)(*arguments, **options)

    return counting


# A run


def test_a_run_leaves_what_the_next_steps_need(finished):
    folder = finished.run_folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints",
        "config.json",
        "history.csv",
        "model.keras",
    ]
    noted = json.loads((folder / "config.json").read_text())
    made_in = noted.pop("environment")
    assert noted == finished.to_dict() | {"faces": {"wiki": fingerprint(finished.faces / "wiki")}}
    assert made_in.pop("seconds") > 0
    assert made_in == environment()
    history = loop.read_history(folder)
    assert history["epoch"].tolist() == [1, 2, 3]
    measured = {"loss", "age_loss", "age_mae", "age_branch_accuracy", "gender_accuracy"}
    assert measured | {f"val_{name}" for name in measured} <= set(history)
    assert history["best"].tolist() == (history["val_loss"] == history["val_loss"].min()).tolist()


def test_training_tells_each_epoch_and_learns_something(config):
    seen = []
    config = dataclasses.replace(config, epochs=8, learning_rate=0.01)
    history = loop.train(config, on_epoch=lambda frame: seen.append(len(frame)))
    assert seen == list(range(1, 9))
    assert history["loss"].iloc[-1] < 0.97 * history["loss"].iloc[0]
    pd.testing.assert_frame_equal(history, loop.read_history(config.run_folder))


def test_the_model_file_tells_how_faces_must_be_cropped(finished):
    _, note = load_model(finished.run_folder / "model.keras")
    assert note["crop"] == finished.crop.to_json()
    assert note["config"] == finished.to_dict()
    sizes = {s: len(FaceSet([finished.faces / "wiki"], s)) for s in ("train", "val")}
    assert note["faces"] == sizes


def test_the_model_file_holds_nothing_of_the_training(finished):
    path = finished.run_folder / "model.keras"
    with zipfile.ZipFile(path) as archive:
        settings = archive.read("config.json").decode()
    assert not json.loads(settings).get("compile_config")
    assert "YearsOff" not in settings
    assert "RandomFlip" not in settings
    assert path.stat().st_size < 0.8 * checkpoint_path(finished.run_folder).stat().st_size


def best_model(config):
    """Returns the checkpoint's network with the weights that are noted as the best."""
    model, _ = load_model(checkpoint_path(config.run_folder))
    with np.load(best_weights_path(config.run_folder)) as arrays:
        model.set_weights([arrays[name] for name in arrays.files])
    return model


def val_loss(model, config):
    """Returns what the validation faces cost by these very weights."""
    set_losses(model, "sgd")
    batches = ordered_batches(FaceSet([config.faces / "wiki"], "val"), 32, 64)
    return model.evaluate(batches, verbose=0, return_dict=True)["loss"]


def test_the_best_epoch_is_the_one_whose_averaged_weights_validate_best(finished):
    history = loop.read_history(finished.run_folder)
    model, _ = load_model(checkpoint_path(finished.run_folder))
    # The weights as they are cost something else.
    assert val_loss(model, finished) != pytest.approx(history["val_loss"].iloc[-1], rel=1e-5)
    model, _ = load_model(checkpoint_path(finished.run_folder))
    model.set_weights(averaged_weights(model))
    assert val_loss(model, finished) == pytest.approx(history["val_loss"].iloc[-1], rel=1e-5)
    best = val_loss(best_model(finished), finished)
    assert best == pytest.approx(history["val_loss"].min(), rel=1e-5)


def test_epochs_that_got_worse_do_not_reach_the_model(config, monkeypatch, tiny_networks):
    models = []

    def remember(*arguments, **options):
        models.append(tiny_networks(*arguments, **options))
        return models[-1]

    def spoil_after_two(history):
        if len(history) == 2:
            kernel = models[0].get_layer("age_logits").kernel
            kernel.assign(100 * kernel)

    monkeypatch.setattr(loop, "build_model", remember)
    history = loop.train(config, on_epoch=spoil_after_two)
    assert history["val_loss"].iloc[2] > history["val_loss"].iloc[:2].max() + 0.5
    assert not history["best"].iloc[2]
    model, note = load_model(config.run_folder / "model.keras")
    scale_logits(model, "age", 1 / note["temperatures"]["age"])
    scale_logits(model, "gender", 1 / note["temperatures"]["gender"])
    assert val_loss(model, config) == pytest.approx(history["val_loss"].min(), rel=1e-3)


def test_the_model_file_is_the_model_of_the_best_epoch_at_its_temperatures(finished, rng):
    images = rng.integers(0, 256, (4, 64, 64, 3), np.uint8)
    model, note = load_model(finished.run_folder / "model.keras")
    final = model.predict_on_batch(images)
    plain = best_model(finished).predict_on_batch(images)
    for head in ("age", "gender"):
        expected = at_temperature(plain[head], note["temperatures"][head])
        np.testing.assert_allclose(final[head], expected, rtol=1e-4)
        assert note["temperatures"][head] != 1


def test_the_temperatures_are_those_of_the_validation_faces(finished):
    _, note = load_model(finished.run_folder / "model.keras")
    faces = FaceSet([finished.faces / "wiki"], "val")
    views = estimate_views(best_model(finished), faces)
    assert note["temperatures"] == {
        "age": pytest.approx(fit_temperature(views["age"], faces.age - 1), rel=1e-3),
        "gender": pytest.approx(fit_temperature(views["gender"], faces.gender), rel=1e-3),
    }


def test_a_batch_larger_than_the_set_is_cut_to_it(config):
    history = loop.train(dataclasses.replace(config, batch_size=1000, epochs=1), silent)
    assert len(history) == 1
    model, _ = load_model(checkpoint_path(config.run_folder))
    assert int(model.optimizer.iterations) == 1


def test_a_single_step_learns_something(config, tiny_networks):
    keras.utils.set_random_seed(config.seed)
    start = tiny_networks("EfficientNetB0", 64).get_layer("age_logits").get_weights()
    loop.train(dataclasses.replace(config, batch_size=1000, epochs=1), on_epoch=silent)
    model, _ = load_model(checkpoint_path(config.run_folder))
    assert not np.array_equal(model.get_layer("age_logits").get_weights()[0], start[0])


def test_images_are_seen_at_another_size_if_asked_for(config):
    loop.train(dataclasses.replace(config, image_size=32, epochs=1), on_epoch=silent)
    model, _ = load_model(config.run_folder / "model.keras")
    assert model.input_shape == (None, 32, 32, 3)


# Heads first


def test_the_heads_learn_first_on_a_backbone_that_stands_still(watched_heads_first):
    keras.utils.set_random_seed(watched_heads_first.config.seed)
    start = build_tiny_model("EfficientNetB0", 64).get_layer("backbone").get_weights()
    first, second, third = watched_heads_first.checkpoints
    backbones = [model.get_layer("backbone").get_weights() for model in (second, third)]
    heads = [model.get_layer("age_logits").get_weights() for model in (first, second)]
    assert all(np.array_equal(a, b) for a, b in zip(backbones[0], start, strict=True))
    assert not np.array_equal(heads[0][0], heads[1][0])
    assert not any(np.array_equal(a, b) for a, b in zip(*backbones, strict=True))


def test_each_phase_has_rates_of_its_own(watched_heads_first):
    peak = watched_heads_first.config.learning_rate
    heads, everything = learning_rates(5 * peak, 2 * 8), learning_rates(peak, 8)
    expected = [float(heads(step)) for step in range(16)]
    expected += [float(everything(step)) for step in range(8)]
    assert watched_heads_first.rates == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_stopped_in_and_after_the_first_phase_it_ends_as_if_uninterrupted(
    heads_first, monkeypatch, precision
):
    monkeypatch.setattr(loop, "precision", lambda: precision)
    loop.train(heads_first, on_epoch=silent)
    expected = result_of(heads_first)
    shutil.rmtree(heads_first.run_folder)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.train(heads_first, on_epoch=on_call(1, silent))
    loop.train(heads_first, on_epoch=silent)
    assert_same_result(heads_first, expected)


def test_a_loss_that_is_no_number_in_the_first_phase_ends_the_run(heads_first):
    hasty = dataclasses.replace(heads_first, learning_rate=1e30)
    with pytest.raises(AgelibError, match=r"no longer a number after epoch 0"):
        loop.train(hasty, on_epoch=silent)


LOAD_WITHOUT_AGELIB = """
import sys
sys.modules["agelib"] = sys.modules["efficientnet"] = None
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
np.savez(sys.argv[3], **model.predict_on_batch(np.load(sys.argv[2])))
"""


@pytest.fixture
def uncompiled():
    """A large network's single step takes less time than to compile it."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def taught(config, finished):
    """Settings of a run that learns from the model of another."""
    teacher = shutil.copy(finished.run_folder / "model.keras", config.data / "teacher.keras")
    return dataclasses.replace(config, teachers=(str(teacher),))


def test_a_run_with_a_teacher_notes_it_and_ends_as_if_uninterrupted(taught):
    def stop(history):
        raise KeyboardInterrupt

    taught = dataclasses.replace(taught, weights=taught.teachers[0])  # noted once
    with pytest.raises(KeyboardInterrupt):
        loop.train(taught, on_epoch=stop)
    stopped = loop.train(taught, on_epoch=silent)
    whole = dataclasses.replace(taught, run="whole")
    assert loop.train(whole, on_epoch=silent)["loss"].tolist() == pytest.approx(stopped["loss"])
    model, note = load_model(taught.run_folder / "model.keras")
    assert not any(isinstance(layer, Teachers) for layer in model.layers)
    [before] = note["before"]
    assert before["config"] == load_model(Path(taught.teachers[0]))[1]["config"]
    Path(taught.teachers[0]).unlink()  # what it noted is known without the file
    assert earlier_runs(note) == note["before"]


def test_a_run_goes_on_where_the_model_that_it_began_with_is_not(config, finished):
    def stop(history):
        raise KeyboardInterrupt

    start = Path(shutil.copy(finished.run_folder / "model.keras", config.data / "start.keras"))
    config = dataclasses.replace(config, weights=str(start))
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, on_epoch=stop)
    start.unlink()
    loop.train(config, on_epoch=silent)
    [before] = load_model(config.run_folder / "model.keras")[1]["before"]
    assert before["config"]["run"] == finished.run


def test_a_teacher_of_other_crops_is_refused(taught):
    path = Path(taught.teachers[0])
    model, note = load_model(path)
    other = path.with_name("other.keras")
    save_model(model, other, note | {"crop": note["crop"] | {"margin": 0.4}})
    with pytest.raises(AgelibError, match=r"other\.keras knows crops of .*margin 0\.4"):
        loop.train(dataclasses.replace(taught, teachers=(str(other),)), on_epoch=silent)
    assert not taught.run_folder.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:.*tf.data functions are still traced")
def test_imagenet_s_weights_go_through_both_phases_and_load_without_agelib(sample_faces, tmp_path):
    config = short_run(sample_faces, tmp_path, sample_faces.faces)
    config = dataclasses.replace(
        config,
        backbone="EfficientNetLite0",
        weights="imagenet",
        image_size=32,
        epochs=2,
        head_epochs=1,
        batch_size=1000,
    )
    imagenet = build_backbone("EfficientNetLite0", 32, "imagenet", 0.2)
    stood_still = []

    def look(history):
        model, _ = load_model(checkpoint_path(config.run_folder))
        stood_still.append(equal_weights(model.get_layer("EfficientNetLite0"), imagenet))

    history = loop.train(config, on_epoch=look)
    assert stood_still == [True, False]
    assert np.isfinite(history.drop(columns="best")).all(axis=None)
    path = config.run_folder / "model.keras"
    images = np.random.default_rng(2).integers(0, 256, (5, 32, 32, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_AGELIB, path, "images.npy", "found.npz"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=True,
    )
    found, expected = np.load(tmp_path / "found.npz"), load_model(path)[0].predict_on_batch(images)
    for name in ("age", "age_branch", "gender"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


# Hardware


def test_faces_too_few_for_the_devices_leave_no_trace_of_a_run(config, monkeypatch):
    many = SimpleNamespace(
        num_replicas_in_sync=45, scope=nullcontext
    )  # there are 44 for validation
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: many)
    with pytest.raises(AgelibError, match="45 devices cannot share"):
        loop.train(dataclasses.replace(config, batch_size=64), on_epoch=silent)
    assert not (config.run_folder / "config.json").exists()


def test_a_checkpoint_whose_optimizer_does_not_fit_is_refused(config):
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, on_epoch=on_call(1, silent))
    checkpoint, note = load_model(checkpoint_path(config.run_folder))
    checkpoint.compile(keras.optimizers.SGD(momentum=0.9))
    checkpoint.optimizer.build(checkpoint.trainable_variables[1:])
    save_model(checkpoint, checkpoint_path(config.run_folder), note)
    with pytest.raises(AgelibError, match=r"last\.keras .*delete it and train again"):
        loop.train(config, on_epoch=silent)


def test_a_checkpoint_of_agelib_0_5_goes_on_with_its_own_optimizer_to_its_last_epoch(config):
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, on_epoch=on_call(1, silent))
    checkpoint, note = load_model(checkpoint_path(config.run_folder))
    cost = "sparse_categorical_crossentropy"
    checkpoint.compile(
        keras.optimizers.AdamW(weight_decay=1e-3),
        loss={"age": "categorical_crossentropy", "age_branch": cost, "gender": cost},
        metrics={"age": [YearsOff()], "age_branch": ["accuracy"], "gender": ["accuracy"]},
        jit_compile=False,
    )
    checkpoint.optimizer.build(checkpoint.trainable_variables)
    checkpoint.optimizer.iterations.assign(8)
    note["history"][0] |= {"age_branch_loss": 1.6, "val_age_branch_loss": 1.6, "val_loss": 0.1}
    save_model(checkpoint, checkpoint_path(config.run_folder), {"history": note["history"]})
    best_weights_path(config.run_folder).unlink()
    history = loop.train(config, on_epoch=silent)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["best"].tolist() == [False, False, True]
    last, _ = load_model(checkpoint_path(config.run_folder))
    assert int(last.optimizer.iterations) == EPOCHS * 8
    assert not last.optimizer.use_ema
    model, _ = load_model(config.run_folder / "model.keras")
    assert equal_weights(*(each.get_layer("backbone") for each in (model, last)))


def test_half_floats_stay_in_training(config, monkeypatch):
    monkeypatch.setattr(loop, "precision", lambda: "mixed_float16")
    history = loop.train(config, on_epoch=silent)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    in_training, _ = load_model(checkpoint_path(config.run_folder))
    assert in_training.get_layer("backbone").get_layer("conv").compute_dtype == "float16"
    model, note = load_model(config.run_folder / "model.keras")
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    one, other = (network.predict_on_batch(images)["age"] for network in (model, in_training))
    expected = at_temperature(other, note["temperatures"]["age"])
    np.testing.assert_allclose(one, expected, atol=5e-3)


TWO_DEVICES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from agelib.backend import tf
[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from conftest import build_tiny_model
from agelib.training import loop
from agelib.config import Config
loop.build_model = build_tiny_model
loop.strategy = lambda: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
config = Config.from_profile("sample", data=Path(sys.argv[1]), epochs=3, run="tiny",
    batch_size=33, learning_rate=0.002)
def stop(history):
    if len(history) == 2:
        raise KeyboardInterrupt
try:
    loop.train(config, on_epoch=stop)
except KeyboardInterrupt:
    loop.train(config, on_epoch=lambda history: None)
"""


@pytest.mark.slow
def test_two_devices_share_the_work_and_go_on_together(config, uninterrupted):
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests.parent)}
    command = [sys.executable, "-c", TWO_DEVICES, config.data, tests]
    subprocess.run(command, env=environment, check=True)
    history = loop.read_history(config.run_folder)
    alone = pd.read_csv(io.StringIO(uninterrupted[1]))
    assert len(history) == EPOCHS
    # BatchNorm sees half the batch, and random layers draw for each device.
    np.testing.assert_allclose(history["loss"], alone["loss"], rtol=0.1)


# Cut off and continued


def test_two_runs_of_the_same_seed_are_the_same(config, uninterrupted):
    loop.train(config, on_epoch=silent)
    assert_same_result(config, uninterrupted)


def test_another_seed_gives_another_model(config, uninterrupted):
    loop.train(dataclasses.replace(config, seed=1), on_epoch=silent)
    _, history, _ = result_of(config)
    assert history != uninterrupted[1]


@pytest.mark.parametrize("k", [1, 2])
def test_stopped_after_any_epoch_it_ends_as_if_uninterrupted(config, uninterrupted, k):
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, on_epoch=on_call(k, silent))
    assert not (config.run_folder / "model.keras").exists()
    went_on_with = []
    loop.train(config, on_epoch=lambda history: went_on_with.append(len(history)))
    assert went_on_with == list(range(k + 1, EPOCHS + 1))
    assert_same_result(config, uninterrupted)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        pytest.param("Progress.on_train_batch_end", 13, id="in the second epoch"),
        pytest.param("save_model", 1, id="before the first checkpoint"),
        pytest.param("save_model", 2, id="between the second best weights and checkpoint"),
        pytest.param("atomic", 1, id="before the first best weights"),
        pytest.param("write_history", 2, id="before the second history"),
        pytest.param("write_history", EPOCHS, id="before the last history"),
    ],
)
def test_stopped_at_any_point_it_ends_as_if_uninterrupted(
    config, uninterrupted, monkeypatch, place, number
):
    original = operator.attrgetter(place)(callbacks)
    with monkeypatch.context() as patch:
        patch.setattr(f"agelib.training.callbacks.{place}", on_call(number, original))
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, on_epoch=silent)
    loop.train(config, on_epoch=silent)
    assert_same_result(config, uninterrupted)


def test_stopped_before_the_model_is_written_it_is_written_without_training(
    config, uninterrupted, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, on_epoch=silent)
    loop.train(config, on_epoch=refuse)
    assert_same_result(config, uninterrupted)


KILLED = """
import dataclasses, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import build_tiny_model
from agelib.training import loop
from agelib.config import Config
loop.build_model = build_tiny_model
replace, calls = os.replace, []
def killed_before_the_second_checkpoint_gets_its_name(source, target):
    calls.append(Path(target).name)
    if calls.count("last.keras") == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed_before_the_second_checkpoint_gets_its_name
config = Config.from_profile("sample", data=Path(sys.argv[1]), epochs=3, run="tiny",
    batch_size=32, learning_rate=0.002)
loop.train(config, on_epoch=lambda history: None)
"""


@pytest.mark.slow
def test_killed_without_warning_it_ends_as_if_uninterrupted(config, uninterrupted):
    tests = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(tests.parent)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, config.data, tests], env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    loop.train(config, on_epoch=silent)
    assert_same_result(config, uninterrupted)
    checkpoint = checkpoint_path(config.run_folder)
    left = sorted(checkpoint.parent.iterdir())
    assert left == [best_weights_path(config.run_folder), checkpoint]


def test_a_run_of_a_deleted_one_s_name_draws_curves_of_its_own(config):
    old = config.logs / "train" / "events.of.before"
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, on_epoch=on_call(1, silent))
    assert not old.exists()
    begun = set(config.logs.rglob("events*"))
    loop.train(config, on_epoch=silent)
    assert begun
    assert begun < set(config.logs.rglob("events*"))


def test_a_finished_run_is_not_trained_again(finished, monkeypatch):
    before = {p: p.stat().st_mtime_ns for p in finished.run_folder.rglob("*")}
    monkeypatch.setattr(loop, "build_model", refuse)
    again = loop.train(dataclasses.replace(finished, workers=7), on_epoch=refuse)
    assert len(again) == EPOCHS
    assert {p: p.stat().st_mtime_ns for p in finished.run_folder.rglob("*")} == before


def train_onto(remote, config, on_epoch=silent):
    """Trains as `agelib.steps.train` does, with this folder for the run's place on Drive."""
    backup = sync.Backup(config.run_folder, remote)

    def push_and_tell(history):
        backup.push()
        on_epoch(history)

    loop.train(config, push_and_tell)
    sync.push_finished(config.run_folder / "model.keras", config.run_folder, remote)


def test_each_finished_epoch_is_on_drive_and_another_machine_goes_on_from_there(
    config, uninterrupted, tmp_path
):
    remote = tmp_path / "drive" / "tiny"
    with pytest.raises(KeyboardInterrupt):
        train_onto(remote, config, on_call(2, silent))
    shutil.rmtree(config.run_folder)
    sync.pull(remote, config.run_folder)
    train_onto(remote, config)
    assert_same_result(config, uninterrupted)
    shutil.rmtree(config.run_folder)
    sync.pull(remote, config.run_folder)
    assert_same_result(config, uninterrupted)


@pytest.fixture
def lame_drive(monkeypatch):
    """Drive, which takes files only in the pushes whose numbers are given."""
    push, calls, well = sync.push, [], set()

    def pushing(*arguments, **options):
        calls.append(arguments)
        if len(calls) not in well:
            raise AgelibError("Drive is out of order.")
        return push(*arguments, **options)

    monkeypatch.setattr(sync, "push", pushing)
    return well


def test_epochs_that_cannot_reach_drive_do_not_stop_training(
    config, uninterrupted, tmp_path, lame_drive, capsys
):
    remote = tmp_path / "drive" / "tiny"
    lame_drive.update({3, 4})
    on_drive = []
    train_onto(remote, config, lambda _: on_drive.append(remote.exists()))
    assert on_drive == [False, False, True]
    assert capsys.readouterr().err.count("Drive is out of order. No need to stop") == 1
    shutil.rmtree(config.run_folder)
    sync.pull(remote, config.run_folder)
    assert_same_result(config, uninterrupted)


def test_both_phases_tell_of_trouble_once(heads_first, tmp_path, lame_drive, capsys):
    lame_drive.add(4)
    train_onto(tmp_path / "drive" / "tiny", heads_first)
    assert capsys.readouterr().err.count("No need to stop") == 1


def test_a_model_that_cannot_reach_drive_is_named_and_kept(
    config, uninterrupted, tmp_path, lame_drive
):
    path = config.run_folder / "model.keras"
    with pytest.raises(AgelibError, match="is finished, but lies only on this machine") as caught:
        train_onto(tmp_path / "drive" / "tiny", config)
    assert str(caught.value).startswith(str(path))
    assert_same_result(config, uninterrupted)
    assert lame_drive == set()


# Refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 9}, "epochs 3, but 9"),
        ({"learning_rate": 0.5}, "learning_rate 0.002, but 0.5"),
        ({"backbone": "EfficientNetB3"}, "backbone EfficientNetB0, but EfficientNetB3"),
        ({"seed": 4}, "seed 0, but 4"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(finished, change, named):
    with pytest.raises(AgelibError, match=f"Run tiny in .* has {named} is asked for"):
        loop.train(dataclasses.replace(finished, **change), on_epoch=refuse)


def test_a_run_of_an_earlier_version_had_no_teachers(taught, finished):
    shutil.copytree(finished.run_folder, taught.run_folder)
    path = taught.run_folder / "config.json"
    settings = json.loads(path.read_text())
    del settings["teachers"]
    path.write_text(json.dumps(settings))
    with pytest.raises(AgelibError, match=r"has teachers \[\], but .*teacher\.keras"):
        loop.train(taught, on_epoch=refuse)


def test_a_run_does_not_go_on_with_other_faces(finished, monkeypatch):
    monkeypatch.setattr(loop, "fingerprint", lambda folder: "another cleaning")
    with pytest.raises(AgelibError, match=r"trained on other faces .* --run, or delete"):
        loop.train(finished, on_epoch=silent)


def test_a_run_that_could_not_begin_binds_nobody_to_its_settings(config, monkeypatch):
    # The error's own advice is to use other weights.
    def out_of_reach(*arguments, **options):
        raise AgelibError("imagenet weights cannot be had: use --weights none.")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "build_model", out_of_reach)
        with pytest.raises(AgelibError, match="cannot be had"):
            loop.train(dataclasses.replace(config, weights="imagenet"), on_epoch=silent)
    assert len(loop.train(config, on_epoch=silent)) == EPOCHS


@pytest.fixture
def relabelled(config, sample_faces):
    """Cleans a few images again under other labels."""

    def make(change):
        config.faces.unlink()
        table = tables.read_table("wiki", sample_faces)
        table = change(table[table["reject"] == ""].iloc[:40].copy())
        images = sample_faces.raw / "wiki_crop"
        cleaning.clean_table(table, images, config.faces / "wiki", "wiki", config)
        return config

    return make


def test_faces_of_one_gender_cannot_be_told_apart(relabelled):
    config = relabelled(lambda table: table.assign(gender=1))
    with pytest.raises(AgelibError, match=r"training faces are of gender Female: .*more data"):
        loop.train(config, on_epoch=silent)


def test_faces_of_one_age_branch_cannot_be_told_apart(relabelled):
    config = relabelled(lambda table: table.assign(age=30))
    with pytest.raises(AgelibError, match="training faces are of age branch 24-39"):
        loop.train(config, on_epoch=silent)


def test_faces_that_nearly_equal_held_out_ones_are_left_out_and_counted(config, monkeypatch):
    config = dataclasses.replace(config, keep_near_duplicates=False, epochs=1)
    seen = []

    def two(train, *held_out):
        seen.extend((len(faces), faces.split) for faces in (train, *held_out))
        return np.arange(len(train)) < 2

    monkeypatch.setattr(loop, "duplicates_of_held_out", two)
    loop.train(config, on_epoch=silent)
    assert seen == [(276, "train"), (44, "val"), (140, "test")]
    _, note = load_model(config.run_folder / "model.keras")
    assert note["near_duplicates"] == {"wiki": 2}
    assert note["faces"] == {"train": 274, "val": 44}


def test_other_test_sets_are_refused_if_near_duplicates_are_left_out(config, monkeypatch):
    config = dataclasses.replace(config, keep_near_duplicates=False)
    monkeypatch.setattr(loop, "duplicates_of_held_out", lambda train, *_: np.arange(len(train)) < 2)
    with pytest.raises(KeyboardInterrupt):
        loop.train(config, on_epoch=on_call(1, silent))
    other = dataclasses.replace(config, test_sources=("utkface", "wiki"))
    with pytest.raises(AgelibError, match=r"has test_sources \['utkface'\], but .* is asked for"):
        loop.train(other, on_epoch=silent)
    loop.train(config, on_epoch=silent)
    assert len(loop.train(other, on_epoch=silent)) == EPOCHS  # a finished run may be tested on any


@pytest.mark.parametrize("left", [0, 1])
def test_faces_that_nearly_all_equal_held_out_ones_are_too_few(config, monkeypatch, left):
    config = dataclasses.replace(config, keep_near_duplicates=False)
    monkeypatch.setattr(
        loop, "duplicates_of_held_out", lambda train, *_: np.arange(len(train)) >= left
    )
    with pytest.raises(AgelibError, match=r"^All \d+ training faces .* use more data"):
        loop.train(config, on_epoch=silent)
    assert not (config.run_folder / "config.json").exists()


def in_splits(table, splits):
    """Returns a table of people whose hashes put them into these splits."""
    names = np.array([f"person {i}" for i in range(10 * len(table))])
    found = split_by_person(np.array([person_hash(name) for name in names]), 0.15, 0)
    people = {split: iter(names[found == split].tolist()) for split in splits}
    return table.assign(person=[next(people[split]) for split in splits], split=splits)


def test_a_set_without_val_faces_is_refused_before_training(relabelled, monkeypatch):
    config = relabelled(lambda table: in_splits(table, ["train"] * len(table)))
    monkeypatch.setattr(loop, "build_model", refuse)
    with pytest.raises(AgelibError, match="holds no val faces"):
        loop.train(config, on_epoch=silent)


def test_a_single_val_face_of_one_gender_is_enough(relabelled):
    config = relabelled(lambda table: in_splits(table, ["val"] + ["train"] * (len(table) - 1)))
    assert len(FaceSet([config.faces / "wiki"], "val")) == 1
    assert len(loop.train(config, on_epoch=silent)) == EPOCHS


def test_missing_faces_are_asked_for(config):
    config.faces.unlink()
    with pytest.raises(AgelibError, match="run the clean step"):
        loop.train(config, on_epoch=silent)


def test_a_huge_learning_rate_ends_in_one_sentence(config):
    hasty = dataclasses.replace(config, learning_rate=1e30)
    with pytest.raises(AgelibError, match=r"no longer a number after epoch \d.*--learning-rate"):
        loop.train(hasty, on_epoch=silent)
    assert not (config.run_folder / "model.keras").exists()


def test_a_loss_that_is_no_number_keeps_the_epochs_before_it(config, monkeypatch, tiny_networks):
    models, told = [], []

    def remember(*arguments, **options):
        models.append(tiny_networks(*arguments, **options))
        return models[0]

    def poison_after_two(history):
        told.append(len(history))
        if len(history) == 2:
            kernel = models[0].get_layer("age_logits").kernel
            kernel.assign(np.full(kernel.shape, np.nan))

    monkeypatch.setattr(loop, "build_model", remember)
    with pytest.raises(AgelibError, match="no longer a number after epoch 2"):
        loop.train(config, on_epoch=poison_after_two)
    assert told == [1, 2]
    kept, note = load_model(checkpoint_path(config.run_folder))
    assert [row["epoch"] for row in note["history"]] == [1, 2]
    assert all(np.isfinite(weights).all() for weights in kept.get_weights())
    assert not (config.run_folder / "model.keras").exists()


def test_too_little_memory_is_one_sentence(config, monkeypatch):
    def refuse_memory(self, *arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(keras.Model, "fit", refuse_memory)
    with pytest.raises(AgelibError, match=r"too little memory .* 32 faces .*--batch-size"):
        loop.train(config, on_epoch=silent)


def test_a_missing_history_is_asked_for(tmp_path):
    with pytest.raises(AgelibError, match=r"history\.csv is missing: run the train step"):
        loop.read_history(tmp_path)


@pytest.mark.parametrize("best", [None, False])
def test_a_run_of_an_earlier_version_has_its_last_epoch_as_the_best(tmp_path, best):
    table = pd.DataFrame({"epoch": [1, 2, 3], "val_loss": [3.0, 1.0, 2.0]})
    if best is not None:
        table["best"] = best
    table.to_csv(tmp_path / "history.csv", index=False)
    assert loop.read_history(tmp_path)["best"].tolist() == [False, False, True]


# Rates


def test_each_step_has_its_own_rate(watched):
    rates = learning_rates(watched.config.resolved.learning_rate, EPOCHS * 8)
    assert watched.rates == pytest.approx([float(rates(step)) for step in range(EPOCHS * 8)])
