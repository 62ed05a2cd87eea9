"""TensorFlow and Keras, loaded quietly, and the settings that agelib's networks are made for."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_REDIRECT = threading.RLock()


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Hides what C++ code writes to the process' standard error.

    The first messages of TensorFlow, and those of its converters, ignore TF_CPP_MIN_LOG_LEVEL. One
    thread at a time: a second one would save the first one's redirect and restore that.
    """
    if sys.stderr:
        sys.stderr.flush()
    with _REDIRECT, contextlib.ExitStack() as stack:
        # pythonw.exe and daemons have no standard error.
        with contextlib.suppress(OSError):
            saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            stack.callback(os.close, saved)
            stack.callback(os.close, nowhere)
            stack.callback(os.dup2, saved, 2)
        yield


@contextlib.contextmanager
def _without_variable(name: str) -> Iterator[None]:
    value = os.environ.pop(name, None)
    try:
        yield
    finally:
        if value is not None:
            os.environ[name] = value


# TensorFlow itself turns these kernels on only for the newest processors; they halve the time of
# networks on others too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# With the variable set, `tensorflow.keras`, which `efficientnet` builds from, is another Keras.
with silent_stderr(), _without_variable("TF_USE_LEGACY_KERAS"):
    import keras
    import tensorflow as tf

    tf.config.list_physical_devices()


@contextlib.contextmanager
def keras_settings(policy: str = "float32") -> Iterator[None]:
    """Sets what agelib's networks need of Keras, with its precision, and restores it afterwards."""
    before = keras.config.floatx(), keras.config.image_data_format(), keras.config.dtype_policy()
    _set("float32", "channels_last", policy)
    try:
        with _without_variable("TF_USE_LEGACY_KERAS"):
            yield
    finally:
        _set(*before)


def _set(floatx: str, layout: str, policy: str | keras.DTypePolicy) -> None:
    keras.config.set_floatx(floatx)
    keras.config.set_image_data_format(layout)
    keras.config.set_dtype_policy(policy)


__all__ = ["keras", "keras_settings", "silent_stderr", "tf"]
