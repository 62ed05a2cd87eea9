"""Faces in photos as people take them: looked at twice, and turned where they do not stand upright.

MTCNN takes hair, a lectern or a knee for a face now and then. A real face is found again when its
surroundings are cut out and scaled to another size; hardly anything else is. The same cut-outs,
turned, tell a face that stands upright from one that lies or hangs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agelib.faces.crop import PORTRAIT_CANVAS, Face
from agelib.faces.detector import FaceDetector, iou

# Few sizes, since each is compiled once; a photo may be larger than its canvas by a quarter.
_CANVASES = (80, 160, 320, 640)
PHOTO_CANVAS = _CANVASES[-1]
_LARGER = 1.25
_AROUND = 0.25  # of a box, on each side of it, is cut out with it
_MIN_INSIDE = 0.5  # of a box, as in the faces that models are trained on
_SAME = 0.35  # intersection over union of a face with itself at another size
# Measured by tests/benchmarks/bench_boxes.py: more than this no face has that is not upright, and
# no upright one looks better by so much when it is turned.
_SURELY_UPRIGHT, _TIE = 0.995, 0.01


@dataclass(frozen=True)
class Found:
    """A face in a photo.

    Attributes:
        face: Where it is when the photo is turned.
        turns: Quarter turns, counter-clockwise, after which the face stands upright.
        sideways: Whether it looks about as much like a face when it is turned otherwise.
    """

    face: Face
    turns: int
    sideways: bool


def find_faces(detector: FaceDetector, photos: Sequence[np.ndarray]) -> list[list[Found]]:
    """Finds the faces of each photo, or of the photo turned if none stands upright.

    Returns:
        For each photo (RGB uint8, of any size) its faces, from left to right, all of them after the
        same turns.
    """
    canvases = [_canvas_size(photo) for photo in photos]
    found: list[list[Found]] = [[] for _ in photos]
    # At last on a larger canvas, where smaller faces are found.
    for turns, factor in (((0,), 1), ((1, 2, 3), 1), ((0,), 2)):
        missing = [i for i, faces in enumerate(found) if not faces]
        sizes = [factor * canvases[i] for i in missing]
        tries = [_look(detector, [photos[i] for i in missing], sizes, turn) for turn in turns]
        for i, *faces in zip(missing, *tries, strict=True):
            found[i] = max(faces, key=lambda each: sum(one.face.confidence for one in each))
    return [sorted(faces, key=lambda each: each.face.box[0]) for faces in found]


def turn_face(face: Face, turns: int, shape: tuple[int, ...]) -> Face:
    """Returns where a face of an image of this shape is in `np.rot90(image, turns)`."""
    height, width = shape[:2]
    for _ in range(turns % 4):
        left, top, right, bottom = face.box
        x, y = face.landmarks.T
        box, points = (top, width - right, bottom, width - left), np.stack([y, width - x], axis=1)
        face = Face(box, face.confidence, points)
        height, width = width, height
    return face


def _canvas_size(photo: np.ndarray) -> int:
    long_side = max(photo.shape[:2])
    return next((size for size in _CANVASES if size * _LARGER >= long_side), PHOTO_CANVAS)


def _look(
    detector: FaceDetector, photos: Sequence[np.ndarray], sizes: Sequence[int], turns: int
) -> list[list[Found]]:
    """Finds the faces that stand upright once the photos are turned, on canvases of these sizes."""
    turned = [np.rot90(photo, turns) for photo in photos]
    candidates: list[tuple[int, Face]] = []
    for size in sorted(set(sizes)):
        chosen = [i for i, each in enumerate(sizes) if each == size]
        faces = detector.detect_in_photos([photos[i] for i in chosen], size, turns)
        for i, each in zip(chosen, faces, strict=True):
            shape = turned[i].shape
            candidates += [(i, face) for face in each if face.inside(shape) >= _MIN_INSIDE]
    cuts = [_cut_out(turned[i], face) for i, face in candidates]
    upright = _scores(detector, cuts, (0,))[0]
    doubtful = np.flatnonzero((upright > 0) & (upright < _SURELY_UPRIGHT))
    others = np.zeros(len(cuts))
    others[doubtful] = _scores(detector, [cuts[i] for i in doubtful], (1, 2, 3)).max(axis=0)
    found: list[list[Found]] = [[] for _ in photos]
    for (i, face), here, other in zip(candidates, upright, others, strict=True):
        if here and other <= here + _TIE:
            found[i].append(Found(face, turns, sideways=bool(other >= here - _TIE)))
    return found


def _cut_out(photo: np.ndarray, face: Face) -> tuple[np.ndarray, Face]:
    """Returns a face with a little around it, as far as the photo goes, and where it is in that."""
    around = face.size * _AROUND
    left, top = (max(0, int(side - around)) for side in face.box[:2])
    right, bottom = (int(side + around) + 1 for side in face.box[2:])
    box = tuple(np.subtract(face.box, (left, top, left, top)).tolist())
    return photo[top:bottom, left:right], Face(box, face.confidence, face.landmarks - [left, top])


def _scores(
    detector: FaceDetector, cuts: Sequence[tuple[np.ndarray, Face]], turns: Sequence[int]
) -> np.ndarray:
    """Returns how confident MTCNN is of each face in its cut-out after each of these turns.

    Returns:
        Of shape (turns, cut-outs), 0 where it does not find the face.
    """
    images = [np.rot90(image, turn) for turn in turns for image, _ in cuts]
    faces = [turn_face(face, turn, image.shape) for turn in turns for image, face in cuts]
    found = detector.detect_in_photos(images, PORTRAIT_CANVAS)
    best = [
        max((each.confidence for each in others if iou(each, face) > _SAME), default=0.0)
        for face, others in zip(faces, found, strict=True)
    ]
    return np.reshape(best, (len(turns), len(cuts)))
