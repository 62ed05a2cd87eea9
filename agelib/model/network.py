"""The network: an EfficientNet(-Lite) of the `efficientnet` package, with two heads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agelib import AgelibError, first_line
from agelib.backbones import BACKBONES, DROP_CONNECT_RATE, Backbone
from agelib.backend import keras, keras_settings
from agelib.labels import AGE_BRANCHES, GENDERS, MAX_AGE, MIN_AGE
from agelib.model.augment import build_augmentation
from agelib.model.imagenet import set_arrays
from agelib.model.saved import load_model, model_path
from agelib.model.teachers import Teachers


def build_model(
    backbone: str,
    image_size: int,
    weights: str | None = None,
    augment: bool = True,
    drop_connect_rate: float = DROP_CONNECT_RATE,
    precision: str = "float32",
    teachers: Sequence[str] = (),
) -> keras.Model:
    """Builds the network that estimates age and gender from a face, with settings as in `Config`.

    It takes RGB of 0 to 255 in shape (batch, image_size, image_size, 3), and with `augment` varies
    it in training. It gives a dict of probabilities: `age` (batch, 85) for the years 1 to 85,
    `age_branch` (batch, 5), their sums over each branch, and `gender` (batch, 2). `precision` is
    a Keras dtype policy, such as "mixed_float16". `teachers` add to the loss. Raises AgelibError if
    the weights or a teacher are not available or do not fit.
    """
    weights = str(model_path(weights)) if weights else None
    whole = str(weights).endswith(".keras")
    inputs = keras.Input((image_size, image_size, 3), name="image", dtype="float32")
    with keras_settings(precision):
        image = _augmented(inputs) if augment else inputs
        x = _normalised(image, backbone)
        x = build_backbone(backbone, image_size, None if whole else weights, drop_connect_rate)(x)
        x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
        x = keras.layers.Dropout(BACKBONES[backbone].dropout, name="dropout")(x)
        outputs = _heads(x)
        if teachers:
            outputs["age"] = Teachers(teachers, name="teachers", dtype="float32")(image, outputs)
        model = keras.Model(inputs, outputs, name="agelib")
    if whole:
        _copy_weights(model, Path(weights))
    return model


def _augmented(image: keras.KerasTensor) -> keras.KerasTensor:
    with keras_settings("float32"):  # 16-bit floats are too coarse for pixels
        return build_augmentation()(image)


def _normalised(image: keras.KerasTensor, backbone: str) -> keras.KerasTensor:
    with keras_settings("float32"):
        mean, deviation = np.array([BACKBONES[backbone].mean, BACKBONES[backbone].deviation])
        scale, offset = (1 / deviation).tolist(), (-mean / deviation).tolist()
        return keras.layers.Rescaling(scale, offset, name="normalisation")(image)


def _heads(features: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
    age = keras.layers.Dense(MAX_AGE - MIN_AGE + 1, name="age_logits")(features)
    age = keras.layers.Softmax(dtype="float32", name="age")(age)
    gender = keras.layers.Dense(len(GENDERS), name="gender_logits")(features)
    gender = keras.layers.Softmax(dtype="float32", name="gender")(gender)
    return {"age": age, "age_branch": _branch_sums()(age), "gender": gender}


def _branch_sums() -> keras.Model:
    """Returns the sums over the years of each branch, as one layer that plain Keras reads."""
    age = keras.Input((MAX_AGE - MIN_AGE + 1,), dtype="float32")
    sums = [
        keras.ops.sum(age[:, low - MIN_AGE : high - MIN_AGE + 1], axis=1, keepdims=True)
        for low, high in AGE_BRANCHES
    ]
    return keras.Model(age, keras.ops.concatenate(sums, axis=1), name="age_branch")


def backbone_of(model: keras.Model) -> keras.Model:
    """Returns the backbone inside a model from `build_model`; its `trainable` freezes it."""
    # Augmentation and the sums are models inside the model too, but have no weights.
    [backbone] = [each for each in model.layers if isinstance(each, keras.Model) and each.weights]
    return backbone


def set_batch_norm_momentum(model: keras.Model, momentum: float) -> None:
    """Sets the momentum, 0 to 1, of the statistics of all BatchNorm layers in the backbone."""
    for layer in backbone_of(model).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


def scale_logits(model: keras.Model, head: str, temperature: float) -> None:
    """Divides the logits of a head, "age" or "gender", by a temperature, in the weights."""
    layer = model.get_layer(f"{head}_logits")
    layer.set_weights([weights / temperature for weights in layer.get_weights()])


def _copy_weights(model: keras.Model, path: Path) -> None:
    other, _ = load_model(path, any_branches=True)
    try:
        model.set_weights(other.get_weights())
    except ValueError as error:
        raise AgelibError(
            f"{path} does not fit: it is of another backbone; name it with its own --backbone."
        ) from error


def build_backbone(
    name: str, image_size: int, weights: str | None, drop_connect_rate: float
) -> keras.Model:
    """Builds one of `BACKBONES`, without its classifier, of Keras' own layers.

    It turns normalised RGB into features of shape (batch, h, w, channels). `weights` are None,
    "imagenet", "noisy-student", or the path of an .h5 or .npz file. Training leaves out the last
    block as often as `drop_connect_rate` says, those before it linearly less. Raises AgelibError if
    the weights are not available.
    """
    if weights == "imagenet" and BACKBONES[name].imagenet:
        weights = str(BACKBONES[name].imagenet)
    if BACKBONES[name].lite and weights in ("imagenet", "noisy-student"):
        raise AgelibError(
            f"{weights} weights for {name} are not part of agelib: use --weights none, or "
            "--backbone EfficientNetLite0 with --weights imagenet, or name as --weights an .npz "
            "file that python -m agelib.model.imagenet wrote (for Lite1 and Lite2)."
        )
    try:
        return _efficientnet(name, image_size, weights, drop_connect_rate)
    # Keras raises bare Exception for a download that fails, ValueError or OSError for a bad file.
    except Exception as error:
        if weights is None:
            raise
        network = "" if Path(weights).suffix else "check the network and run this again, "
        raise AgelibError(
            f"{weights} weights for {name} are not available ({first_line(error)}): {network}name "
            "a file of this backbone's weights as --weights, or use --weights none."
        ) from error


def _efficientnet(
    name: str, image_size: int, weights: str | None, drop_connect_rate: float
) -> keras.Model:
    # Imported here, after `backend` has loaded TensorFlow quietly.
    from efficientnet import inject_tfkeras_modules
    from efficientnet.model import EfficientNet

    spec, shape = BACKBONES[name], (image_size, image_size, 3)
    from_arrays = str(weights).endswith(".npz")
    network = inject_tfkeras_modules(EfficientNet)(
        width_coefficient=1.0 if spec.lite else spec.width,
        depth_coefficient=1.0,  # `_blocks` are that deep already
        default_resolution=image_size,
        blocks_args=_blocks(spec),
        model_name=name if spec.lite else name.lower().replace("netb", "net-b"),
        include_top=False,
        weights=None if weights == "imagenet" or from_arrays else weights,
        input_shape=shape,
        drop_connect_rate=drop_connect_rate,
    )
    backbone = _plain_copy(network, "relu6" if spec.lite else "silu")
    if from_arrays:
        set_arrays(backbone, weights)
    elif weights == "imagenet":  # the package's own address is dead
        build = getattr(keras.applications, name)
        source = build(include_top=False, weights="imagenet", input_shape=shape)
        for layer in backbone.layers:
            if layer.weights:
                layer.set_weights(source.get_layer(layer.name).get_weights())
    return backbone


def _blocks(spec: Backbone) -> list:
    """Returns the blocks of a network, repeated as often as its depth asks for.

    The `efficientnet` package would scale those of EfficientNet-Lite otherwise, and would divide
    the drop-connect rate by B0's number of blocks whatever the depth.
    """
    from efficientnet.model import DEFAULT_BLOCKS_ARGS, round_filters, round_repeats

    blocks = [
        block._replace(num_repeat=round_repeats(block.num_repeat, spec.depth))
        for block in DEFAULT_BLOCKS_ARGS
    ]
    if not spec.lite:
        return blocks
    for end in (0, -1):
        blocks[end] = DEFAULT_BLOCKS_ARGS[end]
    return [
        block._replace(
            se_ratio=None,
            input_filters=round_filters(block.input_filters, spec.width, 8),
            output_filters=round_filters(block.output_filters, spec.width, 8),
        )
        for block in blocks
    ]


def _plain_copy(network: keras.Model, activation: str) -> keras.Model:
    """Returns the same network, with the same weights, of Keras' own layers."""

    def plain(layer: keras.layers.Layer) -> keras.layers.Layer:
        config: dict[str, Any] = layer.get_config()
        if isinstance(layer, keras.layers.Dropout):
            return keras.layers.Dropout.from_config(config)
        if getattr(getattr(layer, "activation", None), "__name__", "") == "swish":
            config["activation"] = activation
        return type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=plain)
    copy.set_weights(network.get_weights())
    return copy
