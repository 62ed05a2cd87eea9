"""The network: an EfficientNet(-Lite) of the `efficientnet` package, with two heads."""

from pathlib import Path
from typing import Any

from agelib import AgelibError, first_line
from agelib.backend import keras, keras_settings
from agelib.config import BACKBONES, Backbone
from agelib.labels import AGE_BRANCHES, GENDERS, MAX_AGE, MIN_AGE
from agelib.model.augment import build_augmentation
from agelib.model.imagenet import LITE0_WEIGHTS, set_arrays
from agelib.model.saved import PRETRAINED, load_model

# What the ImageNet weights were trained with, on pixels of 0 to 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_LITE_MEAN = (127.0, 127.0, 127.0)
_LITE_STD = (128.0, 128.0, 128.0)

DROP_CONNECT_RATE = 0.2


def build_model(
    backbone: str,
    image_size: int,
    weights: str | None = None,
    augment: bool = True,
    drop_connect_rate: float = DROP_CONNECT_RATE,
    precision: str = "float32",
) -> keras.Model:
    """Builds the network that estimates age and gender from a face.

    Args:
        backbone: One of `agelib.config.BACKBONES`.
        image_size: Pixels per side.
        weights: As in `agelib.config.Config`; None starts from scratch.
        augment: Whether the model varies images in training.
        drop_connect_rate: As for `build_backbone`.
        precision: Keras' name of the precision.

    Returns:
        A model from RGB of 0 to 255 in shape (batch, image_size, image_size, 3) to a dict of
        probabilities: `age` (batch, 85) for the years 1 to 85, `age_branch` (batch, 5), their sums
        over each branch, and `gender` (batch, 2).

    Raises:
        AgelibError: If the weights are not available or do not fit.
    """
    if weights == "agelib":
        weights = str(PRETRAINED)
    from_backbone = weights if not str(weights).endswith(".keras") else None
    inputs = keras.Input((image_size, image_size, 3), name="image", dtype="float32")
    with keras_settings(precision):
        x = _normalised(inputs, backbone, augment)
        x = build_backbone(backbone, image_size, from_backbone, drop_connect_rate)(x)
        x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
        x = keras.layers.Dropout(BACKBONES[backbone].dropout, name="dropout")(x)
        model = keras.Model(inputs, _heads(x), name="agelib")
    if weights and not from_backbone:
        _copy_weights(model, Path(weights))
    return model


def _normalised(image: keras.KerasTensor, backbone: str, augment: bool) -> keras.KerasTensor:
    # 16-bit floats are too coarse for pixels.
    with keras_settings("float32"):
        if augment:
            image = build_augmentation()(image)
        mean, std = (_LITE_MEAN, _LITE_STD) if BACKBONES[backbone].lite else (_MEAN, _STD)
        return keras.layers.Rescaling(
            [1 / s for s in std],
            [-m / s for m, s in zip(mean, std, strict=True)],
            name="normalisation",
        )(image)


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


def freeze_backbone(model: keras.Model) -> None:
    """Makes training change only the heads of a model from `build_model`."""
    _backbone_of(model).trainable = False


def unfreeze_backbone(model: keras.Model) -> None:
    """Makes training change the whole model again."""
    _backbone_of(model).trainable = True


def set_batch_norm_momentum(model: keras.Model, momentum: float) -> None:
    """Sets the momentum, 0 to 1, of the statistics of all BatchNorm layers in the backbone."""
    for layer in _backbone_of(model).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


def scale_logits(model: keras.Model, head: str, temperature: float) -> None:
    """Divides the logits of a head, "age" or "gender", by a temperature, in the weights."""
    layer = model.get_layer(f"{head}_logits")
    layer.set_weights([weights / temperature for weights in layer.get_weights()])


def _backbone_of(model: keras.Model) -> keras.Model:
    # Augmentation and the sums are models inside the model too, but have no weights.
    [backbone] = [each for each in model.layers if isinstance(each, keras.Model) and each.weights]
    return backbone


def _copy_weights(model: keras.Model, path: Path) -> None:
    """Copies the weights of another model of this kind."""
    other, _ = load_model(path, any_branches=True)
    try:
        model.set_weights(other.get_weights())
    except ValueError as error:
        raise AgelibError(
            f"{path} does not fit: it is of another backbone or image size; name it with its own "
            "--backbone."
        ) from error


def build_backbone(
    name: str,
    image_size: int,
    weights: str | None = None,
    drop_connect_rate: float = DROP_CONNECT_RATE,
) -> keras.Model:
    """Builds a backbone: an EfficientNet without its classifier, of Keras' own layers.

    The `efficientnet` package divides the drop-connect rate by B0's number of blocks whatever the
    depth; here it ends at the paper's value.

    Args:
        name: One of `agelib.config.BACKBONES`.
        image_size: Pixels per side.
        weights: None, "imagenet", "noisy-student", or the path of an .h5 or .npz file.
        drop_connect_rate: How often training drops the last block; rises linearly to this.

    Returns:
        A model from normalised RGB to features of shape (batch, h, w, channels).

    Raises:
        AgelibError: If the weights are not available.
    """
    spec = BACKBONES[name]
    if name == "EfficientNetLite0" and weights == "imagenet":
        weights = str(LITE0_WEIGHTS)
    if spec.lite and weights in ("imagenet", "noisy-student"):
        raise AgelibError(
            f"{weights} weights for {name} are not part of agelib: use --weights none, or "
            "--backbone EfficientNetLite0 with --weights imagenet, or name as --weights an .npz "
            "file that python -m agelib.model.imagenet made."
        )
    build = _lite if spec.lite else _efficientnet
    try:
        return build(name, spec, image_size, weights, drop_connect_rate)
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
    name: str, spec: Backbone, image_size: int, weights: str | None, drop_connect_rate: float
) -> keras.Model:
    # Imported here, after `backend` has loaded TensorFlow quietly.
    import efficientnet.tfkeras as efficientnet
    from efficientnet.model import DEFAULT_BLOCKS_ARGS, round_repeats

    shape = (image_size, image_size, 3)
    repeats = [block.num_repeat for block in DEFAULT_BLOCKS_ARGS]
    blocks = sum(round_repeats(count, spec.depth) for count in repeats)
    from_file = str(weights).endswith(".npz")
    network = getattr(efficientnet, name)(
        include_top=False,
        weights=None if weights == "imagenet" or from_file else weights,
        input_shape=shape,
        drop_connect_rate=drop_connect_rate * sum(repeats) / blocks,
    )
    backbone = _plain_copy(network, "silu")
    if weights == "imagenet":
        applications = getattr(keras.applications, name)
        copy_applications_weights(
            applications(include_top=False, weights="imagenet", input_shape=shape), backbone
        )
    if from_file:
        set_arrays(backbone, weights)
    return backbone


def _lite(
    name: str, spec: Backbone, image_size: int, weights: str | None, drop_connect_rate: float
) -> keras.Model:
    from efficientnet import inject_tfkeras_modules
    from efficientnet.model import DEFAULT_BLOCKS_ARGS, EfficientNet, round_filters, round_repeats

    ends = (0, len(DEFAULT_BLOCKS_ARGS) - 1)
    # Scaled here, as the package would scale the stem, the head and their blocks too.
    blocks = [
        block._replace(
            se_ratio=None,
            input_filters=round_filters(block.input_filters, spec.width, 8),
            output_filters=round_filters(block.output_filters, spec.width, 8),
            num_repeat=block.num_repeat
            if i in ends
            else round_repeats(block.num_repeat, spec.depth),
        )
        for i, block in enumerate(DEFAULT_BLOCKS_ARGS)
    ]
    network = inject_tfkeras_modules(EfficientNet)(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        default_resolution=image_size,
        blocks_args=blocks,
        model_name=name,
        include_top=False,
        weights=None,
        input_shape=(image_size, image_size, 3),
        drop_connect_rate=drop_connect_rate,
    )
    backbone = _plain_copy(network, "relu6")
    if str(weights).endswith(".npz"):
        set_arrays(backbone, weights)
    elif weights:
        backbone.load_weights(weights)
    return backbone


def copy_applications_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of a `keras.applications` EfficientNet into a backbone, by layer name.

    The source's layer of normalisation is not copied. Raises ValueError if a layer is missing or of
    another shape.
    """
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


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
