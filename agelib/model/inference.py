"""Inference: probabilities of faces, their calibration, and estimates of age.

The model runs on each face and on its mirror image.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from tqdm import tqdm

from agelib.faces.images import resize
from agelib.faces.shards import FaceSet
from agelib.labels import MIN_AGE

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras, tf

Graph = Callable[[np.ndarray], dict[str, Any]]  # from crops to tensors by output

# Faces and their pixels in a batch: more would fill a GPU's memory with large networks.
BATCH, _BATCH_PIXELS = 128, 128 * 160**2

_SHARE = 0.8  # of the faces whose age should lie in their interval
_LEAST, _MOST = 0.5, 5.0  # temperatures
_PRIOR_SIGMA = 0.2  # of the logarithm of a temperature
_BINS = 15


def estimate(model: "keras.Model", faces: FaceSet) -> dict[str, np.ndarray]:
    """Returns what `probabilities` does, of all faces of a set, resized to the model's input."""
    return _mean_of_views(estimate_views(model, faces))


def estimate_views(model: "keras.Model", faces: FaceSet) -> dict[str, np.ndarray]:
    """Returns a model's outputs by name for all faces and their mirror images, (2, n, ...)."""
    size, graph = model.input_shape[1:3], inference_graph(model)
    steps = -(-len(faces) // BATCH)
    batches = tqdm(faces.batches(BATCH), f"evaluate {faces.split}", steps, unit=" batches")
    views = [_views(graph, np.stack([resize(image, size) for image in batch])) for batch in batches]
    return {name: np.concatenate([view[name] for view in views], axis=1) for name in views[0]}


def inference_graph(model: "keras.Model") -> Graph:
    """Returns a model as a traced function of RGB uint8 of shape (n, size, size, 3) for any n.

    The weights are constants, so that TensorFlow folds BatchNorm into convolutions, which
    `tests/benchmarks/bench_predict.py` measures. Later changes to the model have no effect.
    """
    from agelib.backend import keras_settings, tf

    weights = [
        [variable.numpy() for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    ]
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)]

    @tf.function(input_signature=signature, autograph=False)
    def graph(crops: "tf.Tensor") -> dict[str, "tf.Tensor"]:
        outputs, _ = model.stateless_call(*weights, tf.cast(crops, tf.float32), training=False)
        return outputs

    with keras_settings():
        graph.get_concrete_function()
    return graph


def probabilities(graph: Graph, crops: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `age` (n, 85), `age_branch` (n, 5) and `gender` (n, 2) of face crops.

    They are means over each crop, RGB uint8 of the model's size, and its mirror image.
    """
    return _mean_of_views(_views(graph, crops))


def _views(graph: Graph, crops: np.ndarray) -> dict[str, np.ndarray]:
    parts = []
    at_a_time = max(1, min(BATCH, _BATCH_PIXELS // crops[0, ..., 0].size))
    for start in range(0, len(crops), at_a_time):
        part = crops[start : start + at_a_time]
        outputs = graph(np.concatenate([part, part[:, :, ::-1]]))
        parts.append({name: np.split(each.numpy(), 2) for name, each in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _mean_of_views(views: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: each.mean(axis=0) for name, each in views.items()}


def fit_temperature(
    views: np.ndarray, true: np.ndarray, highest: np.ndarray | None = None
) -> float:
    """Returns the temperature that calibrates the mean probabilities over the views of a face.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, with a log-normal prior
    around 1: ten faces that are all right or all wrong would ask for an extreme temperature. With a
    thousand faces the prior hardly matters.

    It is from 0.5 to 5: below 1 if the model is underconfident, above 1 if it is overconfident.
    `views` are probabilities of shape (views, n, classes), `true` the codes of classes, shape (n,),
    `highest` the last codes of labels that are ranges and begin at `true`.
    """
    logits = np.log(np.maximum(views, np.finfo(np.float32).tiny))
    classes = np.arange(views.shape[-1])
    last = true if highest is None else highest
    allowed = (classes >= true[:, None]) & (classes <= last[:, None])

    def negative_log_posterior(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature), axis=-1).mean(axis=0)
        likelihoods = np.maximum((probabilities * allowed).sum(axis=1), 1e-12)
        return (log_temperature / _PRIOR_SIGMA) ** 2 / 2 - float(np.log(likelihoods).sum())

    found = minimize_scalar(
        negative_log_posterior, bounds=np.log([_LEAST, _MOST]), method="bounded"
    )
    return float(np.exp(found.x))


def reliability(confidence: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Returns how often answers of some confidence, 0 to 1, are right: in up to fifteen bins.

    A row for each bin that has answers: mean `confidence`, `accuracy` and number of `faces`.
    """
    bins = np.minimum((np.asarray(confidence) * _BINS).astype(int), _BINS - 1)
    table = pd.DataFrame({"confidence": confidence, "accuracy": np.asarray(right, float)})
    groups = table.groupby(bins)
    return groups.mean().assign(faces=groups.size()).reset_index(drop=True)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Returns the expected calibration error, 0 to 1, of what `reliability` takes.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.
    """
    bins = reliability(confidence, right)
    gaps = (bins["confidence"] - bins["accuracy"]).abs()
    return float(np.average(gaps, weights=bins["faces"]))


def median_age(ages: np.ndarray) -> np.ndarray:
    """Returns the medians, whole years, of probabilities of the years 1 to 85, shape (n, 85).

    They have the least expected error. The mean over 1 to 85 is biased at both ends.
    """
    return _quantile(ages, 0.5)


def age_interval(ages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and the highest age of the central 80 % of `ages`, as for `median_age`."""
    tail = (1 - _SHARE) / 2
    return _quantile(ages, tail), _quantile(ages, 1 - tail)


def _quantile(ages: np.ndarray, share: float) -> np.ndarray:
    below = ages.cumsum(axis=1)
    # Sums of 16-bit floats are not quite 1.
    return (below >= share * below[:, -1:]).argmax(axis=1) + MIN_AGE
