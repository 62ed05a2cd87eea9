"""For maintainers: ships a run's model, and writes the repository's public address.

`ship` makes a finished run the pretrained model, `agelib/pretrained/`. `python -m agelib.release`
prints the address that pyproject.toml holds; `python -m agelib.release
https://github.com/NAME/agelib` changes it there, in the README and in every notebook.
"""

import re
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from agelib import AgelibError, __version__
from agelib.backend import keras
from agelib.config import Config
from agelib.evaluation.evaluate import estimate_splits
from agelib.evaluation.scores import score_faces
from agelib.faces.shards import read_manifest
from agelib.files import atomic, sha256, write_json
from agelib.model.saved import PRETRAINED, load_model, save_model

ROOT = Path(__file__).resolve().parents[1]


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
        (split, name, score_faces(faces, outputs))
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


def read_address(root: Path = ROOT) -> str:
    """Returns the address, for example "https://github.com/NAME/agelib"."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"]


def files_with_address(root: Path = ROOT) -> list[Path]:
    """Returns every file that repeats the address."""
    return [root / "pyproject.toml", root / "README.md", *sorted(root.glob("notebooks/*.ipynb"))]


def write_address(address: str, root: Path = ROOT) -> list[Path]:
    """Writes a new address everywhere.

    Args:
        address: Of a repository on GitHub, since that is where Colab opens notebooks from.
        root: The repository's folder.

    Returns:
        The files that changed.

    Raises:
        AgelibError: If it is no such address.
    """
    match = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    if not match:
        raise AgelibError(f"{address} is not of the form https://github.com/NAME/REPOSITORY.")
    old = read_address(root).removeprefix("https://github.com/")
    changed = []
    for path in files_with_address(root):
        text = path.read_text(encoding="utf-8")
        # As a plain address, and as colab.research.google.com/github/NAME/REPOSITORY.
        new = re.sub(rf"(github(?:\.com)?)/{re.escape(old)}(?![\w.-])", rf"\1/{match[1]}", text)
        if new != text:
            with atomic(path) as partial:
                partial.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(read_address())
    else:
        try:
            for path in write_address(sys.argv[1]):
                print(path.relative_to(ROOT))
        except AgelibError as error:
            sys.exit(f"agelib: {error}")
