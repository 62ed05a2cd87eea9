"""Images: read from any common format, upright, and resized.

Images are RGB, uint8, of shape (height, width, 3), everywhere.
"""

import contextlib
import io
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from agelib import AgelibError
from agelib.disk_errors import explain, is_disconnected, is_transient, retrying
from agelib.files import IMAGE_FORMATS

MAX_PIXELS = 100_000_000
_MAX_BYTES = 1_000_000_000
_JPEG_END = b"\xff\xd9"
_PHONE_FORMATS = (b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1", b"avif", b"avis")

# Of odd EXIF entries and large images; real trouble is an error. At import, as `catch_warnings` is
# not safe with threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Rejected(AgelibError):
    """An image that cannot be used; `reason` is a word for the table."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def read_image(
    source: str | os.PathLike | bytes | bytearray | memoryview | Image.Image,
    max_side: int | None = None,
) -> np.ndarray:
    """Returns RGB uint8 of shape (height, width, 3), turned upright by its EXIF orientation.

    `source` is a file's path, its bytes, or a Pillow image; one with a side longer than `max_side`
    is scaled down to it. Raises Rejected, "unreadable", if it is no image, cut short or too large,
    and AgelibError if its disk cannot be read now.
    """
    is_path, content = isinstance(source, str | os.PathLike), b""
    try:
        if isinstance(source, Image.Image):
            _check_size(source)
            return _pixels(source.copy(), max_side)  # a copy, as it is turned in place
        content = _read_bytes(Path(source)) if is_path else bytes(source)
        return _decode(content, max_side)
    except (AgelibError, MemoryError):  # not the image's fault
        raise
    # Pillow's decoders raise nearly anything on damaged files.
    except Exception as error:
        why = getattr(error, "strerror", None) or "damaged, or of no common format"
        if isinstance(error, Image.DecompressionBombError):
            why = f"more than {MAX_PIXELS // 1_000_000} megapixels"
        # An ISO media file: the size of its first box, "ftyp", and its brand.
        elif content[4:8] == b"ftyp" and content[8:12] in _PHONE_FORMATS:
            why = "damaged, or of a format that Pillow does not read here: export it as JPEG"
    # Outside `except`: cleaning collects rejections, and the decoder's error keeps its image alive.
    name = source if is_path else "the image"
    raise Rejected("unreadable", f"{name} cannot be read as an image ({why}).")


def _read_bytes(path: Path) -> bytes:
    try:
        if retrying(path.stat)().st_size > _MAX_BYTES:
            raise Rejected("unreadable", f"{path} cannot be read as an image (more than 1 GB).")
        return retrying(path.read_bytes)()
    except OSError as error:
        if is_transient(error) or is_disconnected(error):
            raise explain(error, f"{path} could not be read", path.parent) from error
        raise


def _decode(content: bytes, max_side: int | None) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
        _check_size(image)
        if max_side:  # a JPEG need not be decoded at full size in the first place
            image.draft(None, (max_side, max_side))
        try:
            return _pixels(image, max_side)
        except OSError:
            if image.format != "JPEG" or content.endswith(_JPEG_END):
                raise
    return _decode_without_end(content, max_side)


def _decode_without_end(content: bytes, max_side: int | None) -> np.ndarray:
    """Decodes a JPEG that lacks its end mark, if all of its pixels are there.

    Missing pixels would be decoded from the bytes that are filled in, so two fillings must agree.
    """
    content = content.rstrip(_JPEG_END[:1])  # half a mark would make one with the filling
    with_mark, with_filling = (
        _decode(content + filling + _JPEG_END, max_side)
        for filling in (b"", bytes(range(254, -1, -1)))
    )
    if not np.array_equal(with_mark, with_filling):
        raise OSError
    return with_mark


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


def _pixels(image: Image.Image, max_side: int | None) -> np.ndarray:
    image.load()
    # In place, as a copy of a large photo is large. A photo with damaged EXIF can still be used.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if max_side:
        rgb.thumbnail((max_side, max_side))
    return np.asarray(rgb)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scales grey levels of 16 or 32 bits by their range: 8, 12 or 16 bits."""
    values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
    top = float(values.max())
    # Floats often go from 0 to 1.
    limits = (1, 255, 4095, 65535) if image.mode == "F" else (255, 4095, 65535)
    white = next((limit for limit in limits if top <= limit), top)
    return Image.fromarray((values * (255 / white)).clip(0, 255).round().astype(np.uint8))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scales an image to (width, height): averages when shrinking, interpolates when growing."""
    if image.shape[1::-1] == tuple(size):
        return image
    shrinks = size[0] < image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
