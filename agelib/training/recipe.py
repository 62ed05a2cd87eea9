"""How the network learns: losses, optimizer, rates, whom it sees how often, how sure it may be."""

import numpy as np

from agelib.backend import keras
from agelib.datasets.tables import find
from agelib.faces.shards import FaceSet
from agelib.labels import AGE_BRANCHES, GENDERS, MIN_AGE
from agelib.model.inference import estimate_views, fit_temperature
from agelib.model.losses import AgeLoss, BranchAccuracy, GenderLoss, YearsOff
from agelib.model.network import scale_logits, set_batch_norm_momentum

HEADS_RATE = 5  # times the learning rate, while new heads learn alone
_WARM_UP_SHARE = 0.1
_WEIGHT_DECAY = 1e-3
_MOST_OFTEN = 20
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
    true = {"age": (faces.age - MIN_AGE, faces.age_high - MIN_AGE), "gender": (faces.gender,)}
    temperatures = {head: fit_temperature(views[head], *codes) for head, codes in true.items()}
    for head, temperature in temperatures.items():
        scale_logits(model, head, temperature)
    return temperatures
