"""Faces: read an image, choose the face that it is about, and crop it.

Images are RGB, uint8, of shape (height, width, 3), everywhere.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from agelib import AgelibError

MAX_PIXELS = 100_000_000
MIN_FACE = 20  # pixels of the original image; less holds no age
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


class Rejected(AgelibError):
    """An image that cannot be used; `reason` is a word for the table."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def read_image(source: Path | bytes) -> np.ndarray:
    """Reads an image of any common format upright, as its EXIF orientation says.

    Args:
        source: A file's path, or its bytes.

    Returns:
        RGB uint8 of shape (height, width, 3).

    Raises:
        Rejected: For the reason "unreadable", if it is no image, cut short or too large.
    """
    name = "the image" if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            # Odd EXIF entries and large images; what matters comes as an error below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"more than {MAX_PIXELS // 1_000_000} megapixels")
                return _to_rgb(ImageOps.exif_transpose(image))
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        raise Rejected("unreadable", f"{name} cannot be read as an image ({error}).") from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits per pixel
        pixels = np.clip(np.asarray(image, np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(pixels[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


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
            "small_face" below 20 pixels.
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
    return chosen


def crop_face(image: np.ndarray, face: Face, crop_size: int, margin: float) -> np.ndarray:
    """Cuts out a face: its box made square, widened on each side, scaled to `crop_size`.

    Where the square leaves the image, the image's border is repeated.

    Args:
        image: RGB uint8.
        face: A face of this image.
        crop_size: Pixels per side of the result.
        margin: Widening on each side, in box widths.

    Returns:
        RGB uint8 of shape (crop_size, crop_size, 3).
    """
    left, top, right, bottom = face.box
    half = face.size * (0.5 + margin)
    x, y = (left + right) / 2, (top + bottom) / 2
    side = max(1, round(2 * half))
    x0, y0 = round(x - half), round(y - half)
    height, width = image.shape[:2]
    rows = np.clip(np.arange(y0, y0 + side), 0, height - 1)
    columns = np.clip(np.arange(x0, x0 + side), 0, width - 1)
    return resize(image[rows[:, None], columns], (crop_size, crop_size))
