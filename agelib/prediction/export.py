"""Export: a model in the formats of other runtimes, each compared with Keras first."""

import contextlib
import io
import logging
import tempfile
import timeit
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skimage.data import lfw_subset
from tqdm import tqdm

from agelib import AgelibError, first_line
from agelib.backend import keras, silent_stderr
from agelib.config import Config, Crop
from agelib.faces.crop import crop_images
from agelib.faces.images import Rejected, resize
from agelib.faces.shards import MANIFEST, FaceSet, decode_jpeg, read_crop, read_manifest
from agelib.files import atomic
from agelib.labels import BRANCH_NAMES, GENDERS
from agelib.model.inference import median_age
from agelib.prediction.estimator import Estimator
from agelib.prediction.formats import FORMATS, Format, Outputs, Run
from agelib.prediction.photos import find_photos, is_video

# What the order of sums may change in a probability.
_EXACT = 1e-3
# What 8 bits may change: years of the age on average, and the branch or gender of a share of the
# faces. Those are near ties, which fall to the true side as often as to the other.
_YEARS, _OTHERS = 0.5, 0.05
_MOST_FACES = 1000
_BATCH = 64


def export(
    estimator: Estimator, folder: Path, crops: Sequence[np.ndarray], formats: Sequence[str] = ()
) -> pd.DataFrame:
    """Writes a model in other formats, each only if its answers on faces are those of Keras.

    Every probability must be within 0.001; for int8, ages within half a year on average, and branch
    and gender the same for 95 % of the faces.

    Args:
        estimator: The model.
        folder: Where to.
        crops: Face crops of the model's kind, RGB uint8; they are resized to what it sees.
        formats: Of "saved_model", "tflite", "int8" and "onnx"; by default all whose packages are
            installed.

    Returns:
        A row for Keras and for each format: `format`, `file`, `megabytes`, `largest_difference` of
        a probability, `years` (mean absolute difference of the age), `same_branch` and
        `same_gender` (shares of the faces), `milliseconds` for one face, and `problem`: why the
        file has not been written, or "".

    Raises:
        AgelibError: If there is no face, the folder is a file or a format unknown.
    """
    if unknown := set(formats) - set(FORMATS):
        raise AgelibError(f"format is {min(unknown)!r}, but must be one of {', '.join(FORMATS)}.")
    if not len(crops):
        raise AgelibError("There is no face to check the export on.")
    model = estimator.model
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AgelibError(
            f"{folder} is no folder and cannot be made one: name another to export to."
        ) from error
    images = np.stack([resize(crop, model.input_shape[1:3]) for crop in crops])
    expected = _outputs(model.predict_on_batch, images)
    keras_row = _measure(estimator.path, model.predict_on_batch, images, expected)
    rows = [{"format": "Keras"} | keras_row]
    chosen = list(formats) or [name for name, each in FORMATS.items() if not each.needs]
    for name in tqdm(chosen, "export", unit=" formats"):
        form = FORMATS[name]
        try:
            row = _export(model, form, Path(folder) / form.file, images, expected)
        # Converters raise nearly anything; the other formats are worth having all the same.
        except Exception as error:
            why = first_line(error) or type(error).__name__
            row = {"file": form.file, "problem": f"{form.file} has not been written: {why}"}
        rows.append({"format": form.title} | row)
    return pd.DataFrame(rows)


def name_missing() -> str:
    """Returns a sentence on the formats whose packages are not installed, or ""."""
    return " ".join(f"{each.needs}." for each in FORMATS.values() if each.needs)


def describe_input(estimator: Estimator) -> str:
    """Returns what an exported model takes and gives, with an example, for use without agelib."""
    crop, size = estimator.crop, estimator.model.input_shape[1]
    aligned = "turned until the eyes are level, " if crop.align else ""
    return f"""input: image, float32 of shape (batch, {size}, {size}, 3), RGB, 0 to 255
crop: the face's box made square around its middle (its longer side), widened by {crop.margin:g}
  of that side on each side, {aligned}the photo's border repeated outside, scaled to
  {crop.size} pixels, then to {size} (averaged where it shrinks, else bicubic)
output: age (batch, 85), the probabilities of the years 1 to 85; age_branch (batch, 5): of
  {", ".join(BRANCH_NAMES)}; gender (batch, 2): of {" and ".join(GENDERS)}
agelib takes the mean of a face and its mirror image (and makes the probabilities of a blurred face
more equal), and of `age` the median year:

  import numpy as np
  import tensorflow as tf
  from PIL import Image

  face = np.float32(Image.open("crop.png").convert("RGB").resize(({size}, {size})))
  run = tf.lite.Interpreter("model.tflite").get_signature_runner()
  views = [run(image=image[None]) for image in (face, face[:, ::-1])]
  answer = {{name: sum(view[name][0] for view in views) / 2 for name in views[0]}}
  print("age:", np.searchsorted(answer["age"].cumsum(), 0.5) + 1)
  print("gender:", {list(GENDERS)}[answer["gender"].argmax()])"""


def faces_to_check(
    config: Config, crop: Crop, images: Path | None = None
) -> tuple[list[np.ndarray], str]:
    """Returns at most 1,000 faces to compare a model's answers on, and what they are.

    Args:
        config: Its test faces are taken, or else its validation faces, if they lie here and are
            crops of the model's kind; otherwise the 100 small faces that scikit-image brings.
        crop: How the model's faces are cut out.
        images: A folder of photos to take instead; of each the one face that it is about.

    Raises:
        AgelibError: If no photo has a face that can be used.
    """
    if images:
        photos = _spread([place for place in find_photos([images]) if not is_video(place)])
        found = crop_images(photos, crop)
        crops = [decode_jpeg(face) for face in found if not isinstance(face, Rejected)]
        if not crops:
            raise AgelibError(f"{images} holds no photo with a face that can be used.")
        return crops, f"faces in the photos of {images}, of {len(photos):,} ({len(crops):,})"
    sources = [(name, "test") for name in config.test_sources]
    for name, split in [*sources, *((name, "val") for name in config.train_sources)]:
        folder = config.faces / name
        if not (folder / MANIFEST).exists() or read_crop(folder) != crop:
            continue
        if read_manifest(folder)["splits"].get(split):
            faces = FaceSet([folder], split)
            crops = [faces.image(i) for i in _spread(range(len(faces)))]
            return crops, f"{split} faces of {name} ({len(crops):,})"
    # Grey, from 0 to 1; cut out around faces, as the model's own crops are.
    grey = np.round(lfw_subset()[:100] * 255).astype(np.uint8)
    crops = list(np.repeat(grey[..., None], 3, axis=3))
    return crops, f"small faces of Labeled Faces in the Wild ({len(crops)})"


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the formats of `export`'s table that were written, as text for people."""
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


def _measure(path: Path, run: Run, images: np.ndarray, expected: Outputs) -> dict[str, Any]:
    """Returns a row of `export`'s table: how large a model is, how fast, and how far from Keras."""
    found, one = _outputs(run, images), images[:1].astype(np.float32)
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    run(one)  # the first call prepares
    seconds = timeit.repeat(lambda: run(one), number=1, repeat=50)
    differences = {head: np.abs(found[head] - values) for head, values in expected.items()}
    years = median_age(found["age"]) - median_age(expected["age"])
    same = {head: found[head].argmax(1) == values.argmax(1) for head, values in expected.items()}
    return {
        "file": path.name,
        "megabytes": sum(file.stat().st_size for file in files if file.is_file()) / 1e6,
        "largest_difference": max(float(each.max()) for each in differences.values()),
        "years": float(np.abs(years).mean()),
        "same_branch": float(same["age_branch"].mean()),
        "same_gender": float(same["gender"].mean()),
        "milliseconds": 1e3 * float(np.median(seconds)),
        "problem": "",
    }


def _check(row: dict[str, Any], exact: bool) -> None:
    others = 1 - min(row["same_branch"], row["same_gender"])
    # Written so that what is not a number fails too.
    if exact and not row["largest_difference"] <= _EXACT:
        raise AgelibError(
            f"a probability differs from Keras' by {row['largest_difference']:.2g}, more than "
            f"{_EXACT:g}."
        )
    if not exact and not (row["years"] <= _YEARS and others <= _OTHERS):
        raise AgelibError(
            f"ages differ from Keras' by {row['years']:.1f} years and {others:.1%} of the faces "
            f"get another branch or gender; {_YEARS:g} years and {_OTHERS:.0%} are allowed."
        )


def _outputs(run: Run, images: np.ndarray) -> Outputs:
    starts = range(0, len(images), _BATCH)
    outputs = [run(images[start : start + _BATCH].astype(np.float32)) for start in starts]
    return {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a path for a file or a folder, which becomes `path` if the block ends well."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as scratch:
        made = Path(scratch) / path.name
        yield made
        if made.is_file():
            with atomic(path) as partial:
                made.rename(partial)
            return
        # A folder cannot take the place of another one in a single step.
        if path.exists():
            path.rename(Path(scratch) / "before")
        made.rename(path)


def _spread(items: Sequence) -> list:
    """Returns at most `_MOST_FACES` items, evenly spread over all of them."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), _MOST_FACES)).round().astype(int)
    return [items[i] for i in chosen]


def _export(
    model: keras.Model, form: Format, path: Path, images: np.ndarray, expected: Outputs
) -> dict[str, Any]:
    if form.needs:
        raise AgelibError(form.needs)
    with _replacing(path) as made, _silenced():
        form.write(model, made)
        row = _measure(made, form.load(made), images, expected)
        _check(row, form.exact)
    return row


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drops what converters print and log; what goes wrong they raise."""
    nowhere = io.StringIO()
    # Its handler writes to what was standard error when TensorFlow was loaded.
    logger = logging.getLogger("tensorflow")
    with (
        silent_stderr(),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(action="ignore"),
        contextlib.ExitStack() as stack,
    ):
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        yield
