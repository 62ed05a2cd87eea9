"""Shards to tf.data: decoded in parallel, sampled again each epoch, reproducible by seed."""

from collections.abc import Sequence

import numpy as np

from agelib.backend import tf
from agelib.faces.images import resize
from agelib.faces.shards import FaceSet
from agelib.labels import age_branch


def train_batches(
    faces: FaceSet,
    weights: np.ndarray,
    batch_size: int,
    image_size: int,
    seed: int,
    first_epoch: int,
) -> tf.data.Dataset:
    """Returns an endless stream of shuffled training batches.

    An epoch draws as many faces as there are, each as often as its weight, float of shape
    (len(faces),), says relative to the others, rounded up or down at random. Epoch e has the same
    order whether training started at epoch 0 or continues at e, so that a resumed run gives the
    same model. The last, smaller batch of each epoch is left out.

    A batch is (images, targets): uint8 of shape (batch_size, image_size, image_size, 3), and a dict
    of int32: `age` (batch_size, 2), the lowest and the highest year of the label, equal where it is
    exact; `age_branch` (batch_size,), -1 where the label covers several; `gender` (batch_size,).
    """

    def shuffled(epoch: tf.Tensor) -> tf.data.Dataset:
        order = tf.numpy_function(lambda e: _draw(weights, [seed, e]), [epoch], tf.int64)
        order = tf.ensure_shape(order, (len(faces),))
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    return _load(epochs.flat_map(shuffled), faces, image_size)


def ordered_batches(faces: FaceSet, batch_size: int, image_size: int) -> tf.data.Dataset:
    """Returns all faces once, in their order, in batches as `train_batches` gives them."""
    return _load(tf.data.Dataset.range(len(faces)).batch(batch_size), faces, image_size)


def _draw(weights: np.ndarray, seed: Sequence[int]) -> np.ndarray:
    """Returns len(weights) face indices in random order, by systematic sampling."""
    random = np.random.default_rng(seed)
    count = len(weights)
    shuffled = random.permutation(count)
    ends = np.cumsum(weights[shuffled])
    points = (random.random() + np.arange(count)) / count * ends[-1]
    # By rounding the last point may lie beyond the end.
    drawn = shuffled[np.searchsorted(ends, points, side="right").clip(max=count - 1)]
    return random.permutation(drawn)


def _load(indices: tf.data.Dataset, faces: FaceSet, image_size: int) -> tf.data.Dataset:
    branches = np.where(faces.age_branch == age_branch(faces.age_high), faces.age_branch, -1)
    labels = {
        "age": np.stack([faces.age, faces.age_high], axis=1),
        "age_branch": branches,
        "gender": faces.gender,
    }
    labels = {name: tf.constant(values, tf.int32) for name, values in labels.items()}

    def read(batch: np.ndarray) -> np.ndarray:
        return np.array([faces.jpeg(i) for i in batch], dtype=object)

    def decode(jpeg: tf.Tensor) -> tf.Tensor:
        # The exact transform, so that training gets the same pixels as evaluation.
        image = tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE")
        return tf.ensure_shape(image, (faces.crop_size, faces.crop_size, 3))

    def resize_all(images: np.ndarray) -> np.ndarray:
        return np.stack([resize(image, (image_size, image_size)) for image in images])

    def load(batch: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        jpegs = tf.ensure_shape(tf.numpy_function(read, [batch], tf.string), (None,))
        images = tf.map_fn(decode, jpegs, fn_output_signature=tf.uint8)
        if image_size != faces.crop_size:
            images = tf.numpy_function(resize_all, [images], tf.uint8)
            images = tf.ensure_shape(images, (None, image_size, image_size, 3))
        return images, {name: tf.gather(values, batch) for name, values in labels.items()}

    return indices.map(load, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
