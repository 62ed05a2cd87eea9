"""What there is to train on, and how: one device or several, in which precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from agelib.backend import keras, tf

_TENSOR_CORES = (7, 0)  # compute capability, NVIDIA "Training With Mixed Precision" guide


def strategy() -> tf.distribute.Strategy:
    """Returns how to share the work: over a TPU's cores, over several GPUs, or not at all."""
    if _has_tpu():
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        return tf.distribute.TPUStrategy(resolver)
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def precision() -> str:
    """Returns Keras' name of the quickest precision: half floats where hardware is made for them.

    Micikevicius et al., "Mixed Precision Training", ICLR 2018.
    """
    if _has_tpu():
        return "mixed_bfloat16"
    gpus = tf.config.list_physical_devices("GPU")
    details = map(tf.config.experimental.get_device_details, gpus)
    capabilities = [found.get("compute_capability", (0, 0)) for found in details]
    return "mixed_float16" if min(capabilities, default=(0, 0)) >= _TENSOR_CORES else "float32"


@contextmanager
def computing_in(policy: str) -> Iterator[None]:
    """Lets models that are built inside compute in a precision of Keras'."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _has_tpu() -> bool:
    return bool(os.environ.get("TPU_NAME") or os.environ.get("COLAB_TPU_ADDR"))
