"""The sample: small archives in the official layouts, with drawn faces and every trouble.

Every face is a variation of one public-domain portrait (NASA's photo of the astronaut Eileen
Collins, which scikit-image carries): hair and skin lose their colour and gain lines with age,
children's faces are rounder and softer, men wear a beard. They say nothing about real faces.
"""

import datetime
import functools
import gzip
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import scipy.io
from skimage import data

from agelib.datasets.archives import LABELS
from agelib.files import atomic, sha256

N_WIKI, N_UTKFACE = 320, 140
SEED = 20

_FACE_CENTRE = (164, 118)  # in the cut-out portrait, pixels
_FACE_HEIGHT = 107


class WikiRow(NamedTuple):
    """One row of `wiki.mat`, with the bytes of its image or None where the image is missing."""

    age: int
    gender: float
    image: bytes | None
    face_score: float = 4.0
    second_face_score: float = np.nan


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def _no_face(rng: np.random.Generator) -> np.ndarray:
    return cv2.resize(rng.integers(60, 200, (6, 6, 3), np.uint8), (160, 160))


def wiki_rows(rng: np.random.Generator) -> Iterator[WikiRow]:
    """Yields the rows of the sample's WIKI: good ones first, then one of every trouble."""
    for i in range(N_WIKI):
        age, gender = int(rng.integers(1, 86)), i % 2
        size = int(rng.integers(110, 260))
        yield WikiRow(age, gender, _jpeg(draw_portrait(age, gender, rng, size, 0.5)))
    face = draw_portrait(30, 1, rng)
    good = _jpeg(face)
    yield WikiRow(30, 1, _jpeg(_no_face(rng)))
    yield WikiRow(30, 1, _jpeg(np.hstack([face, draw_portrait(60, 0, rng)])))
    yield WikiRow(30, 1, good[: len(good) // 2])
    yield WikiRow(30, 1, b"")
    yield WikiRow(-31, 1, good)
    yield WikiRow(2014, 1, good)
    yield WikiRow(30, np.nan, good)
    yield WikiRow(30, 1, good, face_score=0.4)
    yield WikiRow(30, 1, good, face_score=-np.inf)
    yield WikiRow(30, 1, good, second_face_score=2.5)
    yield WikiRow(30, 1, None)


def utkface_files(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of the sample's UTKFace: good ones first, then the troubles."""
    for i in range(N_UTKFACE):
        age, gender, race = int(rng.integers(1, 86)), i % 2, i % 5
        name = f"{age}_{gender}_{race}_{20170116000000000 + i}.jpg.chip.jpg"
        yield name, _jpeg(draw_portrait(age, gender, rng))
    good = _jpeg(draw_portrait(30, 1, rng))
    yield "39_1_20170116174525125.jpg.chip.jpg", good
    yield "24_1_0_20170116220224657 .jpg.chip.jpg", good
    yield "55_1_0_20170116232725357jpg.chip.jpg", good
    for age in (0, 86, 116):
        yield f"{age}_1_0_20170116174525125.jpg.chip.jpg", good
    yield "30_1_0_20170116174525126.jpg.chip.jpg", _jpeg(_no_face(rng))
    yield "30_1_0_20170116174525127.jpg.chip.jpg", good[: len(good) // 2]
    yield "30_1_0_20170116174525128.jpg.chip.jpg", b""


def make_archives(folder: Path) -> list[Path]:
    """Makes a mirror of the official homes, and returns the paths of its two archives.

    The bytes are the same every time; files that are already there stay as they are.
    """
    contents = {
        Path(folder) / "wiki_crop.tar": _wiki_files(np.random.default_rng(SEED)),
        Path(folder) / "UTKFace.tar.gz": utkface_files(np.random.default_rng(SEED + 1)),
    }
    for path, files in contents.items():
        if not path.exists():
            _write_tar(path, files)
    sums = Path(folder) / "SHA256SUMS"
    if not sums.exists():
        with atomic(sums) as partial:
            partial.write_text("".join(f"{sha256(path)}  {path.name}\n" for path in contents))
    return list(contents)


def _write_tar(path: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """Writes names and contents below the folder that the archive is named after."""
    top, gzipped = path.name.split(".")[0], path.suffix == ".gz"
    with atomic(path) as partial, open(partial, "wb") as file:
        # Without a time stamp the bytes are the same every time.
        stream = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if gzipped else file
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in contents:
                entry = tarfile.TarInfo(f"{top}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        stream.close()


def make_own(folder: Path) -> Path:
    """Writes a folder of images with a `labels.csv`; one that has its labels stays as it is."""
    labels = Path(folder) / LABELS
    if labels.exists():
        return Path(folder)
    rows = []
    for name, image in utkface_files(np.random.default_rng(SEED + 2)):
        path = Path(folder) / "photos" / name.replace(".chip.jpg", "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        age, gender, *rest = name.split("_")
        if len(rest) == 2:  # else the name does not say it all
            rows.append(f"photos/{path.name},{age},{('male', 'female')[int(gender)]}\n")
    with atomic(labels) as partial:
        partial.write_text("path,age,gender\n" + "".join(rows))
    return Path(folder)


def _wiki_files(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Yields the images of WIKI and, last, the `wiki.mat` that describes them."""
    rows, paths, births = list(wiki_rows(rng)), [], []
    for i, row in enumerate(rows):
        # Born in March or October: on both sides of the half-year rule.
        month = 3 if i % 2 else 10
        year = 2010 - row.age - (month >= 7)
        # MATLAB's day number, or 0 for a year before the first, as impossible ages give.
        births.append(datetime.date(year, month, 1).toordinal() + 366 if year >= 1 else 0)
        paths.append(f"{i % 100:02d}/{1000 + i}_{year}-{month:02d}-01_2010.jpg")
        if row.image is not None:
            yield paths[-1], row.image
    wiki_mat = {  # one struct of row vectors
        "dob": np.array([births], np.int32),
        "photo_taken": np.full((1, len(rows)), 2010, np.uint16),
        "full_path": _cells(paths),
        "gender": np.array([[1.0 - row.gender for row in rows]]),  # the official 1 is male
        "name": _cells([f"Person {i}" for i in range(len(rows))]),
        "face_location": _cells([np.array([1.0, 1.0, 200.0, 200.0])] * len(rows)),
        "face_score": np.array([[row.face_score for row in rows]]),
        "second_face_score": np.array([[row.second_face_score for row in rows]]),
    }
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"wiki": wiki_mat})
    # The first 116 bytes of the file are a comment, in which scipy notes the time.
    comment = b"MATLAB 5.0 MAT-file, made by agelib".ljust(116)
    yield "wiki.mat", comment + buffer.getvalue()[116:]


def _cells(values: list) -> np.ndarray:
    """Returns a 1 x n MATLAB cell array."""
    cells = np.empty((1, len(values)), object)
    cells[0, :] = values
    return cells


def draw_portrait(
    age: int, gender: int, rng: np.random.Generator, size: int = 200, face_share: float = 0.6
) -> np.ndarray:
    """Returns a face of an age and gender, in a slightly random pose and light.

    The array is RGB uint8 of shape (size, size, 3); the face is `face_share` of it high.
    """
    portrait = _portrait()
    if gender == 0:
        portrait = _add_beard(portrait)
    portrait = _show_age(portrait, age)
    scale = size * face_share / _FACE_HEIGHT * rng.uniform(0.92, 1.08)
    turn = cv2.getRotationMatrix2D(_FACE_CENTRE, rng.uniform(-8, 8), scale)
    turn[:, 2] += size / 2 - np.array(_FACE_CENTRE) + rng.uniform(-0.03, 0.03, 2) * size
    roundness = 1 + 0.18 * max(0, 14 - age) / 13
    turn[0] = turn[0] * roundness - [0, 0, (roundness - 1) * size / 2]
    image = cv2.warpAffine(
        portrait, turn, (size, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT
    )
    if rng.random() < 0.5:
        image = image[:, ::-1]
    image = image * rng.uniform(0.85, 1.1) + rng.normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


@functools.cache
def _portrait() -> np.ndarray:
    return data.astronaut()[:320, 60:400].astype(np.float32)


def _add_beard(portrait: np.ndarray) -> np.ndarray:
    """Darkens cheeks, chin and upper lip, around a mouth that stays free."""
    x, y = _FACE_CENTRE
    shade = np.zeros(portrait.shape[:2], np.float32)
    cv2.ellipse(shade, (x, y + 28), (36, 30), 0, -20, 200, 1, -1)
    cv2.ellipse(shade, (x, y + 13), (19, 5), 0, 0, 360, 1, -1)
    cv2.ellipse(shade, (x, y + 22), (17, 7), 0, 0, 360, 0, -1)
    shade = cv2.GaussianBlur(shade, (0, 0), 2)[..., None] * 0.8
    return portrait * (1 - shade) + np.float32([70, 45, 30]) * shade


def _show_age(portrait: np.ndarray, age: int) -> np.ndarray:
    """Softens the young and greys and lines the old."""
    if age < 24:
        portrait = cv2.GaussianBlur(portrait, (0, 0), 0.3 + (24 - age) / 16)
        warmth = np.float32([22, -4, -12]) * (24 - age) / 23
        return portrait + warmth
    years = (age - 24) / 61
    grey = portrait.mean(axis=2, keepdims=True) * (1 - 0.15 * years) + 40 * years
    lines = np.zeros(portrait.shape[:2], np.float32)
    x, y = _FACE_CENTRE
    for row in (-36, -30, -24):
        cv2.ellipse(lines, (x, y + row + 20), (26, 20), 0, 235, 305, 1, 1, cv2.LINE_AA)
    for side in (-1, 1):
        cv2.line(lines, (x + side * 15, y + 14), (x + side * 26, y + 30), 1, 2, cv2.LINE_AA)
        cv2.line(lines, (x + side * 31, y - 8), (x + side * 37, y - 4), 1, 2, cv2.LINE_AA)
    lines = cv2.GaussianBlur(lines, (0, 0), 0.8)[..., None]
    return portrait * (1 - years) + grey * years - 90 * years * lines
