"""Hardware: which devices train, and in which precision."""

import os
import platform
from typing import Any

from agelib import AgelibError, __version__, first_line
from agelib.backend import keras, tf

_TENSOR_CORES = (7, 0)  # compute capability, NVIDIA "Training With Mixed Precision" guide


def strategy() -> tf.distribute.Strategy:
    """Returns TensorFlow's strategy for a TPU, for several GPUs, or for one device.

    Raises AgelibError if there is a TPU that cannot be used.
    """
    if _has_tpu():
        try:
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        # TensorFlow raises ValueError, RuntimeError or an error of its own.
        except Exception as error:
            raise AgelibError(
                f"The TPU cannot be used ({first_line(error)}): choose Runtime > Change runtime "
                "type > GPU, or elsewhere remove TPU_NAME from the environment."
            ) from error
        return tf.distribute.TPUStrategy(resolver)
    if len(_gpus()) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def even_share(count: int) -> int:
    """Returns the largest number of faces, up to `count`, that the devices in scope share evenly.

    Keras fails if the first batch cannot be shared so. Raises AgelibError if there are more devices
    than faces.
    """
    devices = tf.distribute.get_strategy().num_replicas_in_sync
    if count < devices:
        raise AgelibError(
            f"{devices} devices cannot share {count} faces at a time: use a larger --batch-size, "
            "more images, or only one device (CUDA_VISIBLE_DEVICES=0 in the environment)."
        )
    return count - count % devices


def has_accelerator() -> bool:
    """Tells whether there is a GPU, or a TPU that can be used, to train on."""
    return _has_tpu() or bool(_gpus())


def describe_devices() -> str:
    """Returns the names of devices and precision, for example "Tesla T4; in mixed_float16"."""
    if _has_tpu():
        return f"TPU; in {precision()}"
    names = [gpu.get("device_name", "a GPU") for gpu in _gpus()]
    # The TensorFlow of Colab's TPU machines does not see the TPU.
    tpu = os.environ.get("TPU_ACCELERATOR_TYPE")
    nothing = f"no GPU, and a TPU ({tpu}) that TensorFlow does not see" if tpu else "no GPU"
    return f"{', '.join(names) or nothing}; in {precision()}"


def environment() -> dict[str, str]:
    """Returns the versions and the hardware that a run was made with."""
    hardware = f"{describe_devices()}; {os.cpu_count()} cores, {platform.machine()}"
    if fewer_bits := os.environ.get("TF_SET_ONEDNN_FPMATH_MODE"):  # in a CPU's matrices
        hardware += f", TF_SET_ONEDNN_FPMATH_MODE={fewer_bits}"
    return {
        "agelib": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "hardware": hardware,
    }


def precision() -> str:
    """Returns Keras' name of the fastest precision: 16 bits where the hardware is made for them.

    Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """
    if _has_tpu():
        return "mixed_bfloat16"
    capabilities = [gpu.get("compute_capability", (0, 0)) for gpu in _gpus()]
    return "mixed_float16" if min(capabilities, default=(0, 0)) >= _TENSOR_CORES else "float32"


def _gpus() -> list[dict[str, Any]]:
    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu) for gpu in gpus]


def _has_tpu() -> bool:
    return bool(os.environ.get("TPU_NAME") or os.environ.get("COLAB_TPU_ADDR"))
