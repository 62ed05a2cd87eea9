"""Images as data sets hold them: in odd formats, damaged, enormous, or no images at all.

`FAITHFUL` kinds still show their source's face and must be kept, `DOUBTFUL` ones may be kept or
not, `HOPELESS` and `PLACES` are no images. `HEAVY` ones are as large as `read_image` allows.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.Image import Transpose

Encode = Callable[[Image.Image, np.random.Generator], bytes]

# A file's name says little about what it holds.
_NAMES = ("{}.jpg", "{}.JPEG", "{}.png", "{}.gif", "{}.txt", "{}", "{} Größe 写真 100%'.jpg")
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
_STORED_AS = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
_LARGE_SIDE = 9990


class Mutation(NamedTuple):
    """A file, or whatever lies in its place, made from a source image."""

    kind: str
    path: str
    source: Path


def mutate(
    sources: Sequence[Path], folder: Path, count: int, kinds: Sequence[str], seed: int = 0
) -> Iterator[Mutation]:
    """Writes so many mutations into a folder, of all kinds in turn; equal seeds, equal bytes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        kind, source = kinds[i % len(kinds)], sources[i % len(sources)]
        path = folder / _NAMES[rng.integers(len(_NAMES))].format(f"{i:05d}")
        if kind in PLACES:
            PLACES[kind](path)
        else:
            with Image.open(source) as image:
                path.write_bytes(_CONTENTS[kind](image.convert("RGB"), rng))
        yield Mutation(kind, path.name, source)


def _save(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _stored(form: str, mode: str = "RGB", **options) -> Encode:
    return lambda image, rng: _save(image.convert(mode), form, **options)


def _sixteen_bits(form: str) -> Encode:
    def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
        values = np.asarray(image.convert("L"), np.uint16) * 257
        return _save(Image.fromarray(values), form)

    return encode


def _floats(image: Image.Image, rng: np.random.Generator) -> bytes:
    return _save(Image.fromarray(np.asarray(image.convert("L"), np.float32)), "TIFF")


def _animated(form: str) -> Encode:
    def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
        more = [Image.effect_noise(image.size, 50).convert("RGB")]
        return _save(image, form, save_all=True, append_images=more)

    return encode


def _half_transparent(image: Image.Image, rng: np.random.Generator) -> bytes:
    alpha = Image.fromarray(rng.integers(0, 256, image.size[::-1], np.uint8))
    image.putalpha(alpha)
    return _save(image, "PNG")


def _turned(orientation: int) -> Encode:
    def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        turn = _STORED_AS[orientation]
        return _save(image if turn is None else image.transpose(turn), "JPEG", exif=exif)

    return encode


def _broken_exif(form: str) -> Encode:
    """Garbles the mark that EXIF begins with, and cuts off some of the rest."""

    def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 1, "Camera"
        content = bytearray(exif.tobytes())
        content[rng.integers(6, 10)] ^= rng.integers(1, 256)
        return _save(image, form, exif=bytes(content[: rng.integers(14, len(content) + 1)]))

    return encode


def _with_tail(image: Image.Image, rng: np.random.Generator) -> bytes:
    return _save(image, "JPEG") + rng.bytes(500)


def _cut(form: str) -> Encode:
    def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
        content = _save(image, form)
        return content[: rng.integers(1, len(content) * 9 // 10)]

    return encode


def _flipped(form: str) -> Encode:
    """Flips a few bits, half of the time in the header, where they do most."""

    def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
        content = bytearray(_save(image, form))
        reach = len(content) if rng.random() < 0.5 else min(200, len(content))
        for _ in range(rng.integers(1, 20)):
            content[rng.integers(reach)] ^= 1 << rng.integers(8)
        return bytes(content)

    return encode


def _zeroed(image: Image.Image, rng: np.random.Generator) -> bytes:
    content = bytearray(_save(image, "JPEG"))
    start = rng.integers(len(content))
    stop = min(start + 300, len(content))
    content[start:stop] = bytes(stop - start)
    return bytes(content)


def _declaring(form: str, side: int) -> Encode:
    """Lets a small file say that it has so many pixels a side."""

    def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
        content = bytearray(_save(image, form))
        if form == "PNG":
            content[16:24] = struct.pack(">II", side, side)
            content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        elif form == "GIF":
            content[6:10] = struct.pack("<HH", side, side)
        elif form == "BMP":
            content[18:26] = struct.pack("<ii", side, side)
        elif form == "JPEG":
            frame = content.index(b"\xff\xc0")
            content[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
        return bytes(content)

    return encode


def _resized(width: int, height: int) -> Encode:
    return lambda image, rng: _save(image.resize((width, height)), "PNG")


def _large(form: str, mode: str) -> Encode:
    def encode(image: Image.Image, rng: np.random.Generator) -> bytes:
        return _save(image.convert(mode).resize((_LARGE_SIDE, _LARGE_SIDE)), form)

    return encode


def _always(content: bytes) -> Encode:
    return lambda image, rng: content


FAITHFUL: dict[str, Encode] = {
    **{form.lower(): _stored(form) for form in ("JPEG", "PNG", "WEBP", "BMP", "TIFF")},
    "progressive jpeg": _stored("JPEG", progressive=True),
    "cmyk jpeg": _stored("JPEG", "CMYK"),
    "cmyk tiff": _stored("TIFF", "CMYK"),
    "compressed tiff": _stored("TIFF", compression="tiff_lzw"),
    "palette png": _stored("PNG", "P"),
    "opaque png": _stored("PNG", "RGBA"),
    "half transparent png": _half_transparent,
    "transparent webp": _stored("WEBP", "RGBA"),
    "gif": _stored("GIF"),
    "animated gif": _animated("GIF"),
    "animated webp": _animated("WEBP"),
    "two-picture jpeg": _animated("MPO"),
    "tiff of two pages": _animated("TIFF"),
    "grey jpeg": _stored("JPEG", "L"),
    "grey png": _stored("PNG", "L"),
    "grey png with alpha": _stored("PNG", "LA"),
    "grey 16-bit png": _sixteen_bits("PNG"),
    "grey 16-bit tiff": _sixteen_bits("TIFF"),
    "jpeg with a tail": _with_tail,
    **{f"orientation {i}": _turned(i) for i in _STORED_AS},
    **{f"broken exif in {form}": _broken_exif(form) for form in ("JPEG", "PNG", "WEBP")},
}
DOUBTFUL: dict[str, Encode] = {
    "1-bit png": _stored("PNG", "1"),
    "float tiff": _floats,
    # Pillow reads it from version 13 on; with Gradio comes an older one.
    "ycbcr tiff": _stored("TIFF", "YCbCr"),
    "transparent png": lambda image, rng: _save(Image.new("RGBA", image.size), "PNG"),
    "1 x 1": _resized(1, 1),
    "20,000 x 1": _resized(20_000, 1),
    "1 x 20,000": _resized(1, 20_000),
    **{f"flipped {form.lower()}": _flipped(form) for form in _FORMATS},
    "zeros in a jpeg": _zeroed,
}
HOPELESS: dict[str, Encode] = {
    **{f"cut {form.lower()}": _cut(form) for form in _FORMATS},
    "empty": _always(b""),
    "zeros": _always(bytes(5000)),
    "noise": lambda image, rng: rng.bytes(5000),
    "text": _always(b"Not a photo.\n" * 50),
    "web page": _always(b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"),
    "drawing": _always(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>\n'),
    # Pillow would start Ghostscript for it.
    "postscript": _always(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n"),
    "png declaring 9,999 x 9,999": _declaring("PNG", 9_999),
    "bmp declaring 9,999 x 9,999": _declaring("BMP", 9_999),
    "jpeg declaring 65,000 x 65,000": _declaring("JPEG", 65_000),
    "png declaring 65,000 x 65,000": _declaring("PNG", 65_000),
    "gif declaring 65,000 x 65,000": _declaring("GIF", 65_000),
    "bmp declaring 65,000 x 65,000": _declaring("BMP", 65_000),
}
HEAVY: dict[str, Encode] = {
    "jpeg of 99.8 megapixels": _large("JPEG", "RGB"),
    "jpeg declaring 9,999 x 9,999": _declaring("JPEG", 9_999),
    "gif declaring 9,999 x 9,999": _declaring("GIF", 9_999),
    "1-bit png of 99.8 megapixels": _large("PNG", "1"),
}
PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to its folder": lambda path: path.symlink_to(path.parent),
}
_CONTENTS = {**FAITHFUL, **DOUBTFUL, **HOPELESS, **HEAVY}
KINDS = (*FAITHFUL, *DOUBTFUL, *HOPELESS, *PLACES)
