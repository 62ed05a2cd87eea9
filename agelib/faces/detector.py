"""MTCNN, compiled, on batches of equal-sized canvases.

The three networks and their weights are the `mtcnn` package's (Zhang et al., "Joint Face Detection
and Alignment using Multi-task Cascaded Convolutional Networks", 2016); the cascade around them is
ours. The package's own runs in Python, image by image and box by box; here a whole batch goes
through one TensorFlow graph. Every image is scaled to a square canvas, as a crop that was made for
a face needs few pixels, and each network hands on a fixed number of candidates, the best ones.
"""

import functools
import io
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import distribution

import joblib
import lz4.frame
import numpy as np

from agelib.backend import silent_stderr, tf
from agelib.faces.crop import PORTRAIT_CANVAS, Face
from agelib.faces.images import resize

# The side, stride and padding of the pooling after each layer but the heads.
_POOLS = {
    "pnet": ((2, 2, "SAME"), None, None),
    "rnet": ((3, 2, "SAME"), (3, 2, "VALID"), None, None),
    "onet": ((3, 2, "SAME"), (3, 2, "VALID"), (2, 2, "SAME"), None, None),
}
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
        self._networks = [
            functools.partial(_run, _read_weights(name), pools) for name, pools in _POOLS.items()
        ]
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
        faces = self._detect(images, canvas_size)
        again = [i for i, found in enumerate(faces) if not found]
        second = self._detect([images[i] for i in again], 2 * canvas_size)
        for i, found in zip(again, second, strict=True):
            faces[i] = found
        return faces

    def detect_in_photos(
        self, images: Sequence[np.ndarray], canvas_size: int, turns: int = 0
    ) -> list[list[Face]]:
        """Finds the faces in each `np.rot90(image, turns)`, those too that its frame cuts.

        Takes and returns what `detect` does, but looks once; the image gets nine tenths of the
        canvas.
        """
        return self._detect(images, canvas_size, in_middle=True, turns=turns)

    def _detect(
        self, images: Sequence[np.ndarray], size: int, in_middle: bool = False, turns: int = 0
    ) -> list[list[Face]]:
        faces: list[list[Face]] = []
        at_a_time = max(1, min(BATCH, BATCH * _BATCH_SIDE**2 // size**2))
        for start in range(0, len(images), at_a_time):
            batch = images[start : start + at_a_time]
            placed = [_letterbox(image, size, in_middle, turns) for image in batch]
            results = self._cascade(np.stack([canvas for canvas, *_ in placed]))
            for (_, *where), *found in zip(placed, *results, strict=True):
                faces.append(_to_faces(*found, *where))
        return faces

    def _cascade(self, canvases: np.ndarray) -> list[np.ndarray]:
        """Runs the networks, which are compiled for each size of canvas at its first run."""
        size = canvases.shape[1]
        new = size not in self._cascades
        if new:
            self._cascades[size] = _compile(self._networks, size)
        # TensorFlow 2.20 complains of costs that it cannot tell.
        with silent_stderr() if new else nullcontext():
            return [result.numpy() for result in self._cascades[size](canvases)]


def iou(one: Face, other: Face) -> float:
    """Returns the intersection over union of the boxes of two faces, 0 to 1."""
    a, b = np.array([one.box, other.box])
    common = _common_area(a, b)
    return common / (_area(a) + _area(b) - common)


def _area(box: np.ndarray) -> float:
    return float(np.prod(box[2:] - box[:2]))


def _common_area(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return float(np.prod(np.maximum(0, sides)))


def _to_faces(
    boxes: np.ndarray, scores: np.ndarray, landmarks: np.ndarray, scale: float, corner: np.ndarray
) -> list[Face]:
    """Returns the confident faces, best first, without those that mostly lie in a better one."""
    best: list[int] = []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] < MIN_CONFIDENCE:
            break
        shares = (
            _common_area(boxes[i], boxes[j]) / max(1e-9, min(_area(boxes[i]), _area(boxes[j])))
            for j in best
        )
        if all(share <= _OVERLAPS[2] for share in shares):
            best.append(int(i))
    boxes, landmarks = (boxes - np.tile(corner, 2)) / scale, (landmarks - corner) / scale
    return [Face(tuple(boxes[i].tolist()), float(scores[i]), landmarks[i]) for i in best]


def _letterbox(
    image: np.ndarray, canvas_size: int, in_middle: bool, turns: int
) -> tuple[np.ndarray, float, np.ndarray]:
    """Scales an image to fit a canvas; returns the canvas, the scale, and where the image begins.

    It lies in the corner of a black canvas, or in the middle of a grey one, which is larger: a face
    that the image's frame cuts is then one that something hides, which MTCNN knows better.
    """
    margin, colour = (_MARGIN, _GREY) if in_middle else (0, 0)
    height, width = image.shape[:2]
    scale = round(canvas_size * (1 - 2 * margin)) / max(height, width)
    # Large photos are halved first, which OpenCV does many times as fast as any other scale.
    while in_middle and max(image.shape[:2]) >= 4 * canvas_size:
        image = resize(image, tuple(max(1, side // 2) for side in image.shape[1::-1]))
    small = resize(image, (max(1, round(width * scale)), max(1, round(height * scale))))
    small = np.rot90(small, turns)  # now, as a large photo takes long to turn
    height, width = small.shape[:2]
    left, top = ((canvas_size - side) // 2 if in_middle else 0 for side in (width, height))
    canvas = np.full((canvas_size, canvas_size, 3), colour, np.uint8)
    canvas[top : top + height, left : left + width] = small
    return canvas, scale, np.float32([left, top])


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


def _read_weights(name: str) -> list[np.ndarray]:
    """Returns each layer's kernel, bias and slopes of its PReLU, then the heads' without slopes."""
    # The package, which brings lz4 along, would build the networks in Keras.
    packed = distribution("mtcnn").locate_file(f"mtcnn/assets/weights/{name}.lz4").read_bytes()
    return joblib.load(io.BytesIO(lz4.frame.decompress(packed)))


def _run(
    weights: Sequence[np.ndarray], pools: Sequence[tuple | None], x: tf.Tensor
) -> list[tf.Tensor]:
    """Runs a network, for which Keras would take more steps.

    Returns:
        The output of each head; of the last one, which knows faces, the logit.
    """
    arrays = iter(weights)
    for pool in pools:
        x = _convolve(x, next(arrays), next(arrays))
        x += tf.minimum(x, 0) * (next(arrays) - 1)  # PReLU
        x = tf.nn.max_pool2d(x, *pool) if pool else x
    *outputs, classes = [_convolve(x, kernel, next(arrays)) for kernel in arrays]
    return [*outputs, classes[..., 1] - classes[..., 0]]


def _convolve(x: tf.Tensor, kernel: np.ndarray, bias: np.ndarray) -> tf.Tensor:
    if kernel.ndim == 2:  # of a dense layer, on an image of columns
        kernel = kernel.reshape(x.shape[2], x.shape[1], -1, len(bias)).swapaxes(0, 1)
    return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "VALID"), bias)


def _propose(
    network: Callable, images: tf.Tensor, canvas_size: int, count: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Slides the first network over a pyramid of scales; returns its best boxes of each scale."""
    boxes, scores = [], []
    scale = _CELL / _MIN_FACE
    while (size := int(canvas_size * scale)) >= _CELL:
        shift, logits = network(tf.image.resize(images, (size, size), "area"))
        side = logits.shape[1]
        cells = side**2
        logits, place = tf.math.top_k(tf.reshape(logits, (-1, cells)), min(count, cells))
        shift = tf.gather(tf.reshape(shift, (-1, cells, 4)), place, batch_dims=1)
        corner = tf.cast(tf.stack([place % side, place // side], -1), tf.float32) * _STRIDE
        cell = tf.concat([corner, corner + _CELL], axis=-1)
        boxes.append((cell + shift * _CELL) / scale)
        scores.append(tf.sigmoid(logits))
        scale *= _PYRAMID_STEP
    return tf.concat(boxes, axis=1), tf.concat(scores, axis=1)


def _refine(
    network: Callable, images: tf.Tensor, boxes: tf.Tensor, scores: tf.Tensor, size: int
) -> list[tf.Tensor]:
    """Runs a network on the image inside each box whose score is not 0.

    Returns:
        Its outputs as (n, k, ...), the last one as a probability, and 0 where there is no box.
    """
    there = tf.cast(tf.where(scores > 0), tf.int32)
    side = tf.cast(tf.shape(images)[1], tf.float32)
    corners = tf.gather(tf.gather_nd(boxes, there), [1, 0, 3, 2], axis=1) / side
    patches = tf.image.crop_and_resize(images, corners, there[:, 0], (size, size))
    # One empty patch more, left out again below: convolutions on no patch at all fail.
    patches = tf.concat([patches, tf.zeros((1, size, size, 3))], axis=0)
    *outputs, logits = (output[:-1, 0, 0] for output in network(patches))
    shape = tf.shape(scores)
    spread = [
        tf.scatter_nd(there, output, tf.concat([shape, [output.shape[-1]]], axis=0))
        for output in outputs
    ]
    return [*spread, tf.scatter_nd(there, tf.sigmoid(logits), shape)]


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
