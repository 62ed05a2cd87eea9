"""A model and what it says about itself, in one .keras file.

A finished model is made of Keras' own layers only, so that `keras.models.load_model` reads it
anywhere, without this package.
"""

import importlib
import json
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agelib import AgelibError, first_line
from agelib.files import atomic, remove_partials
from agelib.labels import AGE_BRANCHES

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.backend import keras

PRETRAINED = Path(__file__).parents[1] / "pretrained" / "model.keras"
_METADATA = "agelib.json"
# What reading a damaged or foreign model raises. TypeError: a later Keras wrote settings that this
# one does not know; UserWarning: see `load_model`.
_ERRORS = (KeyError, OSError, TypeError, UserWarning, ValueError, zipfile.BadZipFile, zlib.error)

# Settings that came with Keras 3.14 and 3.15, at the values that change nothing. Earlier versions
# (Colab has 3.13) read no file that names them.
_LATER_SETTINGS = {
    "input_axes": None,
    "output_axes": None,
    "renorm": False,
    "renorm_clipping": None,
    "renorm_momentum": 0.99,
}


def save_model(
    model: "keras.Model",
    path: Path,
    metadata: dict[str, Any],
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Writes a model and its metadata in one .keras file, completely or not at all.

    The file is a zip, of any of `zipfile`'s compressions; the metadata, which say how prediction
    must cut out faces, for example, are added as `agelib.json`.
    """
    remove_partials(path)
    # Keras insists on the ending .keras, which a partial file does not have. Always the same name,
    # so that what a killed process left there is overwritten.
    plain = path.with_name(f".whole.{path.name}")
    with atomic(path) as partial:
        try:
            model.save(plain)
            with zipfile.ZipFile(partial, "w", compression, compresslevel=9) as target:
                _copy_members(plain, target)
                target.writestr(_METADATA, json.dumps(metadata, indent=1))
        finally:
            plain.unlink(missing_ok=True)


def _copy_members(source: Path, target: zipfile.ZipFile) -> None:
    with zipfile.ZipFile(source) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "config.json":
                content = json.dumps(_without_later_settings(json.loads(content)))
            target.writestr(name, content)


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


def load_model(path: Path, any_branches: bool = False) -> tuple["keras.Model", dict[str, Any]]:
    """Reads a model and its metadata.

    Raises AgelibError if the file is missing, damaged, no model of agelib's, or made for other age
    branches (which `any_branches` allows).
    """
    from agelib.backend import keras, keras_settings

    # They register the classes that a checkpoint names.
    for module in ("augment", "losses", "teachers"):
        importlib.import_module(f"agelib.model.{module}")
    metadata = read_metadata(path)
    try:
        with warnings.catch_warnings(), keras_settings():
            # Without the optimizer's state, training would go on as if it had just begun.
            warnings.filterwarnings("error", "Skipping variable loading")
            model = keras.models.load_model(path)
    except _ERRORS as error:
        # Keras wraps what a layer raises that does not find its own files.
        inner: BaseException | None = error
        while inner and not isinstance(inner, AgelibError):
            inner = inner.__cause__ or inner.__context__
        raise AgelibError(str(inner)) if inner else _unreadable(path, error) from error
    here = [list(branch) for branch in AGE_BRANCHES]
    if not any_branches and metadata.get("age_branches", here) != here:
        raise AgelibError(
            f"{path} was made for the age branches {metadata['age_branches']}, but agelib.labels "
            f"has {here}: change them there, or train a model for them (--weights {path} starts "
            "from this one)."
        )
    return model, metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns what a model's file says about it; raises AgelibError as `load_model` does."""
    if not Path(path).exists():
        what = (
            "name another model"
            if path == PRETRAINED
            else "run the train step (notebook 04 or 07) first"
        )
        raise AgelibError(f"{path} is missing: {what}, or copy it there.")
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(_METADATA))
    except _ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> AgelibError:
    from agelib.backend import keras

    return AgelibError(
        f"{path} is no model of agelib's, or of a later Keras than {keras.__version__} "
        f"({first_line(error)}): name a model.keras, or delete it and train again."
    )


def model_path(name: str) -> Path:
    """Returns the file of a model that the settings name: "agelib" is the pretrained one."""
    return PRETRAINED if name == "agelib" else Path(name)


def earlier_runs(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the runs whose models a model began with or learned from, first to last.

    Each has `config` and `seconds`. Raises AgelibError if one of these models is missing; training
    notes the runs in the metadata, so that they are known where the models are not.
    """
    if "before" in metadata:
        return metadata["before"]
    config, runs = metadata.get("config", {}), []
    for name in (config.get("weights"), *config.get("teachers", ())):
        path = model_path(str(name))
        if path.suffix == ".keras":
            model = read_metadata(path)
            run = {key: model[key] for key in ("config", "seconds") if key in model}
            runs += [each for each in (*_known_runs(model), run) if each not in runs]
    return runs


def _known_runs(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return earlier_runs(metadata)
    except AgelibError:  # a model of an earlier version, and what it began with is elsewhere
        return []
