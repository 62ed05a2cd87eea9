"""Formats of other runtimes: how a model is written in each, and run from there."""

import copy
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agelib.backend import keras, tf

Outputs = dict[str, np.ndarray]  # by the name of the head
Run = Callable[[np.ndarray], Outputs]


@dataclass(frozen=True)
class Format:
    """A format of other runtimes."""

    title: str  # as people write it
    file: str  # the name of its file or folder
    write: Callable[[keras.Model, Path], None]
    load: Callable[[Path], Run]
    exact: bool = True  # whether it computes in full floats, as Keras does
    packages: tuple[str, ...] = ()  # besides agelib's requirements

    @property
    def needs(self) -> str:
        """How to install the packages that are missing, or ""."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        command = f"pip install {' '.join(missing)}"
        return f"{self.title} takes more packages: {command}" if missing else ""


def _servable(model: keras.Model) -> tf.Module:
    """Returns what TensorFlow itself can save; Keras' own export holds every weight twice."""
    module, spec = tf.Module(), tf.TensorSpec(model.input_shape, tf.float32, name="image")
    module.weights = [weight.value for weight in model.weights]
    module.serve = tf.function(lambda image: model(image, training=False), input_signature=[spec])
    return module


def _write_saved_model(model: keras.Model, path: Path) -> None:
    module = _servable(model)
    tf.saved_model.save(module, path, signatures=module.serve)


def _write_tflite(
    model: keras.Model, path: Path, optimize: Sequence[tf.lite.Optimize] = ()
) -> None:
    module = _servable(model)
    graph = module.serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], module)
    converter.optimizations = list(optimize)
    path.write_bytes(converter.convert())


def _write_int8(model: keras.Model, path: Path) -> None:
    """Writes a TFLite file whose weights are stored in 8 bits and turned into floats to compute.

    The converter's file rounds each layer's input to 8 bits too. That differs between processors,
    and moves the answers further than the weights do; ranges that are fixed beforehand cost the
    pretrained model up to four points of accuracy. So each weight gets a DEQUANTIZE of its own.
    """
    # Imported here, after `backend` has loaded TensorFlow quietly.
    from tensorflow.lite.tools import flatbuffer_utils

    _write_tflite(model, path, [tf.lite.Optimize.DEFAULT])
    content, schema = flatbuffer_utils.read_model(path), flatbuffer_utils.schema_fb
    dequantize = schema.OperatorCodeT()
    dequantize.builtinCode = dequantize.deprecatedBuiltinCode = schema.BuiltinOperator.DEQUANTIZE
    dequantize.version = 5  # the first that takes a scale for each channel
    content.operatorCodes.append(dequantize)
    [graph] = content.subgraphs
    steps = []
    for index, tensor in enumerate(list(graph.tensors)):
        if tensor.type != schema.TensorType.INT8:
            continue
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

    def run(images: np.ndarray) -> Outputs:
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
    "int8": Format("TFLite int8", "model.int8.tflite", _write_int8, _load_tflite, exact=False),
    "onnx": Format(
        "ONNX", "model.onnx", _write_onnx, _load_onnx, packages=("onnx", "onnxruntime", "tf2onnx")
    ),
}
