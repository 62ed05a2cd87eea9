"""Running a model on faces, and what its probabilities say about an age.

Each face is seen twice, as it is and as its mirror image.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from tqdm import tqdm

from agelib.faces.images import resize
from agelib.faces.shards import FaceSet
from agelib.labels import MIN_AGE

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras, tf

Graph = Callable[[np.ndarray], dict[str, Any]]  # from crops to tensors by output

# Faces, each seen twice: what large networks hold of more fills a GPU.
_AT_A_TIME, _AT_SIZE = 128, 160

SHARE = 0.8  # of the faces whose age should lie in their interval
_LEAST, _MOST = 0.5, 5.0
# How far the logarithm of a temperature is from 0, as a rule: what few faces say counts against it.
_SPREAD = 0.2
_BINS = 15


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


def fit_temperature(
    views: np.ndarray, true: np.ndarray, highest: np.ndarray | None = None
) -> float:
    """Returns by what to divide logits so that their probabilities come true most often.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; here the mean over the views
    of a face is what must come true, as that is the answer.

    A few faces on which all is right, or wrong, would ask for anything. The temperature is
    therefore the most likely one given the faces and a log-normal prior around 1, which decides
    where there are ten faces, and matters less than their choice where there are a thousand.

    Args:
        views: Probabilities of shape (views, n, classes).
        true: Codes of the classes, shape (n,).
        highest: The last codes of labels that are ranges and begin at `true`.

    Returns:
        Below 1 if the model doubts too much, above 1 if it is too sure; from 0.5 to 5.
    """
    logits = np.log(np.maximum(views, np.finfo(np.float32).tiny))
    classes = np.arange(views.shape[-1])
    last = true if highest is None else highest
    allowed = (classes >= true[:, None]) & (classes <= last[:, None])

    def negative_log_posterior(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        probabilities = (scaled / scaled.sum(axis=-1, keepdims=True)).mean(axis=0)
        likelihoods = np.maximum((probabilities * allowed).sum(axis=1), 1e-12)
        return (log_temperature / _SPREAD) ** 2 / 2 - float(np.log(likelihoods).sum())

    found = minimize_scalar(
        negative_log_posterior, bounds=np.log([_LEAST, _MOST]), method="bounded"
    )
    return float(np.exp(found.x))


def reliability(confidence: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Returns how often answers are right, in fifteen steps of how sure they are.

    Args:
        confidence: Probability of each answer, 0 to 1, shape (n,).
        right: Whether each is right, shape (n,).

    Returns:
        A row for each step that has answers: mean `confidence`, `accuracy` and number of `faces`.
    """
    step = np.minimum((np.asarray(confidence) * _BINS).astype(int), _BINS - 1)
    table = pd.DataFrame({"confidence": confidence, "accuracy": np.asarray(right, float)})
    steps = table.groupby(step)
    return steps.mean().assign(faces=steps.size()).reset_index(drop=True)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Returns the expected calibration error: how far sureness and accuracy lie apart, 0 to 1.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015.

    Args:
        confidence: As for `reliability`.
        right: As for `reliability`.
    """
    steps = reliability(confidence, right)
    gaps = (steps["confidence"] - steps["accuracy"]).abs()
    return float(np.average(gaps, weights=steps["faces"]))


def median_age(ages: np.ndarray) -> np.ndarray:
    """Returns the estimated age: the one that a face's is as likely below as above.

    No other is off by fewer years on average, as far as the probabilities come true; the mean of
    a distribution over 1 to 85 is drawn away from both ends.

    Args:
        ages: Probabilities of the years 1 to 85, shape (n, 85).

    Returns:
        Whole years, int of shape (n,).
    """
    return _quantile(ages, 0.5)


def age_interval(ages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ages between which a face's lies with a probability of 80 %.

    Args:
        ages: Probabilities of the years 1 to 85, shape (n, 85).

    Returns:
        The youngest and the oldest age, whole years, each of shape (n,): as much probability is
        left out below as above.
    """
    tail = (1 - SHARE) / 2
    return _quantile(ages, tail), _quantile(ages, 1 - tail)


def _quantile(ages: np.ndarray, share: float) -> np.ndarray:
    below = ages.cumsum(axis=1)
    # Sums of half floats end a little off 1.
    return (below >= share * below[:, -1:]).argmax(axis=1) + MIN_AGE
