"""The formats that a model can be exported to: how each is written, and how its runtime runs it.

What is exported takes RGB of 0 to 255, float32 of shape (n, side, side, 3), as `image`, and gives
`age`, `age_branch` and `gender` by name, as the model itself does, for any number of faces.
"""

import contextlib
import copy
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agelib import AgelibError
from agelib.backend import keras, silent_stderr, tf

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


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

    def need_packages(self) -> None:
        """Makes sure that everything it takes is installed.

        Raises:
            AgelibError: If a package is missing.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise AgelibError(f"{self.title} takes more packages: pip install {' '.join(missing)}")


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
    model.export(path, format="onnx", verbose=False)


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
