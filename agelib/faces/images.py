"""Images: read from any common format, upright, and resized.

Images are RGB, uint8, of shape (height, width, 3), everywhere.
"""

import contextlib
import io
import warnings
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
