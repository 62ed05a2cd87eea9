"""Makes a finished run the model that comes with the package: `agelib/pretrained/`."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from agelib import __version__
from agelib.backend import keras
from agelib.config import Config
from agelib.evaluate import evaluate_splits
from agelib.files import atomic, sha256, write_json
from agelib.model import PRETRAINED, load_model, save_model
from agelib.shards import read_manifest


def ship(config: Config, path: Path = PRETRAINED) -> dict[str, Any]:
    """Writes a run's model in half the space, and beside it `card.json`, what it is and can do.

    Args:
        config: Says which run, and where its faces are; the scores are of all three splits.
        path: The file to write.

    Returns:
        The card.

    Raises:
        AgelibError: If there is no model or no faces.
    """
    model, note = load_model(config.run_folder / "model.keras")
    round_weights(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path, note)
    deflate(path)
    card = {
        "agelib": __version__,
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "parameters": model.count_params(),
        **note,
        "images": {name: read_manifest(config.faces / name)["counts"] for name in config.sources},
        "scores": evaluate_splits(model, config),
    }
    write_json(path.with_name("card.json"), card)
    return card


def round_weights(model: keras.Model) -> None:
    """Rounds weights to what 16 bits hold, which packs well and changes no answer to speak of."""
    model.set_weights([w.astype(np.float16).astype(w.dtype) for w in model.get_weights()])


def deflate(path: Path) -> None:
    """Packs a .keras file, which Keras writes unpacked; Keras reads both."""
    with (
        atomic(path) as partial,
        zipfile.ZipFile(path) as plain,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
