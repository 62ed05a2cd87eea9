"""Losses and metrics. They are here, not in `training`, because reading a checkpoint needs them."""

from typing import Any

import numpy as np

from agelib.backend import keras, tf
from agelib.labels import AGE_BRANCHES, GENDERS, MAX_AGE, MIN_AGE

_LABEL_SIGMA = 2.0  # years
_GENDER_SMOOTHING = 0.05


def age_distributions() -> np.ndarray:
    """Returns a normal distribution around each age: row i, which sums to 1, is for age i + 1.

    Label distribution learning: Geng et al., "Facial Age Estimation by Learning from Label
    Distributions", AAAI 2010. float32 of shape (85, 85).
    """
    ages = np.arange(MIN_AGE, MAX_AGE + 1)
    curves = np.exp(-((ages[:, None] - ages) ** 2) / (2 * _LABEL_SIGMA**2))
    return (curves / curves.sum(axis=1, keepdims=True)).astype(np.float32)


@keras.saving.register_keras_serializable("agelib")
class AgeLoss(keras.losses.Loss):
    """Loss of the probabilities of the years 1 to 85, given labels (batch, 2): lowest and highest.

    For an exact age it is the cross-entropy to `age_distributions`, for which 38 is nearly 39, plus
    the negative log-likelihood of its branch. For a range it is that of the range.
    """

    def call(self, true: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each face, float32 of shape (batch,)."""
        ages = tf.range(MIN_AGE, MAX_AGE + 1)
        low, high = tf.unstack(tf.cast(true, tf.int32), axis=-1)
        exact = tf.cast(low == high, tf.float32)
        branches = tf.constant(AGE_BRANCHES)
        branch = tf.gather(branches, tf.searchsorted(branches[:, 1], low))
        first = tf.where(low == high, branch[:, 0], low)
        last = tf.where(low == high, branch[:, 1], high)
        within = (ages >= first[:, None]) & (ages <= last[:, None])
        logs = tf.math.log(tf.clip_by_value(predicted, 1e-7, 1.0))
        curve = tf.gather(tf.constant(age_distributions()), low - MIN_AGE)
        likelihood = tf.reduce_sum(tf.where(within, predicted, 0.0), axis=-1)
        return -exact * tf.reduce_sum(curve * logs, axis=-1) - tf.math.log(
            tf.clip_by_value(likelihood, 1e-7, 1.0)
        )


@keras.saving.register_keras_serializable("agelib")
class GenderLoss(keras.losses.Loss):
    """Cross-entropy of the gender, with label smoothing, as some labels are wrong.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    """

    def call(self, true: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each face, float32 of shape (batch,)."""
        one_hot = tf.one_hot(tf.cast(true, tf.int32), len(GENDERS))
        return keras.losses.categorical_crossentropy(
            one_hot, predicted, label_smoothing=_GENDER_SMOOTHING
        )


@keras.saving.register_keras_serializable("agelib")
class YearsOff(keras.metrics.MeanMetricWrapper):
    """Mean distance in years of the estimated median from the label, 0 within a range."""

    def __init__(self, name: str = "mae", dtype: str | None = None):
        super().__init__(_years_off, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras needs to make the metric again."""
        return {"name": self.name, "dtype": self.dtype}


def _years_off(true: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    below = tf.cumsum(tf.cast(predicted, tf.float32), axis=-1)
    median = MIN_AGE + tf.reduce_sum(tf.cast(below < 0.5, tf.float32), axis=-1)
    low, high = tf.unstack(tf.cast(true, tf.float32), axis=-1)
    return tf.maximum(0.0, tf.maximum(low - median, median - high))


@keras.saving.register_keras_serializable("agelib")
class BranchAccuracy(keras.metrics.Mean):
    """Share of faces whose most likely branch is the label's; labels of several do not count."""

    def __init__(self, name: str = "accuracy", dtype: str | None = None):
        super().__init__(name=name, dtype=dtype)

    def update_state(
        self, true: tf.Tensor, predicted: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> None:
        """Counts labels (batch,), -1 for several branches, and probabilities (batch, 5)."""
        true = tf.cast(true, tf.int64)
        right = tf.equal(true, tf.argmax(predicted, axis=-1))  # == forgets the shape in a graph
        super().update_state(tf.cast(right, tf.float32), tf.cast(true >= 0, tf.float32))
