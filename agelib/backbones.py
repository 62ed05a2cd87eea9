"""The backbones by name: how large each is, the pixels that it takes, and its ImageNet weights."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

# How often training leaves out the last block of one that starts from weights.
DROP_CONNECT_RATE = 0.2

LITE0_WEIGHTS = Path(__file__).parent / "pretrained" / "EfficientNetLite0.npz"

_Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Backbone:
    """One EfficientNet of the family, or EfficientNet-Lite."""

    width: float  # multiplier of the channels of B0
    depth: float  # multiplier of the blocks of B0
    dropout: float  # rate before the heads
    size: int  # pixels per side of the images that it was designed for
    multiply_adds: float  # for one such image
    lite: bool = False  # no squeeze-and-excitation, ReLU6, first and last layers unscaled
    # The pixels' mean and deviation (0 to 255) in its ImageNet training.
    mean: _Channels = (123.675, 116.28, 103.53)
    deviation: _Channels = (58.395, 57.12, 57.375)
    # A .npz file of its ImageNet weights; those of all but the Lite models are downloaded.
    imagenet: Path | None = None


_lite = partial(Backbone, lite=True, mean=(127.0,) * 3, deviation=(128.0,) * 3)

# Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019;
# the Lite models: github.com/tensorflow/tpu, models/official/efficientnet/lite.
BACKBONES = {
    "EfficientNetB0": Backbone(1.0, 1.0, 0.2, 224, 0.39e9),
    "EfficientNetB1": Backbone(1.0, 1.1, 0.2, 240, 0.70e9),
    "EfficientNetB2": Backbone(1.1, 1.2, 0.3, 260, 1.0e9),
    "EfficientNetB3": Backbone(1.2, 1.4, 0.3, 300, 1.8e9),
    "EfficientNetB4": Backbone(1.4, 1.8, 0.4, 380, 4.2e9),
    "EfficientNetB5": Backbone(1.6, 2.2, 0.4, 456, 9.9e9),
    "EfficientNetB6": Backbone(1.8, 2.6, 0.5, 528, 19e9),
    "EfficientNetB7": Backbone(2.0, 3.1, 0.5, 600, 37e9),
    "EfficientNetLite0": _lite(1.0, 1.0, 0.2, 224, 0.407e9, imagenet=LITE0_WEIGHTS),
    "EfficientNetLite1": _lite(1.0, 1.1, 0.2, 240, 0.631e9),
    "EfficientNetLite2": _lite(1.1, 1.2, 0.3, 260, 0.899e9),
    "EfficientNetLite3": _lite(1.2, 1.4, 0.3, 280, 1.44e9),
    "EfficientNetLite4": _lite(1.4, 1.8, 0.3, 300, 2.64e9),
}
