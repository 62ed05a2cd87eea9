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
        translate: The widest move along either side, as a share of that side, before the rest.
        **kwargs: As for every Keras layer.
    """

    def __init__(self, degrees: float, scale: float, translate: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.degrees, self.scale, self.translate = degrees, scale, translate
        self._generator = keras.random.SeedGenerator()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Varies float images of shape (batch, height, width, channels)."""
        if not training:
            return images
        batch = keras.ops.shape(images)[0]
        height, width = images.shape[1:3]

        def draw(most: float) -> tf.Tensor:
            shape = (batch, 1, 1)  # in full floats: half ones cannot tell pixels apart
            return keras.random.uniform(shape, -most, most, "float32", self._generator)

        angle = draw(math.radians(self.degrees))
        zoom = 1 + draw(self.scale)
        cos, sin = keras.ops.cos(angle) / zoom, keras.ops.sin(angle) / zoom
        # Each pixel of the result looks up the point of the image that it shows.
        x = tf.range(width, dtype=tf.float32) - (width - 1) / 2 - width * draw(self.translate)
        y = tf.range(height, dtype=tf.float32) - (height - 1) / 2
        y = y[:, None] - height * draw(self.translate)
        middle = (width - 1) / 2, (height - 1) / 2
        return _look_up(images, cos * x - sin * y + middle[0], sin * x + cos * y + middle[1])

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras needs to make the layer again."""
        return super().get_config() | {
            "degrees": self.degrees,
            "scale": self.scale,
            "translate": self.translate,
        }


def _look_up(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns the images' colours at points (batch, height, width), beyond an edge those of it.

    TensorFlow has an operation for this, but no TPU can run it.
    """
    height, width, channels = images.shape[1:]
    x, y = keras.ops.clip(x, 0, width - 1), keras.ops.clip(y, 0, height - 1)
    left, top = keras.ops.floor(x), keras.ops.floor(y)
    to_right, down = (keras.ops.cast(c, images.dtype)[..., None] for c in (x - left, y - top))
    left, top = keras.ops.cast(left, "int32"), keras.ops.cast(top, "int32")
    right, bottom = keras.ops.minimum(left + 1, width - 1), keras.ops.minimum(top + 1, height - 1)
    pixels = keras.ops.reshape(images, (-1, height * width, channels))

    def row(y: tf.Tensor) -> tf.Tensor:
        ends = (tf.gather(pixels, y * width + x, batch_dims=1) for x in (left, right))
        return _between(*ends, to_right)

    return _between(row(top), row(bottom), down)


def _between(one: tf.Tensor, other: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    return one + (other - one) * share
