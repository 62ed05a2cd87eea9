"""How the network learns: losses, optimizer, rates, whom it sees how often, how sure it may be."""

from typing import Any

import numpy as np

from agelib.backend import keras, tf
from agelib.datasets.tables import find
from agelib.faces.shards import FaceSet
from agelib.labels import AGE_BRANCHES, GENDERS, MAX_AGE, MIN_AGE
from agelib.model.inference import estimate_views, fit_temperature
from agelib.model.network import scale_logits, set_batch_norm_momentum

HEADS_RATE = 5  # times the learning rate, while new heads learn alone
LABEL_SIGMA = 2.0  # years
_WARM_UP_SHARE = 0.1
_WEIGHT_DECAY = 1e-3
_MOST_OFTEN = 20
_GENDER_SMOOTHING = 0.05
# The weights are averaged over this share of the steps, up to so many.
_AVERAGED_SHARE, _MOST_AVERAGED = 0.05, 1000


def sampling_weights(faces: FaceSet) -> np.ndarray:
    """Returns how often training shows each face, relative to the others.

    An age branch is shown as often as the square root of its number of faces: left alone, WIKI's
    hundred children would drown; as often as the others, they would be learned by heart. Within a
    branch, women and men are shown equally often, and a set with many wrong labels less often than
    the others. All this as far as no face is shown more than twenty times as often as another.

    Args:
        faces: The train faces of all sets.

    Returns:
        Weights above 0 of mean 1, float of shape (n,).
    """
    trust = np.array([find(name).sampling_weight for name in faces.sources])[faces.source]
    cells = faces.age_branch, faces.gender
    counts = np.zeros((len(AGE_BRANCHES), len(GENDERS)))
    np.add.at(counts, cells, trust)
    shares = np.sqrt(counts.sum(axis=1)) / np.maximum(1, (counts > 0).sum(axis=1))
    weights = trust * shares[cells[0]] / counts[cells]
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


def compile_model(model: keras.Model, steps: int) -> None:
    """Sets losses, metrics and the optimizer, which averages the weights over the last steps.

    Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on
    Control and Optimization 1992.

    Args:
        model: From `build_model`.
        steps: Training steps in all.
    """
    averaged = max(2, min(_MOST_AVERAGED, _AVERAGED_SHARE * steps))
    momentum = 1 - 1 / averaged
    optimizer = keras.optimizers.AdamW(
        weight_decay=_WEIGHT_DECAY, use_ema=True, ema_momentum=momentum
    )
    set_batch_norm_momentum(model, momentum)  # averaged weights want statistics as old as they are
    # Left to Keras, a checkpoint would come back without it, and lose all the optimizer's state.
    if model.get_layer("age_logits").compute_dtype == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    set_losses(model, optimizer)


def set_losses(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Compiles a model with this recipe's losses and metrics, and an optimizer as it is."""
    model.compile(
        optimizer,
        loss={"age": AgeLoss(), "age_branch": None, "gender": GenderLoss()},
        metrics={"age": [YearsOff()], "age_branch": [BranchAccuracy()], "gender": ["accuracy"]},
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


@keras.saving.register_keras_serializable("agelib")
class AgeLoss(keras.losses.Loss):
    """What the probabilities of the years 1 to 85 cost, given labels (batch, 2) of lowest, highest.

    An exact age is learned twice: as a distribution over the years, which knows that 38 is nearly
    39, and by the probability of its branch, which is what the results table counts. Of a range
    only the probability of its years is learned.
    """

    def __init__(self, name: str = "age_loss"):
        super().__init__(name=name)

    def call(self, true: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        """Returns the cost of each face, float32 of shape (batch,)."""
        ages = tf.range(MIN_AGE, MAX_AGE + 1)
        low, high = tf.unstack(tf.cast(true, tf.int32), axis=-1)
        exact = tf.cast(low == high, tf.float32)
        branches = tf.constant(AGE_BRANCHES)
        whole = tf.gather(branches, tf.searchsorted(branches[:, 1], low))
        allowed = tf.where(low == high, whole[:, 0], low), tf.where(low == high, whole[:, 1], high)
        within = (ages >= allowed[0][:, None]) & (ages <= allowed[1][:, None])
        logs = tf.math.log(tf.clip_by_value(predicted, 1e-7, 1.0))
        curve = tf.gather(tf.constant(age_distributions()), low - MIN_AGE)
        likelihood = tf.reduce_sum(tf.where(within, predicted, 0.0), axis=-1)
        return -exact * tf.reduce_sum(curve * logs, axis=-1) - tf.math.log(
            tf.clip_by_value(likelihood, 1e-7, 1.0)
        )

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras needs to make the loss again."""
        return {"name": self.name}


@keras.saving.register_keras_serializable("agelib")
class GenderLoss(keras.losses.Loss):
    """Cross-entropy of the gender, its labels smoothed: some of them are wrong.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016.
    """

    def __init__(self, name: str = "gender_loss"):
        super().__init__(name=name)

    def call(self, true: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
        """Returns the cost of each face, float32 of shape (batch,)."""
        one_hot = tf.one_hot(tf.cast(true, tf.int32), len(GENDERS))
        return keras.losses.categorical_crossentropy(
            one_hot, predicted, label_smoothing=_GENDER_SMOOTHING
        )

    def get_config(self) -> dict[str, Any]:
        """Returns what Keras needs to make the loss again."""
        return {"name": self.name}


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
    """Share of faces whose likeliest branch is the label's; a label of several does not count."""

    def __init__(self, name: str = "accuracy", dtype: str | None = None):
        super().__init__(name=name, dtype=dtype)

    def update_state(
        self, true: tf.Tensor, predicted: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> None:
        """Counts labels (batch,), -1 for several branches, and probabilities (batch, 5)."""
        true = tf.reshape(tf.cast(true, tf.int64), (-1,))
        right = tf.reshape(true == tf.argmax(predicted, axis=-1), (-1,))
        super().update_state(tf.cast(right, tf.float32), tf.cast(true >= 0, tf.float32))
