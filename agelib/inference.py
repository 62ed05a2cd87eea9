"""Running a model on faces: each is seen twice, as it is and as its mirror image."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from agelib.faces import resize
from agelib.shards import FaceSet

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras

_AT_A_TIME = 128  # faces, each seen twice: what large networks hold of more fills a GPU


def estimate(model: "keras.Model", faces: FaceSet, batch_size: int = 256) -> dict[str, np.ndarray]:
    """Runs a model on all faces of a set.

    Args:
        model: From `agelib.model`.
        faces: Crops; they are resized to what the model sees.
        batch_size: Faces at a time.

    Returns:
        What `probabilities` returns.
    """
    return _mean_of_views(estimate_views(model, faces, batch_size))


def estimate_views(
    model: "keras.Model", faces: FaceSet, batch_size: int = 256
) -> dict[str, np.ndarray]:
    """Runs a model on all faces of a set and on their mirror images.

    Args:
        model: As for `estimate`.
        faces: As for `estimate`.
        batch_size: As for `estimate`.

    Returns:
        The model's outputs by name, each of shape (2, n, ...).
    """
    size = model.input_shape[1:3]
    steps = -(-len(faces) // batch_size)
    batches = tqdm(faces.batches(batch_size), f"evaluate {faces.split}", steps, unit=" batches")
    views = [_views(model, np.stack([resize(image, size) for image in batch])) for batch in batches]
    return {name: np.concatenate([view[name] for view in views], axis=1) for name in views[0]}


def probabilities(model: "keras.Model", crops: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a model says of face crops: the mean over each crop and its mirror image.

    Args:
        model: From `agelib.model`.
        crops: RGB uint8 of shape (n, size, size, 3), of the model's size.

    Returns:
        `age` (n, 85), `age_branch` (n, 5) and `gender` (n, 2).
    """
    return _mean_of_views(_views(model, crops))


def _views(model: "keras.Model", crops: np.ndarray) -> dict[str, np.ndarray]:
    parts = []
    for start in range(0, len(crops), _AT_A_TIME):
        part = crops[start : start + _AT_A_TIME]
        outputs = _graph(model)(np.concatenate([part, part[:, :, ::-1]]))
        parts.append({name: np.split(each.numpy(), 2) for name, each in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


@functools.lru_cache(maxsize=2)
def _graph(model: "keras.Model") -> Callable[[np.ndarray], dict[str, Any]]:
    """Returns the model traced once, for any number of faces; Keras' predict traces it again."""
    from agelib.backend import tf

    return tf.function(
        lambda images: model(tf.cast(images, tf.float32), training=False),
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)],
        autograph=False,
    )


def _mean_of_views(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: each.mean(axis=0) for name, each in views.items()}
