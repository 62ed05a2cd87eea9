"""Prediction: a photo to faces, each with age, age branch and gender."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from agelib.config import Crop
from agelib.faces.crop import Face, crop_face, map_ahead
from agelib.faces.detector import FaceDetector
from agelib.faces.images import resize
from agelib.labels import AGE_BRANCHES, BRANCH_NAMES, GENDERS, MIN_AGE
from agelib.model.inference import age_interval, inference_graph, median_age, probabilities
from agelib.model.saved import PRETRAINED, load_model
from agelib.prediction.detection import Found, find_faces, turn_face
from agelib.prediction.photos import Photo, read_photo
from agelib.prediction.quality import marks, soften

# Photos whose faces are judged together: so many, and of no more bytes.
_BATCH, _BATCH_BYTES = 32, 100_000_000


class Box(NamedTuple):
    """Whole pixels inside the photo; `right` and `bottom` are the first ones outside the box."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Estimate:
    """What the model says of one face.

    Attributes:
        face: As the detector found it.
        box: Where it is in the photo.
        ages: Probabilities of the years 1 to 85, float of shape (85,); softened, as the others are,
            where the face is blurred.
        branches: Probabilities of the five age branches, float of shape (5,).
        genders: Probabilities of Male and Female, float of shape (2,).
        quality: What makes the estimate doubtful, of "small", "dark", "blurred" and "turned".
        rotated: By how many degrees, clockwise, the photo was turned: 0, or 90, 180 or 270 where no
            face stood upright in it. `face` and `box` are in the photo as it was given.
        crop: What the network saw of the face: RGB uint8, upright.
    """

    face: Face
    box: Box
    ages: np.ndarray
    branches: np.ndarray
    genders: np.ndarray
    quality: tuple[str, ...] = ()
    rotated: int = 0
    crop: np.ndarray | None = None

    @property
    def age(self) -> int:
        """The median of `ages`, whole years: as likely too low as too high."""
        return int(median_age(self.ages[None])[0])

    @property
    def interval(self) -> tuple[int, int]:
        """The youngest and oldest whole years of the middle 80 % of `ages`."""
        (low,), (high,) = age_interval(self.ages[None])
        return int(low), int(high)

    @property
    def branch(self) -> str:
        """The most probable age branch, for example "24-39"."""
        return BRANCH_NAMES[int(self.branches.argmax())]

    @property
    def gender(self) -> str:
        """The more probable gender, "Male" or "Female"."""
        return GENDERS[int(self.genders.argmax())]

    def __str__(self) -> str:
        """Gender, age and branch, and what makes them doubtful, as people read them."""
        low, high = self.interval
        parts = [
            f"{self.gender} ({self.genders.max():.0%})",
            f"{self.age} years ({low}-{high})",
            f"branch {self.branch} ({self.branches.max():.0%})",
        ]
        if self.quality:
            parts.append(f"doubtful: {' and '.join(self.quality)}")
        if self.rotated:
            parts.append(f"photo turned by {self.rotated} degrees")
        return ", ".join(parts)

    def to_row(self) -> dict[str, Any]:
        """Returns one row of a table: the box, and each answer with its probability."""
        low, high = self.interval
        return self.box._asdict() | {
            "confidence": round(self.face.confidence, 4),
            "age": self.age,
            "age_low": low,
            "age_high": high,
            "age_branch": self.branch,
            "age_branch_probability": round(float(self.branches.max()), 4),
            "gender": self.gender,
            "gender_probability": round(float(self.genders.max()), 4),
            "quality": " ".join(self.quality),
            "rotated": self.rotated,
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types: the row, and the probabilities of all branches and genders."""
        row = self.to_row()
        return {
            "box": self.box._asdict(),
            **{name: value for name, value in row.items() if name not in self.box._fields},
            "age_branch_probabilities": _named(BRANCH_NAMES, self.branches),
            "gender_probabilities": _named(GENDERS, self.genders),
            "quality": list(self.quality),
        }


class Estimator:
    """Estimates age and gender of every face in a photo.

    Args:
        model_path: A model.keras; it holds all that prediction needs, the crop settings too.
            By default the one that comes with the package.

    Attributes:
        path: The file.
        model: The network, as it was read; `predict` does not see later changes to it.
        crop: How the model needs its faces cut out.

    Raises:
        AgelibError: If the file is missing or no such model.
    """

    def __init__(self, model_path: Path = PRETRAINED):
        self.path = Path(model_path)
        self.model, metadata = load_model(model_path)
        self.crop = Crop.from_json(metadata["crop"])
        self._graph = inference_graph(self.model)
        self._detector = FaceDetector()

    def predict(self, photo: str | Path | bytes | np.ndarray | Image.Image) -> list[Estimate]:
        """Finds and judges the faces of one photo.

        Args:
            photo: What `agelib.prediction.photos.read_photo` takes.

        Returns:
            One estimate a face, from left to right; empty if there is none.

        Raises:
            AgelibError: If the photo cannot be read, or is an array of another form.
        """
        return self._judge([read_photo(photo)])[0]

    def predict_all(self, photos: Iterable[Photo]) -> Iterator[tuple[Photo, list[Estimate]]]:
        """Yields each photo, in order, and its estimates; none for one that could not be read.

        While a thread judges one batch, the caller's thread reads the next.

        Args:
            photos: From `agelib.prediction.photos.read_photos`, for example.
        """
        with ThreadPoolExecutor(1) as pool:
            for judged in map_ahead(pool, self._judge_photos, _batches(photos), 1):
                yield from judged

    def _judge_photos(self, photos: Sequence[Photo]) -> list[tuple[Photo, list[Estimate]]]:
        judged = iter(self._judge([photo.image for photo in photos if photo.image is not None]))
        return [(photo, [] if photo.image is None else next(judged)) for photo in photos]

    def _judge(self, images: Sequence[np.ndarray]) -> list[list[Estimate]]:
        found = find_faces(self._detector, images)
        places = [
            (image, face) for image, faces in zip(images, found, strict=True) for face in faces
        ]
        if not places:
            return [[] for _ in images]
        crops = np.stack([self._crop(*place) for place in places])
        outputs = probabilities(self._graph, crops)
        judge = functools.partial(_estimate, margin=self.crop.margin)
        judged = map(judge, places, crops, outputs["age"], outputs["gender"])
        return [[next(judged) for _ in faces] for faces in found]

    def _crop(self, image: np.ndarray, found: Found) -> np.ndarray:
        crop = crop_face(np.rot90(image, found.turns), found.face, self.crop)
        return resize(crop, self.model.input_shape[1:3])


def _batches(photos: Iterable[Photo]) -> Iterator[list[Photo]]:
    batch: list[Photo] = []
    for photo in photos:
        batch.append(photo)
        size = sum(each.image.size for each in batch if each.image is not None)
        if size > _BATCH_BYTES or len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _estimate(
    place: tuple[np.ndarray, Found],
    crop: np.ndarray,
    ages: np.ndarray,
    genders: np.ndarray,
    margin: float,
) -> Estimate:
    image, found = place
    face = turn_face(found.face, -found.turns, np.rot90(image, found.turns).shape)
    quality = marks(crop, found, margin)
    if "blurred" in quality:
        ages, genders = soften(ages), soften(genders)
    branches = np.add.reduceat(ages, [low - MIN_AGE for low, _ in AGE_BRANCHES])
    rotated = -90 * found.turns % 360
    return Estimate(face, _box(face, image.shape), ages, branches, genders, quality, rotated, crop)


def _box(face: Face, shape: tuple[int, ...]) -> Box:
    left, top, right, bottom = map(round, face.box)
    left, top = min(max(left, 0), shape[1] - 1), min(max(top, 0), shape[0] - 1)
    return Box(left, top, max(left + 1, min(right, shape[1])), max(top + 1, min(bottom, shape[0])))


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(p), 4) for name, p in zip(names, values, strict=True)}
