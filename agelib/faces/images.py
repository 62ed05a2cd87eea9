"""Faces: read an image, choose the face that it is about, and crop it.

Images are RGB, uint8, of shape (height, width, 3), everywhere.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from agelib import AgelibError

MAX_PIXELS = 100_000_000
# Those alone: for others Pillow starts programs (Ghostscript) or tries forty decoders.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Odd EXIF entries, large images; what matters is an error. Here, as the filters of a single call
# are not safe among threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
PORTRAIT_CANVAS = 72  # pixels per side that suffice to find the face of a portrait
MIN_FACE = 20  # pixels of the original image; less holds no age
_MIN_INSIDE = 0.5
_RIVAL_AREA = 0.5
_RIVAL_DISTANCE = 0.15


@dataclass(frozen=True)
class Face:
    """A detected face.

    Attributes:
        box: Left, top, right and bottom in pixels; may reach outside the image.
        confidence: The detector's, 0 to 1.
        landmarks: x and y of left eye, right eye, nose, left and right corner of the mouth (as
            seen in the picture), float of shape (5, 2).
    """

    box: tuple[float, float, float, float]
    confidence: float
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


class Rejected(AgelibError):
    """An image that cannot be used; `reason` is a word for the table."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def read_image(source: Path | bytes | Image.Image, max_side: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image of any common format upright, as its EXIF orientation says.

    Args:
        source: A file's path, its bytes, or what Pillow made of it.
        max_side: Images with a longer side than this are scaled down to it.

    Returns:
        RGB uint8 of shape (height, width, 3).

    Raises:
        Rejected: For the reason "unreadable", if it is no image, cut short or too large.
    """
    name = "the image" if isinstance(source, bytes | Image.Image) else source
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        return _decode(file, max_side)
    # Pillow's decoders raise nearly anything on damaged files, and say it in terms of their own.
    except Exception as error:
        if isinstance(error, Image.DecompressionBombError):
            why = f"more than {MAX_PIXELS // 1_000_000} megapixels"
        else:
            why = getattr(error, "strerror", None) or "damaged, or of no common format"
    # Not from the decoder's error, whose traceback keeps the image: cleaning collects rejections.
    raise Rejected("unreadable", f"{name} cannot be read as an image ({why}).")


def _decode(file: Path | io.BytesIO | Image.Image, max_side: int) -> np.ndarray:
    if isinstance(file, Image.Image):
        _check_size(file)
        # Turned in place, it would no longer be the caller's.
        return _pixels(file.copy(), max_side)
    with Image.open(file, formats=_FORMATS) as image:
        _check_size(image)
        # A JPEG need not be decoded at full size in the first place.
        image.draft(None, (max_side, max_side))
        return _pixels(image, max_side)


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _pixels(image: Image.Image, max_side: int) -> np.ndarray:
    rgb = _to_rgb(image)
    rgb.thumbnail((max_side, max_side))
    return np.asarray(rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    # In place, as a copy of a large photo is large. Damaged EXIF is no reason to lose one.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits per pixel
        image = Image.fromarray(np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales an image to (width, height): averages when shrinking, interpolates when growing."""
    if image.shape[1::-1] == tuple(size):
        return image
    shrinks = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def choose_face(faces: Sequence[Face], shape: tuple[int, ...]) -> Face:
    """Chooses the face that an image is about: the most central one.

    Args:
        faces: The image's faces.
        shape: The image's, height first.

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
            raise Rejected("ambiguous", "The image has two faces that it could be about.")
    if chosen.size < MIN_FACE:
        raise Rejected("small_face", f"The face is smaller than {MIN_FACE} pixels.")
    if chosen.inside(shape) < _MIN_INSIDE:
        raise Rejected("cut_off", "Much of the face lies outside the image.")
    return chosen


def crop_face(
    image: np.ndarray, face: Face, crop_size: int, margin: float, align: bool = False
) -> np.ndarray:
    """Cuts out a face: its box made square, widened, scaled.

    Where the square leaves the image, the image's border is repeated.

    Args:
        image: RGB uint8.
        face: A face of this image.
        crop_size: Pixels per side of the result.
        margin: Widening on each side, in box widths.
        align: Whether to turn the face so that its eyes are level.

    Returns:
        RGB uint8 of shape (crop_size, crop_size, 3).
    """
    left, top, right, bottom = face.box
    centre = (left + right) / 2, (top + bottom) / 2
    side = face.size * (1 + 2 * margin)
    if not align:
        return resize(_cut_square(image, centre, side), (crop_size, crop_size))
    # Turned at its own resolution, and scaled after that: scaling averages, turning does not.
    wide = _cut_square(image, centre, side * math.sqrt(2))
    middle = (wide.shape[1] - 1) / 2, (wide.shape[0] - 1) / 2
    turn = cv2.getRotationMatrix2D(middle, face.tilt, 1)
    level = cv2.warpAffine(wide, turn, wide.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
    return resize(_cut_square(level, np.add(middle, 0.5), side), (crop_size, crop_size))


def _cut_square(image: np.ndarray, centre: Sequence[float], side: float) -> np.ndarray:
    size = max(1, round(side))
    left, right, before, after = _span(round(centre[0] - side / 2), size, image.shape[1])
    top, bottom, above, below = _span(round(centre[1] - side / 2), size, image.shape[0])
    border = above, below, before, after
    return cv2.copyMakeBorder(image[top:bottom, left:right], *border, cv2.BORDER_REPLICATE)


def _span(start: int, size: int, limit: int) -> tuple[int, int, int, int]:
    """Splits a stretch of pixels: its part inside 0 to limit, at least one, and what is around."""
    first, last = (min(max(i, 0), limit - 1) for i in (start, start + size - 1))
    before = min(max(-start, 0), size - 1)
    return first, last + 1, before, size - before - (last + 1 - first)
