"""How the network learns: losses, optimizer, rates, whom it sees how often, how sure it may be."""

from typing import Any

import numpy as np

from agelib.backend import keras, tf
from agelib.calibration import fit_temperature
from agelib.inference import estimate_views
from agelib.labels import AGE_BRANCHES, GENDERS, MIN_AGE
from agelib.model import scale_logits
from agelib.shards import FaceSet

HEADS_RATE = 5  # times the learning rate, while new heads learn alone
_WARM_UP_SHARE = 0.1
_WEIGHT_DECAY = 1e-3
_MOST_OFTEN = 20


def face_weights(age_branch: np.ndarray, gender: np.ndarray) -> np.ndarray:
    """Returns how often training shows each face, relative to the others.

    An age branch is shown as often as the square root of its number of faces: left alone, WIKI's
    hundred children would drown; as often as the others, they would be learned by heart. Within a
    branch, women and men are shown equally often. All this as far as no face is shown more than
    twenty times as often as another.

    Args:
        age_branch: Codes of 0 to 4, shape (n,).
        gender: Codes of 0 or 1, shape (n,).

    Returns:
        Weights above 0 of mean 1, float of shape (n,).
    """
    counts = np.zeros((len(AGE_BRANCHES), len(GENDERS)))
    np.add.at(counts, (age_branch, gender), 1)
    shares = np.sqrt(counts.sum(axis=1)) / np.maximum(1, (counts > 0).sum(axis=1))
    weights = (shares[:, None] / np.maximum(1, counts))[age_branch, gender]
    weights = np.minimum(weights, _MOST_OFTEN * weights.min())
    return weights / weights.mean()


def learning_rates(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns step -> learning rate: it warms up to its peak, then falls to 0 along a cosine.

    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    Args:
        peak: The highest rate.
        steps: Training steps in all.
    """
    warm_up = max(1, round(_WARM_UP_SHARE * steps))
    return keras.optimizers.schedules.CosineDecay(
        peak / (warm_up + 1), max(1, steps - warm_up), warmup_target=peak, warmup_steps=warm_up
    )


def compile_model(model: keras.Model) -> None:
    """Sets losses, metrics and the optimizer.

    The age is learned twice: as a distribution over the years, which knows that 38 is nearly 39,
    and by the probability of the right branch, which is what the results table counts.

    Args:
        model: From `build_model`.
    """
    optimizer = keras.optimizers.AdamW(weight_decay=_WEIGHT_DECAY)
    # Left to Keras, a checkpoint would come back without it, and lose all the optimizer's state.
    if model.get_layer("age_logits").compute_dtype == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer,
        loss={
            "age": "categorical_crossentropy",
            "age_branch": "sparse_categorical_crossentropy",
            "gender": "sparse_categorical_crossentropy",
        },
        metrics={"age": [YearsOff()], "age_branch": ["accuracy"], "gender": ["accuracy"]},
        # Left to Keras, XLA would compile for a CPU too, which then trains at a fifth of its speed.
        jit_compile=False,
    )


def calibrate(model: keras.Model, faces: FaceSet) -> dict[str, float]:
    """Makes a trained model as sure as its answers are right.

    Args:
        model: From `build_model`; its logits are scaled.
        faces: Those of people that it has not learned from.

    Returns:
        By what the logits of "age" and "gender" were divided.
    """
    views = estimate_views(model, faces)
    true = {"age": faces.age - MIN_AGE, "gender": faces.gender}
    temperatures = {head: fit_temperature(views[head], codes) for head, codes in true.items()}
    for head, temperature in temperatures.items():
        scale_logits(model, head, temperature)
    return temperatures


@keras.saving.register_keras_serializable("agelib")
class YearsOff(keras.metrics.MeanMetricWrapper):
    """Mean absolute difference, in years, between the likeliest age and the estimated median."""

    def __init__(self, name: str = "mae", dtype: str | None = None):
        super().__init__(_years_off, name=name, dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras needs to make the metric again."""
        return {"name": self.name, "dtype": self.dtype}


def _years_off(true: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    below = tf.cumsum(tf.cast(predicted, tf.float32), axis=-1)
    median = tf.reduce_sum(tf.cast(below < 0.5, tf.float32), axis=-1)
    return tf.abs(tf.cast(tf.argmax(true, axis=-1), tf.float32) - median)
