"""Export: a model in the formats of other runtimes, each compared with Keras before it counts."""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from agelib import AgelibError, first_line
from agelib.backend import keras
from agelib.config import Config
from agelib.datasets.sample import N_UTKFACE, SEED, utkface_files
from agelib.faces.crops import crop_images
from agelib.faces.images import Rejected, resize
from agelib.faces.shards import MANIFEST, FaceSet, decode_jpeg, read_manifest
from agelib.files import atomic
from agelib.model.calibration import median_age
from agelib.model.network import load_model
from agelib.prediction.formats import FORMATS, Format, Run, quietly
from agelib.prediction.photos import find_photos, is_video

# What the order of sums can change in a probability.
_EXACT = 1e-3
# What 8 bits may: years of the age on average, and the share of faces that get another branch or
# gender. Those are near ties, which fall to the true side as often as to the other.
_YEARS, _OTHERWISE = 0.5, 0.05
_MOST_FACES = 1000
_BATCH = 64
_CALLS = 50


def export(
    model_path: Path, folder: Path, crops: Sequence[np.ndarray], formats: Sequence[str] = ()
) -> pd.DataFrame:
    """Writes a model in other formats, and compares their answers with Keras' on faces.

    A file is put there, whole, only if its answers are Keras': every probability within 0.001,
    or for int8 ages within half a year on average, and branch and gender for 95 % of the faces.

    Args:
        model_path: A model.keras.
        folder: Where to.
        crops: Face crops of the model's kind, RGB uint8; they are resized to what it sees.
        formats: Of "saved_model", "tflite", "int8" and "onnx"; all if none is named.

    Returns:
        A row for Keras and for each format: `format`, `file`, `megabytes`, `largest_difference` of
        a probability, `years` (mean absolute difference of the age), `same_branch` and
        `same_gender` (shares of the faces), `milliseconds` for one face, and `problem`, why the
        file has not been written, or "".

    Raises:
        AgelibError: If there is no model or face, the folder is a file or a format unknown.
    """
    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise AgelibError(f"format is {min(unknown)!r}, but must be one of {', '.join(FORMATS)}.")
    if not len(crops):
        raise AgelibError("There is no face to check the export on.")
    model, _ = load_model(model_path)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AgelibError(
            f"{folder} is no folder and cannot be made one: name another to export to."
        ) from error
    images = np.stack([resize(crop, model.input_shape[1:3]) for crop in crops])
    expected = _outputs(model.predict_on_batch, images)
    rows = [_row("Keras", Path(model_path), model.predict_on_batch, images, expected)]
    for key in tqdm(list(formats) or list(FORMATS), "export", unit=" formats"):
        kind = FORMATS[key]
        try:
            rows.append(_export(model, kind, Path(folder) / kind.file, images, expected))
        # Converters raise nearly anything; the other formats are worth having all the same.
        except Exception as error:
            why = first_line(error) or type(error).__name__
            problem = f"{kind.file} has not been written: {why}"
            rows.append({"format": kind.title, "file": kind.file, "problem": problem})
    return pd.DataFrame(rows)


def faces_to_check(
    config: Config, crop: dict[str, Any], images: Path | None = None
) -> tuple[list[np.ndarray], str]:
    """Returns faces to compare a model's answers on, at most 1,000, and what they are.

    Args:
        config: Whose test faces to take, if they lie here and are crops of the model's kind. Where
            there are none, portraits are drawn as for the sample.
        crop: The model's crop settings.
        images: A folder of photos to take instead; of each the one face that it is about.

    Raises:
        AgelibError: If no photo has a face that can be used.
    """
    faces = config.faces / config.test_sources[0]
    if images:
        photos = _spread([place for place in find_photos([images]) if not is_video(place)])
        crops = _crop(photos, crop)
        what = f"faces in the photos of {images}, of {len(photos):,}"
    elif (faces / MANIFEST).exists() and read_manifest(faces)["crop"] == crop:
        found = FaceSet([faces], "test")
        crops = [found.image(i) for i in _spread(range(len(found)))]
        what = f"test faces of {config.test_sources[0]}"
    else:
        files = itertools.islice(utkface_files(np.random.default_rng(SEED)), N_UTKFACE)
        crops = _crop([jpeg for _, jpeg in files], crop)
        what = "drawn portraits, as --images names no photos"
    if not crops:
        raise AgelibError(f"{images} holds no photo with a face that can be used.")
    return crops, f"{what} ({len(crops):,})"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Returns what `export` does, without what has not been written, as people read it."""
    written = table[table["problem"] == ""]
    columns = {
        "file": ("file", "{}"),
        "megabytes": ("MB", "{:.1f}"),
        "largest_difference": ("largest difference", "{:.1g}"),
        "years": ("years", "{:.2f}"),
        "same_branch": ("same branch", "{:.1%}"),
        "same_gender": ("same gender", "{:.1%}"),
        "milliseconds": ("ms a face", "{:.1f}"),
    }
    cells = {title: written[name].map(text.format) for name, (title, text) in columns.items()}
    return pd.DataFrame(cells).set_axis(written["format"])


def _export(
    model: keras.Model,
    kind: Format,
    path: Path,
    images: np.ndarray,
    expected: dict[str, np.ndarray],
) -> dict[str, Any]:
    kind.need_packages()
    with _whole(path) as made, quietly():
        kind.write(model, made)
        row = _row(kind.title, made, kind.load(made), images, expected)
        _compare(row, kind.exact)
    return row


def _compare(row: dict[str, Any], exact: bool) -> None:
    if exact:
        if not row["largest_difference"] <= _EXACT:
            raise AgelibError(
                f"a probability differs from Keras' by {row['largest_difference']:.2g}, more than "
                f"{_EXACT:g}."
            )
        return
    same = min(row["same_branch"], row["same_gender"])
    if not (row["years"] <= _YEARS and same >= 1 - _OTHERWISE):
        raise AgelibError(
            f"ages differ from Keras' by {row['years']:.1f} years and {1 - same:.1%} of the faces "
            f"get another branch or gender; {_YEARS:g} years and {_OTHERWISE:.0%} are allowed."
        )


def _row(
    name: str, path: Path, run: Run, images: np.ndarray, expected: dict[str, np.ndarray]
) -> dict[str, Any]:
    found = _outputs(run, images)
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    same = {
        head: float(np.mean(found[head].argmax(axis=1) == expected[head].argmax(axis=1)))
        for head in ("age_branch", "gender")
    }
    return {
        "format": name,
        "file": path.name,
        "megabytes": sum(file.stat().st_size for file in files if file.is_file()) / 1e6,
        "largest_difference": max(
            float(np.abs(found[head] - values).max()) for head, values in expected.items()
        ),
        "years": float(np.abs(median_age(found["age"]) - median_age(expected["age"])).mean()),
        "same_branch": same["age_branch"],
        "same_gender": same["gender"],
        "milliseconds": _latency(run, images[:1].astype(np.float32)),
        "problem": "",
    }


def _outputs(run: Run, images: np.ndarray) -> dict[str, np.ndarray]:
    starts = range(0, len(images), _BATCH)
    outputs = [run(images[start : start + _BATCH].astype(np.float32)) for start in starts]
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}


def _latency(run: Run, image: np.ndarray) -> float:
    """Returns the median of so many calls, in milliseconds, after a first one that prepares."""
    run(image)
    ends = [time.perf_counter()]
    for _ in range(_CALLS):
        run(image)
        ends.append(time.perf_counter())
    return float(np.median(np.diff(ends)) * 1e3)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yields a path for a file or a folder, which becomes `path` when the block ends well."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        made = Path(scratch) / path.name
        yield made
        if made.is_dir():
            # A folder cannot take the place of another one in a single step.
            if path.exists():
                path.rename(Path(scratch) / "before")
            made.rename(path)
        else:
            with atomic(path) as whole:
                made.rename(whole)


def _crop(images: Sequence[Path | bytes], crop: dict[str, Any]) -> list[np.ndarray]:
    found = crop_images(images, crop, alone=True)
    return [decode_jpeg(face) for face in found if not isinstance(face, Rejected)]


def _spread(items: Sequence) -> list:
    """Returns as many items as are wanted at most, evenly from all of them."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), _MOST_FACES)).round().astype(int)
    return [items[i] for i in chosen]
