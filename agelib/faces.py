"""Faces: read an image, find its faces with MTCNN, choose the one it is about, and crop it.

Images are RGB, uint8, of shape (height, width, 3), everywhere.
"""

import io
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from agelib import AgelibError
from agelib.backend import tf

MAX_PIXELS = 100_000_000
MIN_CONFIDENCE = 0.8  # below it, the last of MTCNN's three networks drops a box anyway
MIN_FACE = 20  # pixels of the original image; less holds no age
BATCH = 64
PORTRAIT_CANVAS = 96
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


class FaceDetector:
    """MTCNN on batches of equal-sized canvases.

    MTCNN's time goes with the number of pixels, and its Python with the number of calls. A crop
    made for a face needs few pixels, so every image is scaled to fit a small square canvas, and
    many canvases go through together. An image without a face gets a second try on a canvas twice
    as large.
    """

    def __init__(self):
        # Imported here: it loads TensorFlow, which `backend` has done quietly by now.
        from mtcnn import MTCNN

        device = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
        with _no_complaints_from_lz4():
            self._mtcnn = MTCNN(device=device)

    def detect(
        self, images: Sequence[np.ndarray], canvas_size: int = PORTRAIT_CANVAS
    ) -> list[list[Face]]:
        """Finds the faces in each image.

        Args:
            images: RGB uint8 arrays of any sizes.
            canvas_size: Pixels per side of the canvas; a face needs about 20 of them. The default
                finds the face of a portrait, a photo of many people wants more.

        Returns:
            For each image its faces in its own pixels, most confident first.
        """
        faces = self._detect_at(canvas_size, images)
        again = [i for i, found in enumerate(faces) if not found]
        second = self._detect_at(2 * canvas_size, [images[i] for i in again])
        for i, found in zip(again, second, strict=True):
            faces[i] = found
        return faces

    def _detect_at(self, canvas_size: int, images: Sequence[np.ndarray]) -> list[list[Face]]:
        faces: list[list[Face]] = []
        for start in range(0, len(images), BATCH):
            placed = [_place(image, canvas_size) for image in images[start : start + BATCH]]
            boxes = self._boxes([canvas for canvas, _ in placed])
            for found, (_, scale) in zip(boxes, placed, strict=True):
                faces.append([_to_face(row, scale) for row in found])
        return faces

    def _boxes(self, canvases: list[np.ndarray]) -> list[np.ndarray]:
        """Returns MTCNN's rows for each canvas, most confident first."""
        rows = self._mtcnn.detect_faces(
            canvases, box_format="xyxy", output_type="numpy", fit_to_image=False
        )
        # On an error of its own, MTCNN says that no image of the batch has a face.
        if not len(rows) and len(canvases) > 1:
            return [self._boxes([canvas])[0] for canvas in canvases]
        rows = rows[np.argsort(-rows[:, 5], kind="stable")]
        rows = rows[rows[:, 5] >= MIN_CONFIDENCE]
        return [rows[rows[:, 0] == i] for i in range(len(canvases))]


def _place(image: np.ndarray, canvas_size: int) -> tuple[np.ndarray, float]:
    """Scales an image into the corner of a black square canvas."""
    height, width = image.shape[:2]
    scale = canvas_size / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.zeros((canvas_size, canvas_size, 3), np.uint8)
    canvas[: size[1], : size[0]] = _resize(image, size)
    return canvas, scale


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _to_face(row: np.ndarray, scale: float) -> Face:
    """Turns a row of MTCNN (image, box, confidence, five x, five y) into a face."""
    box = tuple(float(value) for value in row[1:5] / scale)
    return Face(box, float(row[5]), row[6:16].reshape(2, 5).T / scale)


@contextmanager
def _no_complaints_from_lz4() -> Iterator[None]:
    """Hides "Exception ignored in BufferedReader": lz4 closes the weights' files twice."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        sys.unraisablehook = hook


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
    return _resize(image[rows[:, None], columns], (crop_size, crop_size))
