"""Running a model on faces: each is seen twice, as it is and as its mirror image."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from agelib.faces.images import resize
from agelib.faces.shards import FaceSet

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras, tf

Graph = Callable[[np.ndarray], dict[str, Any]]  # from crops to tensors by output

# Faces, each seen twice: what large networks hold of more fills a GPU.
_AT_A_TIME, _AT_SIZE = 128, 160


def estimate(model: "keras.Model", faces: FaceSet) -> dict[str, np.ndarray]:
    """Runs a model on all faces of a set.

    Args:
        model: From `agelib.model.network`.
        faces: Crops; they are resized to what the model sees.

    Returns:
        What `probabilities` returns.
    """
    return _mean_of_views(estimate_views(model, faces))


def estimate_views(model: "keras.Model", faces: FaceSet) -> dict[str, np.ndarray]:
    """Runs a model on all faces of a set and on their mirror images.

    Args:
        model: As for `estimate`.
        faces: As for `estimate`.

    Returns:
        The model's outputs by name, each of shape (2, n, ...).
    """
    size, graph = model.input_shape[1:3], inference_graph(model)
    steps = -(-len(faces) // _AT_A_TIME)
    batches = tqdm(faces.batches(_AT_A_TIME), f"evaluate {faces.split}", steps, unit=" batches")
    views = [_views(graph, np.stack([resize(image, size) for image in batch])) for batch in batches]
    return {name: np.concatenate([view[name] for view in views], axis=1) for name in views[0]}


def inference_graph(model: "keras.Model") -> Graph:
    """Returns a model as it is now, ready to run on any number of faces.

    Its weights are constants of the graph, so that TensorFlow folds BatchNorm into the convolutions
    before it where it can, which `tests/benchmarks/bench_predict.py` measures. The graph does not
    know what the model learns later.

    Args:
        model: From `agelib.model.network`.

    Returns:
        A function of RGB uint8 of shape (n, size, size, 3) for any n, traced already.
    """
    from agelib.backend import keras_settings, tf

    weights = [
        [variable.numpy() for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]

    @tf.function(
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)],
        autograph=False,
    )
    def graph(crops: "tf.Tensor") -> dict[str, "tf.Tensor"]:
        outputs, _ = model.stateless_call(*weights, tf.cast(crops, tf.float32), training=False)
        return outputs

    with keras_settings():
        graph.get_concrete_function()
    return graph


def probabilities(graph: Graph, crops: np.ndarray) -> dict[str, np.ndarray]:
    """Returns what a model says of face crops: the mean over each crop and its mirror image.

    Args:
        graph: From `inference_graph`.
        crops: RGB uint8 of shape (n, size, size, 3), of the model's size.

    Returns:
        `age` (n, 85), `age_branch` (n, 5) and `gender` (n, 2).
    """
    return _mean_of_views(_views(graph, crops))


def _views(graph: Graph, crops: np.ndarray) -> dict[str, np.ndarray]:
    parts = []
    larger = crops[0, ..., 0].size / _AT_SIZE**2
    at_a_time = max(1, min(_AT_A_TIME, int(_AT_A_TIME / larger)))
    for start in range(0, len(crops), at_a_time):
        part = crops[start : start + at_a_time]
        outputs = graph(np.concatenate([part, part[:, :, ::-1]]))
        parts.append({name: np.split(each.numpy(), 2) for name, each in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _mean_of_views(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: each.mean(axis=0) for name, each in views.items()}
