"""How sure a model is, against how often it is right."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from agelib.labels import MIN_AGE

SHARE = 0.8  # of the faces whose age should lie in their interval
_LEAST, _MOST = 0.5, 5.0
# How far the logarithm of a temperature is from 0, as a rule: what few faces say counts against it.
_SPREAD = 0.2
_BINS = 15


def fit_temperature(views: np.ndarray, true: np.ndarray) -> float:
    """Returns by what to divide logits so that their probabilities come true most often.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; here the mean over the views
    of a face is what must come true, as that is the answer.

    A few faces on which all is right, or wrong, would ask for anything. The temperature is
    therefore the most likely one given the faces and a log-normal prior around 1, which decides
    where there are ten faces, and no longer matters where there are a thousand.

    Args:
        views: Probabilities of shape (views, n, classes).
        true: Codes of the classes, shape (n,).

    Returns:
        Below 1 if the model doubts too much, above 1 if it is too sure; from 0.5 to 5.
    """
    logits = np.log(np.maximum(views, np.finfo(np.float32).tiny))
    faces = np.arange(len(true))

    def negative_log_posterior(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
        probabilities = (scaled / scaled.sum(axis=-1, keepdims=True)).mean(axis=0)
        likelihood = np.log(np.maximum(probabilities[faces, true], 1e-12)).sum()
        return (log_temperature / _SPREAD) ** 2 / 2 - float(likelihood)

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
