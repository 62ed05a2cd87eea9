"""Shards to tf.data: decoded in parallel, drawn anew each epoch, the same for the same seed."""

from collections.abc import Sequence

import numpy as np

from agelib.backend import tf
from agelib.faces import resize
from agelib.labels import MAX_AGE, MIN_AGE
from agelib.shards import FaceSet

LABEL_SIGMA = 2.0


def age_distributions(sigma: float = LABEL_SIGMA) -> np.ndarray:
    """Returns for each age a bell curve around it, to learn from neighbouring ages too.

    Label distribution learning: Geng et al., "Facial Age Estimation by Learning from Label
    Distributions", AAAI 2010.

    Returns:
        float32 of shape (85, 85); row i is the target for age i + 1 and sums to 1.
    """
    ages = np.arange(MIN_AGE, MAX_AGE + 1)
    curves = np.exp(-((ages[:, None] - ages) ** 2) / (2 * sigma**2))
    return (curves / curves.sum(axis=1, keepdims=True)).astype(np.float32)


def train_batches(
    faces: FaceSet,
    weights: np.ndarray,
    batch_size: int,
    image_size: int,
    seed: int,
    first_epoch: int = 0,
) -> tf.data.Dataset:
    """Returns an endless stream of shuffled training batches.

    An epoch draws as many faces as there are, each as often as its weight says, rounded up or
    down by chance. Epoch e has the same order whether training started at epoch 0 or continues at
    e, which is what makes a run that was cut off end as it would have. The last, smaller batch of
    each epoch is left out.

    Args:
        faces: The faces to train on.
        weights: How often each is shown relative to the others; float of shape (len(faces),).
        batch_size: Faces in a batch.
        image_size: Pixels per side.
        seed: Of the order.
        first_epoch: The epoch to begin with.

    Returns:
        Batches of (images, targets): uint8 of shape (batch_size, image_size, image_size, 3), and
        a dict with `age` (batch_size, 85), `age_branch` and `gender` (batch_size,).
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
    """Returns len(weights) numbers of faces in random order, drawn by systematic sampling."""
    random = np.random.default_rng(seed)
    count = len(weights)
    shuffled = random.permutation(count)
    ends = np.cumsum(weights[shuffled])
    points = (random.random() + np.arange(count)) / count * ends[-1]
    # Rounding may put the last point beyond the end.
    drawn = shuffled[np.searchsorted(ends, points, side="right").clip(max=count - 1)]
    return random.permutation(drawn)


def _load(indices: tf.data.Dataset, faces: FaceSet, image_size: int) -> tf.data.Dataset:
    """Turns batches of face numbers into batches of images and targets."""
    ages, branches, genders = (
        tf.constant(values, tf.int32) for values in (faces.age, faces.age_branch, faces.gender)
    )
    distributions = tf.constant(age_distributions())

    def read(batch: np.ndarray) -> np.ndarray:
        return np.array([faces.jpeg(i) for i in batch], dtype=object)

    def decode(jpeg: tf.Tensor) -> tf.Tensor:
        # The exact transform, so that training sees the very pixels that evaluation sees.
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
        targets = {
            "age": tf.gather(distributions, tf.gather(ages, batch) - MIN_AGE),
            "age_branch": tf.gather(branches, batch),
            "gender": tf.gather(genders, batch),
        }
        return images, targets

    return indices.map(load, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)
