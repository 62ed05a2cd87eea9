"""The main face of an image, and its crop; of many images in batches, several at a time."""

import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from agelib.config import Crop
from agelib.faces.images import Rejected, read_image, resize
from agelib.faces.shards import encode_jpeg

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.faces.detector import FaceDetector

PORTRAIT_CANVAS = 72  # pixels per side that suffice to find the face of a portrait
MIN_FACE = 20  # pixels of the original image; less holds no age
_MIN_INSIDE = 0.5
_RIVAL_AREA = 0.5
_RIVAL_DISTANCE = 0.15
BATCH = 64
_THREADS = 2
_AHEAD = 2  # batches
_MAX_SIDE = 1024  # pixels of an image in memory: more than any crop has, and batches stay small

_Image = np.ndarray | Rejected


@dataclass(frozen=True)
class Face:
    """A detected face."""

    box: tuple[float, float, float, float]  # left, top, right, bottom; may leave the image
    confidence: float  # the detector's, 0 to 1
    # x and y of left eye, right eye, nose, left and right corner of the mouth (as seen in the
    # picture), float of shape (5, 2)
    landmarks: np.ndarray

    @property
    def size(self) -> float:
        """The longer side of the box in pixels."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])

    @property
    def tilt(self) -> float:
        """The angle of the line through the eyes in degrees; above 0 if the right one is lower."""
        x, y = self.landmarks[1] - self.landmarks[0]
        return math.degrees(math.atan2(y, x))

    def inside(self, shape: tuple[int, ...]) -> float:
        """Returns the share of the box, 0 to 1, that lies in an image of this shape."""
        left, top, right, bottom = self.box
        width = min(right, shape[1]) - max(left, 0)
        height = min(bottom, shape[0]) - max(top, 0)
        return max(0.0, width) * max(0.0, height) / ((right - left) * (bottom - top))


def choose_face(faces: Sequence[Face], shape: tuple[int, ...]) -> Face:
    """Returns the main face of an image of this shape, height first: the most central one.

    Raises Rejected: "no_face"; "ambiguous" if another face is about as large and as central;
    "small_face" below 20 pixels; "cut_off" if much of it lies outside the image.
    """
    if not faces:
        raise Rejected("no_face", "The image has no face that MTCNN finds.")
    centre = np.array([shape[1], shape[0]]) / 2
    distances = [
        float(np.linalg.norm(np.add(face.box[:2], face.box[2:]) / 2 - centre)) / max(shape[:2])
        for face in faces
    ]
    best = int(np.argmin(distances))
    chosen = faces[best]
    for i, face in enumerate(faces):
        similar = (face.size / chosen.size) ** 2 >= _RIVAL_AREA
        if i != best and similar and distances[i] - distances[best] < _RIVAL_DISTANCE:
            raise Rejected("ambiguous", "The image has two faces that could be the main one.")
    if chosen.size < MIN_FACE:
        raise Rejected("small_face", f"The face is smaller than {MIN_FACE} pixels.")
    if chosen.inside(shape) < _MIN_INSIDE:
        raise Rejected("cut_off", "Much of the face lies outside the image.")
    return chosen


def crop_face(image: np.ndarray, face: Face, crop: Crop) -> np.ndarray:
    """Cuts a face out of an RGB uint8 image: its box made square, widened and scaled.

    Where that leaves the image its border is repeated. Returns RGB uint8 of shape
    (crop.size, crop.size, 3).
    """
    left, top, right, bottom = face.box
    centre = (left + right) / 2, (top + bottom) / 2
    side = face.size * (1 + 2 * crop.margin)
    if not crop.align:
        return resize(_cut_square(image, centre, side), (crop.size, crop.size))
    # Turned before it is scaled: scaling averages, turning does not.
    wide = _cut_square(image, centre, side * math.sqrt(2))
    middle = (wide.shape[1] - 1) / 2, (wide.shape[0] - 1) / 2
    turn = cv2.getRotationMatrix2D(middle, face.tilt, 1)
    level = cv2.warpAffine(wide, turn, wide.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return resize(_cut_square(level, np.add(middle, 0.5), side), (crop.size, crop.size))


def _cut_square(image: np.ndarray, centre: Sequence[float], side: float) -> np.ndarray:
    size, spans, border = max(1, round(side)), [], []
    for middle, limit in zip(centre[::-1], image.shape[:2], strict=True):
        # One pixel, at least, is the image's.
        start = min(max(round(middle - side / 2), 1 - size), limit - 1)
        spans.append(slice(max(start, 0), start + size))
        border += [max(-start, 0), max(start + size - limit, 0)]
    return cv2.copyMakeBorder(image[tuple(spans)], *border, cv2.BORDER_REPLICATE)


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
    """Yields `call(item)` for each item, in order; at most `ahead` + 1 results wait in memory.

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
