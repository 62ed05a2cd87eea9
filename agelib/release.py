"""Makes a finished run the model that comes with the package: `agelib/pretrained/`."""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from agelib import AgelibError, __version__
from agelib.backend import keras
from agelib.config import Config
from agelib.evaluation.evaluate import estimate_splits, scores
from agelib.faces.shards import read_manifest
from agelib.files import sha256, write_json
from agelib.model.network import PRETRAINED, load_model, save_model


def ship(config: Config, path: Path = PRETRAINED) -> dict[str, Any]:
    """Writes a run's model in half the space, and beside it `card.json`, what it is and can do.

    Args:
        config: The run's settings.
        path: The file to write.

    Returns:
        The card: `note` (what the model's file says of itself, its settings among it), `images`
        (how many of each data set were kept, and why not the others), `scores` of each split, those
        of each test set as `tests`, and `sha256` and `bytes` of the file.

    Raises:
        AgelibError: If there is no model, or there are not the faces that it was trained on.
    """
    model, note = load_model(config.run_folder / "model.keras")
    if config.to_dict() != note["config"]:
        raise AgelibError(
            f"Run {config.run} was trained with other settings: give those of its train command."
        )
    round_weights(model)
    found = [
        (split, name, scores(faces, outputs))
        for split, name, faces, outputs in estimate_splits(model, note, config)
    ]
    card = {
        "shipped_with": __version__,
        "note": note,
        "parameters": model.count_params(),
        "images": {name: read_manifest(config.faces / name)["counts"] for name in config.sources},
        "scores": {split: figures for split, _, figures in reversed(found)},  # the first test set's
        "tests": {name: figures for _, name, figures in found if name},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        plain, packed = Path(scratch) / "plain.keras", Path(scratch) / "packed.keras"
        save_model(model, plain, note)
        deflate(plain, packed)
        card |= {"sha256": sha256(packed), "bytes": packed.stat().st_size}
        write_json(path.with_name("card.json"), card)
        packed.replace(path)
    return card


def round_weights(model: keras.Model) -> None:
    """Rounds weights to what 16 bits hold, which packs well and changes no answer to speak of.

    Raises:
        AgelibError: If a weight is beyond their range.
    """
    with np.errstate(over="ignore"):
        rounded = [w.astype(np.float16).astype(w.dtype) for w in model.get_weights()]
    if not all(np.isfinite(w).all() for w in rounded):
        raise AgelibError("A weight of the model is beyond 65504, the most that 16 bits hold.")
    model.set_weights(rounded)


def deflate(plain: Path, packed: Path) -> None:
    """Packs a .keras file, which Keras writes unpacked; Keras reads both."""
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
