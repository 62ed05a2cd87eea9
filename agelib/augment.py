"""How training images are varied, so that the network learns faces and not photographs."""

import math
from typing import Any

from agelib.backend import keras, tf


def build_augmentation() -> keras.Sequential:
    """Returns the layers that vary training images of 0 to 255, and do nothing otherwise.

    Old photos are grey, soft and differently lit; a network that takes these for age is wrong
    elsewhere. And no two detectors cut a face in quite the same place.
    """
    layers = [
        keras.layers.RandomFlip("horizontal", name="flip"),
        RandomAffine(degrees=10, scale=0.1, translate=0.05, name="affine"),
        keras.layers.RandomGrayscale(0.1, name="grey"),
        keras.layers.RandomBrightness(0.1, value_range=(0, 255), name="brightness"),
        keras.layers.RandomContrast(0.2, value_range=(0, 255), name="contrast"),
        keras.layers.RandomSharpness((0, 1), value_range=(0, 255), name="sharpness"),
    ]
    return keras.Sequential(layers, name="augmentation")


@keras.saving.register_keras_serializable("agelib")
class RandomAffine(keras.layers.Layer):
    """Turns, scales and moves each image by amounts of its own, about its centre.

    Keras has a layer for each of these; one after the other they blur an image three times.

    Args:
        degrees: The widest turn to either side.
        scale: The largest change of size; 0.1 is from 0.9 to 1.1.
        translate: The widest move along either side, as a share of that side.
        **kwargs: As for every Keras layer.
    """

    def __init__(self, degrees: float, scale: float, translate: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.degrees, self.scale, self.translate = degrees, scale, translate
        self.supports_jit = False  # TensorFlow's transform has no XLA form
        self._generator = keras.random.SeedGenerator()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Varies float images of shape (batch, height, width, channels)."""
        if not training:
            return images
        batch, height, width = keras.ops.shape(images)[:3]

        def draw(most: float) -> tf.Tensor:
            return keras.random.uniform((batch,), -most, most, seed=self._generator)

        angle = draw(math.radians(self.degrees))
        zoom = 1 + draw(self.scale)
        cos, sin = keras.ops.cos(angle) / zoom, keras.ops.sin(angle) / zoom
        x, y = (width - 1) / 2, (height - 1) / 2
        # Each pixel of the result names the point of the image that it shows.
        to_x = x - cos * x + sin * y + width * draw(self.translate)
        to_y = y - sin * x - cos * y + height * draw(self.translate)
        none = keras.ops.zeros((batch,))
        transform = keras.ops.stack([cos, -sin, to_x, sin, cos, to_y, none, none], axis=1)
        return keras.ops.image.affine_transform(images, transform, fill_mode="nearest")

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras needs to make the layer again."""
        return super().get_config() | {
            "degrees": self.degrees,
            "scale": self.scale,
            "translate": self.translate,
        }
