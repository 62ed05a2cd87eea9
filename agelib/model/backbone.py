"""EfficientNet and EfficientNet-Lite on the `efficientnet` package, and weights to start from."""

from typing import Any

from agelib import AgelibError, first_line
from agelib.backend import keras
from agelib.config import BACKBONES, Backbone
from agelib.model.imagenet import LITE0_WEIGHTS, set_arrays

DROP_CONNECT_RATE = 0.2


def build_backbone(
    name: str,
    image_size: int,
    weights: str | None = None,
    drop_connect_rate: float = DROP_CONNECT_RATE,
) -> keras.Model:
    """Builds a backbone: an EfficientNet without its classifier.

    The `efficientnet` package's own activation and dropout classes are exchanged for Keras' equal
    ones, and its drop-connect rate, which it divides by B0's number of blocks whatever the depth,
    is set so that it ends where the paper's does.

    Args:
        name: One of `agelib.config.BACKBONES`.
        image_size: Pixels per side.
        weights: None, "imagenet", "noisy-student", or the path of an .h5 or .npz file.
        drop_connect_rate: How often training leaves out the last block; rises evenly to this.

    Returns:
        A model from normalised RGB to features of shape (batch, h, w, channels).

    Raises:
        AgelibError: If the weights cannot be had.
    """
    spec = BACKBONES[name]
    if spec.lite and weights == "imagenet" and name == "EfficientNetLite0":
        weights = str(LITE0_WEIGHTS)
    build = _lite if spec.lite else _efficientnet
    try:
        if spec.lite and weights in ("imagenet", "noisy-student"):
            raise ValueError("only those of EfficientNetLite0 for ImageNet come with agelib")
        return build(name, spec, image_size, weights, drop_connect_rate)
    # Keras raises bare Exception for a download that fails, ValueError or OSError for a bad file.
    except Exception as error:
        if weights is None:
            raise
        raise AgelibError(
            f"{weights} weights for {name} cannot be had ({first_line(error)}): check the network "
            "and run this again, name a downloaded file as --weights, or use --weights none."
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
        carry_weights(
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
    # Scaled here, so that the package leaves the stem, the head, and their blocks' number alone.
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


def carry_weights(source: keras.Model, target: keras.Model) -> None:
    """Copies the weights of a `keras.applications` EfficientNet into a backbone, by layer name.

    Args:
        source: A `keras.applications.EfficientNetBx` without top. Its own normalisation is left
            behind; ours does the same.
        target: The backbone of the same name.

    Raises:
        ValueError: If a layer is missing or of another shape.
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
        if isinstance(layer, keras.layers.Activation) or config.get("activation") == "swish":
            config["activation"] = activation
        return type(layer).from_config(config)

    copy = keras.models.clone_model(network, clone_function=plain)
    copy.set_weights(network.get_weights())
    return copy
