"""Cropping many images: read, detected, cut out and encoded in batches, several at a time."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agelib.config import Crop
from agelib.faces.crop import Face, choose_face, crop_face
from agelib.faces.images import Rejected, read_image
from agelib.faces.shards import encode_jpeg

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.faces.detector import FaceDetector

BATCH = 64
_THREADS = 2
_AHEAD = 2  # batches
_MAX_SIDE = 1024  # pixels of an image in memory: more than any crop has, and batches stay small

_Image = np.ndarray | Rejected


@functools.cache
def detector(shared: bool) -> "FaceDetector":
    """Returns this process' detector.

    If `shared`, other processes work beside this one: it uses one core, and leaves the GPU to
    training, since each process would claim all of its memory.
    """
    from agelib.backend import tf
    from agelib.faces.detector import FaceDetector

    if shared:
        # A process that has computed before keeps its settings.
        with suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
    return FaceDetector()


def crop_images(
    paths: Sequence[Path | bytes], crop: Crop, shared: bool = False
) -> Iterator[bytes | Rejected]:
    """Yields for each image, in order, the JPEG of its main face's crop, or why there is none.

    `paths` are image files, or their bytes; `shared` is as for `detector`.
    """
    batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    detect = detector(shared).detect
    with ThreadPoolExecutor(_THREADS) as pool:
        read = map_ahead(pool, _read, batches, _AHEAD)
        detected = (_detect(images, detect) for images in read)
        encode = functools.partial(_encode, crop=crop)
        for results in map_ahead(pool, encode, detected, _AHEAD):
            yield from results


def map_ahead(pool: Executor, call: Callable, items: Iterable, ahead: int) -> Iterator:
    """Yields `call(item)` for each item, in order; at most `ahead` results wait in memory.

    `pool.map` would take all items at once.
    """
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(call, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _read(paths: Sequence[Path | bytes]) -> list[_Image]:
    return [_or_rejected(read_image, path, _MAX_SIDE) for path in paths]


def _detect(images: list[_Image], detect: Callable) -> list[tuple[_Image, list[Face]]]:
    faces = iter(detect([image for image in images if not isinstance(image, Rejected)]))
    return [(image, [] if isinstance(image, Rejected) else next(faces)) for image in images]


def _encode(batch: list[tuple[_Image, list[Face]]], crop: Crop) -> list[bytes | Rejected]:
    return [_or_rejected(_encode_face, image, faces, crop) for image, faces in batch]


def _encode_face(image: _Image, faces: list[Face], crop: Crop) -> bytes:
    if isinstance(image, Rejected):
        raise image
    return encode_jpeg(crop_face(image, choose_face(faces, image.shape), crop))


def _or_rejected(call: Callable, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Rejected as reason:
        # A traceback would keep the whole batch in memory.
        return reason.with_traceback(None)
