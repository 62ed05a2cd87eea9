"""TensorFlow and Keras, loaded once and without the start-up log that TensorFlow always prints."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Sends what C++ code writes to the process' standard error nowhere.

    TensorFlow's first messages ignore TF_CPP_MIN_LOG_LEVEL: they come before its logging starts.
    So do its converters'.
    """
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


# Left to itself, TensorFlow turns these kernels on for the newest processors alone; they halve the
# time of networks on others too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

with silent_stderr():
    import keras
    import tensorflow as tf

    tf.config.list_physical_devices()

__all__ = ["keras", "silent_stderr", "tf"]
