"""The training recipe: losses, optimizer, learning rates, sampling weights and calibration."""

import numpy as np

from agelib.backend import keras
from agelib.datasets.registry import find_dataset
from agelib.faces.shards import FaceSet
from agelib.labels import AGE_BRANCHES, GENDERS, MIN_AGE
from agelib.model.inference import estimate_views, fit_temperature
from agelib.model.losses import AgeLoss, BranchAccuracy, GenderLoss, YearsOff
from agelib.model.network import scale_logits, set_batch_norm_momentum
from agelib.model.teachers import TEACHERS_SHARE, Teachers

HEADS_RATE = 5  # times the learning rate, while only new heads learn
_WARM_UP_SHARE = 0.1
_WEIGHT_DECAY = 0.3
_MOST_OFTEN = 20
# Share of the steps that the weights are averaged over, and the most steps. At a high learning
# rate, weight decay renews the weights so fast that an average over a thousand steps fits none.
_AVERAGED_SHARE, _MOST_AVERAGED = 0.05, 100


def sampling_weights(faces: FaceSet) -> np.ndarray:
    """Returns how often training draws each face: weights of mean 1, float of shape (n,).

    An age branch is drawn in proportion to the square root of its number of faces: in proportion to
    the number itself, WIKI's hundred children would hardly count; all branches equally often, the
    network would overfit to them. Within a branch, women and men are drawn equally often, and faces
    of a set with many wrong labels less often. No face is drawn more than twenty times as often as
    another.
    """
    trust = np.array([find_dataset(name).sampling_weight for name in faces.sources])[faces.source]
    cells = faces.age_branch, faces.gender
    counts = np.zeros((len(AGE_BRANCHES), len(GENDERS)))
    np.add.at(counts, cells, trust)
    shares = np.sqrt(counts.sum(axis=1)) / np.maximum(1, (counts > 0).sum(axis=1))
    weights = trust * shares[cells[0]] / counts[cells]
    weights = np.minimum(weights, _MOST_OFTEN * weights.min())
    return weights / weights.mean()


def learning_rates(peak: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns the schedule over all steps: warm-up to the peak, then cosine decay to 0.

    Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    """
    warm_up = max(1, round(_WARM_UP_SHARE * steps))
    return keras.optimizers.schedules.CosineDecay(
        peak / (warm_up + 1), max(1, steps - warm_up), warmup_target=peak, warmup_steps=warm_up
    )


def compile_model(model: keras.Model, steps: int) -> None:
    """Sets losses, metrics and the optimizer, which averages weights over the last of the steps.

    Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", SIAM Journal on
    Control and Optimization 1992.
    """
    momentum = 1 - 1 / max(2, min(_MOST_AVERAGED, _AVERAGED_SHARE * steps))
    optimizer = keras.optimizers.AdamW(
        weight_decay=_WEIGHT_DECAY, use_ema=True, ema_momentum=momentum
    )
    set_batch_norm_momentum(model, momentum)  # averaged weights need statistics of the same age
    # Keras itself would wrap it after loading a checkpoint, and lose the optimizer's state.
    if model.get_layer("age_logits").compute_dtype == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    set_losses(model, optimizer)


def set_losses(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
    """Compiles a model with this recipe's losses and metrics, and the optimizer unchanged."""
    taught = any(isinstance(layer, Teachers) for layer in model.layers)
    share = 1 - TEACHERS_SHARE if taught else 1.0
    model.compile(
        optimizer,
        loss={"age": AgeLoss(), "age_branch": None, "gender": GenderLoss()},
        loss_weights={"age": share, "age_branch": None, "gender": share},
        metrics={"age": [YearsOff()], "age_branch": [BranchAccuracy()], "gender": ["accuracy"]},
        # By default Keras uses XLA on CPUs too, which then train at a fifth of their speed.
        jit_compile=False,
    )


def calibrate(model: keras.Model, faces: FaceSet) -> dict[str, float]:
    """Scales a model's logits to fit validation faces; returns the temperature of each head."""
    views = estimate_views(model, faces)
    true = {"age": (faces.age - MIN_AGE, faces.age_high - MIN_AGE), "gender": (faces.gender,)}
    temperatures = {head: fit_temperature(views[head], *codes) for head, codes in true.items()}
    for head, temperature in temperatures.items():
        scale_logits(model, head, temperature)
    return temperatures
