"""The network with its two heads, and the one file it is kept in.

A finished model is made of Keras' own layers alone, so that `keras.models.load_model` reads it
anywhere, without this package.
"""

import json
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

from agelib import AgelibError, first_line
from agelib.backend import keras, keras_settings
from agelib.config import BACKBONES
from agelib.files import atomic, remove_partials
from agelib.labels import AGE_BRANCHES, GENDERS, MAX_AGE, MIN_AGE
from agelib.model.augment import build_augmentation
from agelib.model.backbone import DROP_CONNECT_RATE, build_backbone

PRETRAINED = Path(__file__).parents[1] / "pretrained" / "model.keras"

# What the ImageNet weights were trained with, on pixels of 0 to 255.
_MEAN = (123.675, 116.28, 103.53)
_STD = (58.395, 57.12, 57.375)
_LITE_MEAN = (127.0, 127.0, 127.0)
_LITE_STD = (128.0, 128.0, 128.0)
_NOTE = "agelib.json"
# What reading a damaged or foreign model raises. TypeError: a later Keras wrote settings that this
# one does not know; UserWarning: see `load_model`.
_UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, OSError, UserWarning),
)

# Settings that Keras 3.14 and 3.15 brought, at the values that leave all as it was. Earlier
# versions, Colab's 3.13 among them, read no file that names them.
_LATER_SETTINGS = {
    "input_axes": None,
    "output_axes": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
}


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
        weights: As `agelib.config.Config` takes them; None starts from scratch.
        augment: Whether training images are varied.
        drop_connect_rate: As for `build_backbone`.
        precision: Keras' name of the precision to compute in.

    Returns:
        A model that takes RGB of 0 to 255 in shape (batch, image_size, image_size, 3) and gives a
        dict of probabilities: `age` (batch, 85) for the years 1 to 85, `age_branch` (batch, 5),
        their sums over each branch, and `gender` (batch, 2).

    Raises:
        AgelibError: If the weights cannot be had or do not fit.
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
        _start_from(model, Path(weights))
    return model


def _normalised(image: keras.KerasTensor, backbone: str, augment: bool) -> keras.KerasTensor:
    # Half floats would tell the levels of pixels apart too coarsely.
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
    return {"age": age, "age_branch": _branch_sums(age), "gender": gender}


def _branch_sums(age: keras.KerasTensor) -> keras.KerasTensor:
    sums = [
        keras.ops.sum(age[:, low - MIN_AGE : high - MIN_AGE + 1], axis=1, keepdims=True)
        for low, high in AGE_BRANCHES
    ]
    return keras.ops.concatenate(sums, axis=1)


def freeze_backbone(model: keras.Model) -> None:
    """Leaves the heads alone to be trained.

    Args:
        model: From `build_model`.
    """
    _backbone_of(model).trainable = False


def unfreeze_backbone(model: keras.Model) -> None:
    """Lets training reach the whole backbone again.

    Args:
        model: From `build_model`, its backbone frozen.
    """
    _backbone_of(model).trainable = True


def set_batch_norm_momentum(model: keras.Model, momentum: float) -> None:
    """Sets how much of the backbone's BatchNorm statistics each training step leaves as they were.

    Args:
        model: From `build_model`.
        momentum: 0 to 1.
    """
    for layer in _backbone_of(model).layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


def scale_logits(model: keras.Model, head: str, temperature: float) -> None:
    """Divides a head's logits by a temperature, in the weights, so that any reader has it.

    Args:
        model: From `build_model`.
        head: "age" or "gender".
        temperature: From `agelib.model.calibration.fit_temperature`.
    """
    layer = model.get_layer(f"{head}_logits")
    layer.set_weights([weights / temperature for weights in layer.get_weights()])


def save_model(model: keras.Model, path: Path, note: dict[str, Any]) -> None:
    """Writes a model, whole or not at all, with a note inside the file.

    Args:
        model: Any Keras model.
        path: A .keras file: a zip, to which the note is added as `agelib.json`.
        note: JSON content, such as the crop settings that prediction must use.
    """
    remove_partials(path)
    # Keras insists on the ending .keras, which a partial file does not have. Always the same name,
    # so that whatever a killed process left there goes away.
    whole = path.with_name(f".whole.{path.name}")
    with atomic(path) as partial:
        try:
            model.save(whole)
            _add_note(whole, partial, note)
        finally:
            whole.unlink(missing_ok=True)


def _add_note(whole: Path, noted: Path, note: dict[str, Any]) -> None:
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(noted, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                content = json.dumps(_without_later_settings(json.loads(content)))
            target.writestr(name, content)
        target.writestr(_NOTE, json.dumps(note, indent=1))


def _without_later_settings(config: Any) -> Any:
    if isinstance(config, list):
        return [_without_later_settings(each) for each in config]
    if not isinstance(config, dict):
        return config
    return {
        name: _without_later_settings(value)
        for name, value in config.items()
        if name not in _LATER_SETTINGS or value != _LATER_SETTINGS[name]
    }


def load_model(path: Path) -> tuple[keras.Model, dict[str, Any]]:
    """Reads a model and its note.

    Raises:
        AgelibError: If the file is missing, damaged, or no model of this package.
    """
    if not Path(path).exists():
        advice = (
            "name another model" if path == PRETRAINED else "run the train step (notebook 04) first"
        )
        raise AgelibError(f"{path} is missing: {advice}.")
    try:
        with zipfile.ZipFile(path) as archive:
            note = json.loads(archive.read(_NOTE))
        with warnings.catch_warnings(), keras_settings():
            # Without the optimizer's state, training would go on as if it had just begun.
            warnings.filterwarnings("error", "Skipping variable loading")
            return keras.models.load_model(path), note
    except _UNREADABLE as error:
        raise AgelibError(
            f"{path} is no model of agelib's, or of a later Keras than {keras.__version__} "
            f"({first_line(error)}): name a model.keras, or delete it and train again."
        ) from error


def _backbone_of(model: keras.Model) -> keras.Model:
    [backbone] = [
        layer
        for layer in model.layers
        if isinstance(layer, keras.Model) and not isinstance(layer, keras.Sequential)
    ]
    return backbone


def _start_from(model: keras.Model, path: Path) -> None:
    """Takes over the weights of another model of this kind."""
    other, _ = load_model(path)
    try:
        model.set_weights(other.get_weights())
    except ValueError as error:
        raise AgelibError(
            f"{path} does not fit: it is of another backbone or image size; name it with its own "
            "--backbone."
        ) from error
