"""MTCNN, compiled, on batches of equal-sized canvases.

The three networks and their weights are the `mtcnn` package's (Zhang et al., "Joint Face Detection
and Alignment using Multi-task Cascaded Convolutional Networks", 2016); the cascade around them is
ours. The package's own runs in Python, image by image and box by box, which takes most of its time;
here a whole batch goes through one TensorFlow graph.

Two things make it fast. Every image is scaled to fit a square canvas: a crop that was made for a
face needs few pixels. And each network hands on its best candidates only, a fixed number for each
image, where the package hands on all.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from agelib.backend import keras_settings, silent_stderr, tf
from agelib.faces.crop import PORTRAIT_CANVAS, Face
from agelib.faces.images import resize

MIN_CONFIDENCE = 0.8
BATCH = 64
_BATCH_SIDE = 240  # canvases larger than this go in smaller batches, which hold as many pixels

_CELL, _STRIDE = 12, 2  # of the first network, in pixels of its input
_MIN_FACE = 20  # canvas pixels; the pyramid's first scale brings such a face to the cell's size
_PYRAMID_STEP = 0.709
# Candidates for each image that go on, by canvas pixels: a portrait holds one face, a photo many.
_PER_SCALE, _FIRST, _SECOND = 12, 8, 3
_THRESHOLDS = (0.6, 0.7, MIN_CONFIDENCE)
_OVERLAPS = (0.6, 0.7, 0.7)
_MARGIN = 0.05  # of the canvas, on each side of a photo whose frame may cut faces
_GREY = 128  # 0 to the networks, as what lies outside the canvas


class FaceDetector:
    """Finds faces; make one and keep it, since each new canvas size is compiled once."""

    def __init__(self):
        with _no_complaints_from_lz4(), keras_settings():
            # Imported here: it loads TensorFlow, which `backend` has done quietly by now.
            from mtcnn import MTCNN

            self._networks = [stage._model for stage in MTCNN().stages]
        self._cascades: dict[int, Callable] = {}

    def detect(
        self, images: Sequence[np.ndarray], canvas_size: int = PORTRAIT_CANVAS
    ) -> list[list[Face]]:
        """Finds the faces in each image; where there is none, on a canvas twice as large.

        Args:
            images: RGB uint8 arrays of any sizes.
            canvas_size: Pixels per side of the canvas; a face needs about 20 of them. The default
                finds the face of a portrait, a photo of many people wants more.

        Returns:
            For each image its faces in its own pixels, most confident first.
        """
        faces = self._detect_at(canvas_size, images, _in_corner)
        again = [i for i, found in enumerate(faces) if not found]
        second = self._detect_at(2 * canvas_size, [images[i] for i in again], _in_corner)
        for i, found in zip(again, second, strict=True):
            faces[i] = found
        return faces

    def detect_in_photos(self, images: Sequence[np.ndarray], canvas_size: int) -> list[list[Face]]:
        """Finds the faces in each image, those that its frame cuts too, without a second try.

        Args:
            images: As for `detect`.
            canvas_size: As for `detect`; the image takes nine tenths of the canvas.

        Returns:
            As `detect` does.
        """
        return self._detect_at(canvas_size, images, _in_middle)

    def _run(self, canvases: np.ndarray) -> tuple[tf.Tensor, ...]:
        """Runs the networks, which are compiled for each size of canvas at its first run."""
        size = canvases.shape[1]
        if size in self._cascades:
            return self._cascades[size](canvases)
        self._cascades[size] = _compile(self._networks, size)
        # TensorFlow 2.20 complains of costs that it cannot tell.
        with silent_stderr():
            return self._cascades[size](canvases)

    def _detect_at(
        self, canvas_size: int, images: Sequence[np.ndarray], place: Callable
    ) -> list[list[Face]]:
        faces: list[list[Face]] = []
        at_a_time = max(1, min(BATCH, BATCH * _BATCH_SIDE**2 // canvas_size**2))
        for start in range(0, len(images), at_a_time):
            placed = [place(image, canvas_size) for image in images[start : start + at_a_time]]
            results = self._run(np.stack([canvas for canvas, *_ in placed]))
            boxes, scores, landmarks = (result.numpy() for result in results)
            for i, (_, scale, corner) in enumerate(placed):
                keep = _best_of_overlapping(boxes[i], scores[i])
                faces.append(
                    [
                        Face(
                            tuple(map(float, (boxes[i, j] - np.tile(corner, 2)) / scale)),
                            float(scores[i, j]),
                            (landmarks[i, j] - corner) / scale,
                        )
                        for j in keep
                    ]
                )
        return faces


def _in_corner(image: np.ndarray, canvas_size: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Scales an image into the corner of a black canvas; returns its scale and place as well."""
    canvas = np.zeros((canvas_size, canvas_size, 3), np.uint8)
    small, scale = _fit(image, canvas_size)
    canvas[: small.shape[0], : small.shape[1]] = small
    return canvas, scale, np.zeros(2, np.float32)


def _in_middle(image: np.ndarray, canvas_size: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Scales an image into the middle of a grey canvas, which is larger; returns as `_in_corner`.

    A face that the image's frame cuts is then one that something hides, which MTCNN knows better.
    """
    canvas = np.full((canvas_size, canvas_size, 3), _GREY, np.uint8)
    small, scale = _fit(image, round(canvas_size * (1 - 2 * _MARGIN)))
    height, width = small.shape[:2]
    left, top = (canvas_size - width) // 2, (canvas_size - height) // 2
    canvas[top : top + height, left : left + width] = small
    return canvas, scale, np.float32([left, top])


def _fit(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """Scales an image until its longer side has a length; returns the scale as well."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    return resize(image, (max(1, round(width * scale)), max(1, round(height * scale)))), scale


def _compile(networks: list, canvas_size: int) -> Callable:
    """Returns the cascade for one canvas size as a compiled function.

    It takes uint8 of shape (n, canvas_size, canvas_size, 3) and returns boxes (n, k, 4) as left,
    top, right and bottom, confidences (n, k), 0 where there is no face, and landmarks (n, k, 5, 2).
    """
    first, second, third = networks
    share = (canvas_size / PORTRAIT_CANVAS) ** 2

    def limit(count: int) -> int:
        return max(count, round(count * share))

    @tf.function(
        input_signature=[tf.TensorSpec((None, canvas_size, canvas_size, 3), tf.uint8)],
        autograph=False,
    )
    def cascade(canvases: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        images = (tf.cast(canvases, tf.float32) - 127.5) / 128
        boxes, scores = _propose(first, images, canvas_size, limit(_PER_SCALE))
        boxes, scores = _suppress(boxes, scores, limit(_FIRST), 0)
        boxes = _to_square(boxes)
        shift, scores = _refine(second, images, boxes, scores, 24)
        boxes, scores = _suppress(_shifted(boxes, shift), scores, limit(_SECOND), 1)
        boxes = _to_square(boxes)
        shift, points, scores = _refine(third, images, boxes, scores, 48)
        return _shifted(boxes, shift), scores, _points_in(boxes, points)

    return cascade


def _propose(
    network: Callable, images: tf.Tensor, canvas_size: int, count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Slides the first network over a pyramid of scales; returns its best boxes of each scale."""
    boxes, scores = [], []
    scale = _CELL / _MIN_FACE
    while (size := int(canvas_size * scale)) >= _CELL:
        shift, probability = network(tf.image.resize(images, (size, size), "area"))
        side = probability.shape[1]
        cells = side * probability.shape[2]
        score, place = tf.math.top_k(
            tf.reshape(probability[..., 1], (-1, cells)), min(count, cells)
        )
        shift = tf.gather(tf.reshape(shift, (-1, cells, 4)), place, batch_dims=1)
        corner = tf.cast(tf.stack([place % side, place // side], -1), tf.float32) * _STRIDE
        cell = tf.concat([corner, corner + _CELL], axis=-1)
        boxes.append((cell + shift * _CELL) / scale)
        scores.append(score)
        scale *= _PYRAMID_STEP
    return tf.concat(boxes, axis=1), tf.concat(scores, axis=1)


def _refine(
    network: Callable, images: tf.Tensor, boxes: tf.Tensor, scores: tf.Tensor, size: int
) -> list[tf.Tensor]:
    """Runs a network on the image inside each box whose score is not 0.

    Returns:
        The network's outputs as (n, k, ...), 0 where there is no box, with the probability of a
        face in place of those of both classes.
    """
    there = tf.cast(tf.where(scores > 0), tf.int32)
    side = tf.cast(tf.shape(images)[1], tf.float32)
    corners = tf.gather(tf.gather_nd(boxes, there), [1, 0, 3, 2], axis=1) / side
    patches = tf.image.crop_and_resize(images, corners, there[:, 0], (size, size))
    # One empty patch more, left out again below: convolutions on no patch at all fail.
    patches = tf.concat([patches, tf.zeros((1, size, size, 3))], axis=0)
    *outputs, probability = network(patches)
    shape = tf.shape(scores)
    spread = [
        tf.scatter_nd(there, output[:-1], tf.concat([shape, [output.shape[-1]]], axis=0))
        for output in outputs
    ]
    return [*spread, tf.scatter_nd(there, probability[:-1, 1], shape)]


def _suppress(
    boxes: tf.Tensor, scores: tf.Tensor, count: int, stage: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Keeps each image's best boxes among those that overlap."""
    kept = tf.image.combined_non_max_suppression(
        boxes[:, :, None],
        scores[..., None],
        count,
        count,
        _OVERLAPS[stage],
        _THRESHOLDS[stage],
        clip_boxes=False,
    )
    return kept.nmsed_boxes, kept.nmsed_scores


def _shifted(boxes: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Moves each side of a box by a share of the box's width or height."""
    size = boxes[..., 2:] - boxes[..., :2] + 1
    return boxes + shift * tf.concat([size, size], axis=-1)


def _to_square(boxes: tf.Tensor) -> tf.Tensor:
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = tf.reduce_max(boxes[..., 2:] - boxes[..., :2], axis=-1, keepdims=True) / 2
    return tf.concat([centre - half, centre + half], axis=-1)


def _points_in(boxes: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    """Turns five x and five y, as shares of a box, into points of the canvas."""
    size = boxes[..., 2:] - boxes[..., :2] + 1
    shares = tf.stack([points[..., :5], points[..., 5:]], axis=-1)
    return boxes[..., None, :2] - 1 + shares * size[..., None, :]


def _best_of_overlapping(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Returns the confident faces, best first, without those that mostly lie in a better one."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] < MIN_CONFIDENCE:
            break
        if all(_shared(boxes[i], boxes[j]) <= _OVERLAPS[2] for j in kept):
            kept.append(int(i))
    return kept


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the common area in areas of the smaller box."""
    common = np.prod(np.maximum(0, np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])))
    smaller = min(np.prod(one[2:] - one[:2]), np.prod(other[2:] - other[:2]))
    return float(common / max(smaller, 1e-9))


@contextmanager
def _no_complaints_from_lz4() -> Iterator[None]:
    """Hides "Exception ignored in BufferedReader": lz4 closes the weights' files twice."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook
