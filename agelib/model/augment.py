"""Augmentation: the layers that vary training images."""

import math
from typing import Any

from agelib.backend import keras, tf


def build_augmentation() -> keras.Sequential:
    """Returns the layers that vary images of 0 to 255 in training, and do nothing otherwise.

    Old photos are grey and blurred, photos of phones are dark or coloured, and each detector places
    its boxes a little differently. A network must not take any of these for age.
    """
    layers = [
        keras.layers.RandomFlip("horizontal", name="flip"),
        RandomAffine(degrees=20, scale=0.15, translate=0.06, name="affine"),
        RandomResolution(share=0.25, name="resolution"),
        RandomLight(darkest=0.25, gamma=0.35, colour=0.1, contrast=0.2, name="light"),
        keras.layers.RandomGrayscale(0.1, name="grey"),
        # DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout".
        keras.layers.RandomErasing(
            0.25, (0.05, 0.2), fill_value=127.0, value_range=(0, 255), name="erasing"
        ),
    ]
    return keras.Sequential(layers, name="augmentation")


class _RandomLayer(keras.layers.Layer):
    """Varies images in training, with random numbers of its own."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self._generator = keras.random.SeedGenerator()

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Varies float images of 0 to 255, of shape (batch, height, width, channels)."""
        return self._vary(images) if training else images

    def _vary(self, images: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def _draw(self, images: tf.Tensor, low: float, high: float, channels: int = 1) -> tf.Tensor:
        """Returns random numbers for each image, float32 of shape (batch, 1, 1, channels)."""
        shape = (keras.ops.shape(images)[0], 1, 1, channels)
        return keras.random.uniform(shape, low, high, "float32", self._generator)


@keras.saving.register_keras_serializable("agelib")
class RandomLight(_RandomLayer):
    """Varies the light of each image: exposure, gamma, colour, contrast.

    Every fourth image is made darker, down to the exposure `darkest`. `gamma`, `colour` and
    `contrast` are the largest changes of gamma's logarithm, of a channel's gain, and of the
    distance from the mean.
    """

    def __init__(self, darkest: float, gamma: float, colour: float, contrast: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.darkest, self.gamma, self.colour, self.contrast = darkest, gamma, colour, contrast

    def _vary(self, images: tf.Tensor) -> tf.Tensor:
        # 16-bit floats are too coarse for dark pixels.
        lit = keras.ops.clip(keras.ops.cast(images, "float32") / 255, 1e-4, 1)
        gain = 1 + self._draw(images, -self.colour, self.colour, images.shape[-1])
        dark = keras.ops.exp(self._draw(images, math.log(self.darkest), 0))
        is_dark = self._draw(images, 0, 1) < 0.25
        gain *= keras.ops.where(is_dark, dark, 1 + self._draw(images, -0.15, 0.15))
        lit = gain * lit ** keras.ops.exp(self._draw(images, -self.gamma, self.gamma))
        mean = keras.ops.mean(lit, axis=(1, 2, 3), keepdims=True)
        lit = mean + (lit - mean) * (1 + self._draw(images, -self.contrast, self.contrast))
        return keras.ops.cast(255 * keras.ops.clip(lit, 0, 1), images.dtype)


@keras.saving.register_keras_serializable("agelib")
class RandomResolution(_RandomLayer):
    """Scales a share of the images, 0 to 1, down to a half or a third and up again."""

    def __init__(self, share: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.share = share

    def _vary(self, images: tf.Tensor) -> tf.Tensor:
        drawn = self._draw(images, 0, 1)
        half, third = _coarsened(images, 2), _coarsened(images, 3)
        coarse = keras.ops.where(drawn < self.share / 2, half, third)
        return keras.ops.where(drawn < self.share, coarse, images)


def _coarsened(images: tf.Tensor, factor: int) -> tf.Tensor:
    small = keras.ops.average_pool(images, factor, padding="same")
    return keras.ops.image.resize(small, images.shape[1:3], "bilinear")


@keras.saving.register_keras_serializable("agelib")
class RandomAffine(_RandomLayer):
    """Turns, scales and moves each image about its centre.

    Keras has a layer for each of these; one after the other they blur an image three times. The
    move comes first, by up to `translate` of each side; a `scale` of 0.1 is from 0.9 to 1.1.
    """

    def __init__(self, degrees: float, scale: float, translate: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.degrees, self.scale, self.translate = degrees, scale, translate

    def _vary(self, images: tf.Tensor) -> tf.Tensor:
        height, width = images.shape[1:3]

        def draw(most: float) -> tf.Tensor:
            return self._draw(images, -most, most)[..., 0]

        angle = draw(math.radians(self.degrees))
        zoom = 1 + draw(self.scale)
        cos, sin = keras.ops.cos(angle) / zoom, keras.ops.sin(angle) / zoom
        # For each pixel of the result, the point of the image that it shows.
        x = tf.range(width, dtype=tf.float32) - (width - 1) / 2 - width * draw(self.translate)
        y = tf.range(height, dtype=tf.float32) - (height - 1) / 2
        y = y[:, None] - height * draw(self.translate)
        middle = (width - 1) / 2, (height - 1) / 2
        x, y = cos * x - sin * y, sin * x + cos * y
        return _sample_bilinear(images, x + middle[0], y + middle[1])


def _sample_bilinear(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns the images' colours at points (batch, height, width); the border is repeated.

    TensorFlow has an operation for this, but it does not run on TPUs.
    """
    height, width, channels = images.shape[1:]
    x, y = keras.ops.clip(x, 0, width - 1), keras.ops.clip(y, 0, height - 1)
    left, top = keras.ops.floor(x), keras.ops.floor(y)
    to_right, down = (keras.ops.cast(c, images.dtype)[..., None] for c in (x - left, y - top))
    left, top = keras.ops.cast(left, "int32"), keras.ops.cast(top, "int32")
    right, bottom = keras.ops.minimum(left + 1, width - 1), keras.ops.minimum(top + 1, height - 1)
    pixels = keras.ops.reshape(images, (-1, height * width, channels))

    def row(y: tf.Tensor) -> tf.Tensor:
        start, end = (tf.gather(pixels, y * width + x, batch_dims=1) for x in (left, right))
        return start + (end - start) * to_right

    upper, lower = row(top), row(bottom)
    return upper + (lower - upper) * down
