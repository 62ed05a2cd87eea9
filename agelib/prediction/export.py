"""Export: a model in the formats of other runtimes, each compared with Keras first."""

import contextlib
import copy
import importlib.util
import io
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skimage.data import lfw_subset
from tqdm import tqdm

from agelib import AgelibError, first_line
from agelib.backend import keras, silent_stderr, tf
from agelib.config import Config, Crop
from agelib.faces.cropping import crop_images
from agelib.faces.images import Rejected, resize
from agelib.faces.shards import MANIFEST, FaceSet, decode_jpeg, read_crop
from agelib.files import atomic
from agelib.labels import BRANCH_NAMES, GENDERS
from agelib.model.inference import median_age
from agelib.model.saved import load_model
from agelib.prediction.photos import find_photos, is_video

# What the order of sums can change in a probability.
_EXACT = 1e-3
# What 8 bits may: years of the age on average, and the share of faces that get another branch or
# gender. Those are near ties, which fall to the true side as often as to the other.
_YEARS, _OTHERWISE = 0.5, 0.05
_MOST_FACES = 1000
_BATCH = 64
_CALLS = 50

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


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
        formats: Of "saved_model", "tflite", "int8" and "onnx"; if none is named, all whose
            packages are installed.

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
    chosen = list(formats) or [key for key, kind in FORMATS.items() if not kind.missing]
    for key in tqdm(chosen, "export", unit=" formats"):
        kind = FORMATS[key]
        try:
            rows.append(_export(model, kind, Path(folder) / kind.file, images, expected))
        # Converters raise nearly anything; the other formats are worth having all the same.
        except Exception as error:
            why = first_line(error) or type(error).__name__
            problem = f"{kind.file} has not been written: {why}"
            rows.append({"format": kind.title, "file": kind.file, "problem": problem})
    return pd.DataFrame(rows)


def name_missing() -> str:
    """Returns a sentence on the formats whose packages are not installed, or ""."""
    return " ".join(f"{kind.needs}." for kind in FORMATS.values() if kind.missing)


def describe_input(model_path: Path) -> str:
    """Returns what an exported model takes and gives, with an example, for who uses it elsewhere.

    Args:
        model_path: The model.keras that was exported.
    """
    model, metadata = load_model(model_path)
    crop, size = Crop.from_json(metadata["crop"]), model.input_shape[1]
    aligned = "turned until the eyes are level, " if crop.align else ""
    return f"""input: image, float32 of shape (batch, {size}, {size}, 3), RGB, 0 to 255
crop: the face's box made square around its middle (its longer side), widened by {crop.margin:g}
  of that side on each side, {aligned}the photo's border repeated outside, scaled to
  {crop.size} pixels, then to {size} (averaged where it shrinks, else bicubic)
output: age (batch, 85), the probabilities of the years 1 to 85; age_branch (batch, 5): of
  {", ".join(BRANCH_NAMES)}; gender (batch, 2): of {" and ".join(GENDERS)}
agelib takes the mean of a face and its mirror image, and of `age` the median year:

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
    """Returns faces to compare a model's answers on, at most 1,000, and what they are.

    Args:
        config: Whose test faces to take, or else validation faces, if they lie here and are crops
            of the model's kind. Where there are none, it is the 100 small photos of faces that
            scikit-image brings.
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
    for name, split in itertools.chain(
        ((name, "test") for name in config.test_sources),
        ((name, "val") for name in config.train_sources),
    ):
        folder = config.faces / name
        if (folder / MANIFEST).exists() and read_crop(folder) == crop:
            faces = FaceSet([folder], split)
            crops = [faces.image(i) for i in _spread(range(len(faces)))]
            if crops:
                return crops, f"{split} faces of {name} ({len(crops):,})"
    # Grey, from 0 to 1; cut out around faces, as the model's own crops are.
    grey = np.round(lfw_subset()[:100] * 255).astype(np.uint8)
    crops = list(np.repeat(grey[..., None], 3, axis=3))
    return crops, f"small faces of Labeled Faces in the Wild ({len(crops)})"


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


def _spread(items: Sequence) -> list:
    """Returns as many items as are wanted at most, evenly from all of them."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), _MOST_FACES)).round().astype(int)
    return [items[i] for i in chosen]


@dataclass(frozen=True)
class Format:
    """A format of other runtimes.

    Attributes:
        title: Its name, as people write it.
        file: What its file or folder is called.
        write: Writes a model to a path.
        load: Returns, for a path, what runs its model on images.
        exact: Whether it computes in full floats, as Keras does.
        packages: Those it takes that agelib does not.
    """

    title: str
    file: str
    write: Callable[[keras.Model, Path], None]
    load: Callable[[Path], Run]
    exact: bool = True
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The packages that it takes and that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    @property
    def needs(self) -> str:
        """Says how to install them."""
        return f"{self.title} takes more packages: pip install {' '.join(self.missing)}"


def _export(
    model: keras.Model,
    kind: Format,
    path: Path,
    images: np.ndarray,
    expected: dict[str, np.ndarray],
) -> dict[str, Any]:
    if kind.missing:
        raise AgelibError(kind.needs)
    with _whole(path) as made, quietly():
        kind.write(model, made)
        row = _row(kind.title, made, kind.load(made), images, expected)
        _compare(row, kind.exact)
    return row


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Drops what converters tell about themselves; what goes wrong they raise."""
    nowhere = io.StringIO()
    # Its handler writes to what was standard error when TensorFlow was loaded.
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with (
        silent_stderr(),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _served(model: keras.Model) -> tf.Module:
    """Returns what TensorFlow itself can save; Keras' own export holds every weight twice."""
    spec = tf.TensorSpec(model.input_shape, tf.float32, name="image")
    served = tf.Module()
    served.weights = [weight.value for weight in model.weights]
    served.serve = tf.function(lambda image: model(image, training=False), input_signature=[spec])
    return served


def _write_saved_model(model: keras.Model, path: Path) -> None:
    served = _served(model)
    tf.saved_model.save(served, path, signatures=served.serve)


def _write_tflite(
    model: keras.Model, path: Path, optimizations: Sequence[tf.lite.Optimize] = ()
) -> None:
    served = _served(model)
    graph = served.serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], served)
    converter.optimizations = list(optimizations)
    path.write_bytes(converter.convert())


def _write_int8(model: keras.Model, path: Path) -> None:
    """Writes a TFLite file whose weights are kept in 8 bits and computed with in floats.

    As the converter leaves it, each layer's input is rounded to 8 bits too, by ranges found when it
    runs. That differs between processors, and moves the answers further than the weights do.
    Ranges fixed beforehand cost the model that comes with agelib up to four points of accuracy.
    So the weights are turned back into floats by a DEQUANTIZE each, and no input is rounded.
    """
    # Imported here, after `backend` has loaded TensorFlow quietly.
    from tensorflow.lite.tools import flatbuffer_utils

    _write_tflite(model, path, [tf.lite.Optimize.DEFAULT])
    content = flatbuffer_utils.read_model(path)
    schema = flatbuffer_utils.schema_fb
    dequantize = schema.OperatorCodeT()
    dequantize.builtinCode = dequantize.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    dequantize.version = 5  # the first that takes a scale for each channel
    content.operatorCodes.append(dequantize)
    [graph] = content.subgraphs
    steps = []
    for index, tensor in enumerate(list(graph.tensors)):
        if tensor.type == schema.TensorType.INT8:
            step = schema.OperatorT()
            step.opcodeIndex = len(content.operatorCodes) - 1
            step.inputs, step.outputs = [len(graph.tensors)], [index]
            steps.append(step)
            graph.tensors.append(copy.copy(tensor))
            # What is computed has no content of its own: buffer 0 is the empty one.
            tensor.type, tensor.buffer, tensor.quantization = schema.TensorType.FLOAT32, 0, None
    graph.operators = steps + graph.operators
    flatbuffer_utils.write_model(content, path)


def _write_onnx(model: keras.Model, path: Path) -> None:
    import onnx

    model.export(path, format="onnx", verbose=False)
    content = onnx.load(path)
    for tensor in (*content.graph.input, *content.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(content, path)


def _load_saved_model(path: Path) -> Run:
    loaded = tf.saved_model.load(path)  # kept, as its variables live no longer than itself

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        outputs = loaded.signatures["serving_default"](image=tf.constant(images))
        return {name: values.numpy() for name, values in outputs.items()}

    return run


def _load_tflite(path: Path) -> Run:
    signature = tf.lite.Interpreter(model_content=path.read_bytes()).get_signature_runner()
    return lambda images: signature(image=images)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"image": images}), strict=True))


FORMATS = {
    "saved_model": Format("SavedModel", "saved_model", _write_saved_model, _load_saved_model),
    "tflite": Format("TFLite", "model.tflite", _write_tflite, _load_tflite),
    "int8": Format(
        "TFLite int8",
        "model.int8.tflite",
        _write_int8,
        _load_tflite,
        exact=False,
    ),
    "onnx": Format(
        "ONNX",
        "model.onnx",
        _write_onnx,
        _load_onnx,
        packages=("onnx", "onnxruntime", "tf2onnx"),
    ),
}
