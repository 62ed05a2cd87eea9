"""EfficientNet B0 to B7 on the `efficientnet` package, and the weights it starts from."""

import math

from agelib import AgelibError, first_line
from agelib.backend import keras

# Tan & Le, "EfficientNet: Rethinking Model Scaling", ICML 2019.
_DEPTH = {
    "EfficientNetB0": 1.0,
    "EfficientNetB1": 1.1,
    "EfficientNetB2": 1.2,
    "EfficientNetB3": 1.4,
    "EfficientNetB4": 1.8,
    "EfficientNetB5": 2.2,
    "EfficientNetB6": 2.6,
    "EfficientNetB7": 3.1,
}
DROPOUT = {
    "EfficientNetB0": 0.2,
    "EfficientNetB1": 0.2,
    "EfficientNetB2": 0.3,
    "EfficientNetB3": 0.3,
    "EfficientNetB4": 0.4,
    "EfficientNetB5": 0.4,
    "EfficientNetB6": 0.5,
    "EfficientNetB7": 0.5,
}
_B0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
DROP_CONNECT_RATE = 0.2
# Keras' 0.99 needs hundreds of steps to forget its start; small data sets have fewer an epoch.
_BATCH_NORM_MOMENTUM = 0.9


def build_backbone(
    name: str,
    image_size: int,
    weights: str | None = None,
    drop_connect_rate: float = DROP_CONNECT_RATE,
) -> keras.Model:
    """Builds an EfficientNet without its top, on the `efficientnet` package.

    The package's own activation and dropout classes are exchanged for Keras' equal ones, and its
    drop-connect rate, which it divides by B0's number of blocks whatever the depth, is set so
    that it ends where the paper's does.

    Args:
        name: "EfficientNetB0" to "EfficientNetB7".
        image_size: Pixels per side.
        weights: None, "imagenet", "noisy-student" or the path of an .h5 file.
        drop_connect_rate: How often training leaves out the last block; rises evenly to this.

    Returns:
        A model from normalised RGB to features of shape (batch, h, w, channels).

    Raises:
        AgelibError: If the weights cannot be had.
    """
    # Imported here, after `backend` has loaded TensorFlow quietly.
    import efficientnet.tfkeras as efficientnet

    blocks = sum(math.ceil(_DEPTH[name] * repeats) for repeats in _B0_BLOCKS)
    shape = (image_size, image_size, 3)
    try:
        network = getattr(efficientnet, name)(
            include_top=False,
            weights=None if weights == "imagenet" else weights,
            input_shape=shape,
            drop_connect_rate=drop_connect_rate * sum(_B0_BLOCKS) / blocks,
        )
        backbone = keras.models.clone_model(network, clone_function=_plain)
        backbone.set_weights(network.get_weights())
        if weights == "imagenet":
            applications = getattr(keras.applications, name)
            carry_weights(
                applications(include_top=False, weights="imagenet", input_shape=shape), backbone
            )
    # Keras raises bare Exception for a download that fails, ValueError or OSError for a bad file.
    except Exception as error:
        if weights is None:
            raise
        raise AgelibError(
            f"{weights} weights for {name} cannot be had ({first_line(error)}): check the network "
            "and run this again, name a downloaded .h5 file as --weights, or use --weights none."
        ) from error
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


def _plain(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns Keras' own equal of one of the `efficientnet` package's layers."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.Dropout):
        return keras.layers.Dropout.from_config(config)
    if getattr(getattr(layer, "activation", None), "__name__", "") == "swish":
        config["activation"] = "silu"
    if isinstance(layer, keras.layers.BatchNormalization):
        config["momentum"] = _BATCH_NORM_MOMENTUM
    return type(layer).from_config(config)
