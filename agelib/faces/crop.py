"""The main face of an image, and its crop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from agelib.config import Crop
from agelib.faces.images import Rejected, resize

PORTRAIT_CANVAS = 72  # pixels per side that suffice to find the face of a portrait
MIN_FACE = 20  # pixels of the original image; less holds no age
_MIN_INSIDE = 0.5
_RIVAL_AREA = 0.5
_RIVAL_DISTANCE = 0.15


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

    Raises:
        Rejected: "no_face"; "ambiguous" if another face is about as large and as central;
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
