import os
from types import SimpleNamespace

import pytest

from agelib import AgelibError, __version__
from agelib.backend import keras, keras_settings, tf
from agelib.model.hardware import describe_devices, environment, even_share, precision, strategy


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that there are GPUs of these compute capabilities."""
    monkeypatch.delenv("TPU_NAME", raising=False)
    monkeypatch.delenv("COLAB_TPU_ADDR", raising=False)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)

    def pretend(*capabilities):
        details = dict(enumerate(capabilities))
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: list(details))
        monkeypatch.setattr(
            tf.config.experimental,
            "get_device_details",
            lambda gpu: {"compute_capability": details[gpu]} if details[gpu] else {},
        )

    return pretend


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([], "float32"),
        ([(7, 5)], "mixed_float16"),  # T4, Colab's free one
        ([(8, 0), (8, 0)], "mixed_float16"),
        ([(6, 0)], "float32"),
        ([(8, 0), (6, 1)], "float32"),
        ([None], "float32"),
    ],
)
def test_half_floats_are_for_hardware_made_for_them(gpus, capabilities, expected):
    gpus(*capabilities)
    assert precision() == expected


@pytest.mark.parametrize(("count", "shared"), [(0, False), (1, False), (2, True)])
def test_several_gpus_share_the_work(gpus, monkeypatch, count, shared):
    gpus(*[(7, 5)] * count)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda: "mirrored")
    assert (strategy() == "mirrored") == shared


@pytest.mark.parametrize("variable", ["TPU_NAME", "COLAB_TPU_ADDR"])
def test_a_tpu_is_taken_as_a_whole(gpus, monkeypatch, variable):
    gpus()
    monkeypatch.setenv(variable, "local")
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver
    monkeypatch.setattr(resolver, "connect", lambda: "the cores")
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda found: f"shared by {found}")
    assert strategy() == "shared by the cores"
    assert precision() == "mixed_bfloat16"


def test_a_tpu_that_cannot_be_used_is_one_sentence(gpus, monkeypatch):
    def refuse():
        raise ValueError("Please provide a TPU Name to connect to.\nMore.")

    gpus()
    monkeypatch.setenv("TPU_NAME", "local")
    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", refuse)
    with pytest.raises(AgelibError, match=r"connect to\.\): choose Runtime > Change") as caught:
        strategy()
    assert "\n" not in str(caught.value)


def test_the_devices_are_named(gpus, monkeypatch):
    gpus((7, 5))
    assert describe_devices() == "a GPU; in mixed_float16"
    gpus()
    assert describe_devices() == "no GPU; in float32"
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5e-1")
    assert "a TPU (v5e-1) that TensorFlow does not see" in describe_devices()
    monkeypatch.setenv("TPU_NAME", "local")
    assert describe_devices() == "TPU; in mixed_bfloat16"


def test_a_run_can_say_where_it_was_made(gpus):
    gpus((7, 5))
    found = environment()
    assert found["tensorflow"] == tf.__version__
    assert found["keras"] == keras.__version__
    assert found["agelib"] == __version__
    assert found["hardware"].startswith(f"{describe_devices()}; {os.cpu_count()} cores")
    assert all(isinstance(value, str) for value in found.values())


def test_each_device_gets_as_many_faces(monkeypatch):
    three = SimpleNamespace(num_replicas_in_sync=3)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: three)
    assert [even_share(count) for count in (3, 32, 33)] == [3, 30, 33]
    with pytest.raises(AgelibError, match="3 devices cannot share 2 faces at a time"):
        even_share(2)


def test_the_precision_is_for_what_is_built_inside():
    with keras_settings("mixed_float16"):
        assert keras.layers.Dense(1).compute_dtype == "float16"
    assert keras.layers.Dense(1).compute_dtype == "float32"


def test_the_precision_is_back_after_an_error():
    with pytest.raises(ZeroDivisionError), keras_settings("mixed_float16"):
        raise ZeroDivisionError
    assert keras.layers.Dense(1).compute_dtype == "float32"
