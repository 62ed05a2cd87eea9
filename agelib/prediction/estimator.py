"""Prediction: a photo to faces, each with age, age branch and gender."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from agelib.config import Crop
from agelib.faces.crop import PORTRAIT_CANVAS, Face, crop_face
from agelib.faces.detector import FaceDetector
from agelib.faces.images import resize
from agelib.labels import BRANCH_NAMES, GENDERS
from agelib.model.inference import age_interval, inference_graph, median_age, probabilities
from agelib.model.saved import PRETRAINED, load_model
from agelib.prediction.photos import Photo, read_photo

# Few sizes, since each is compiled once; a photo gets the first that it fits into, or the last.
_CANVASES = (PORTRAIT_CANVAS, 160, 320, 640)
PHOTO_CANVAS = _CANVASES[-1]
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
        age: Whole years, the median of `ages`: as likely too low as too high.
        interval: The youngest and oldest whole years of the middle 80 % of `ages`.
        ages: Probabilities of the years 1 to 85, float of shape (85,).
        branches: Probabilities of the five age branches, float of shape (5,).
        genders: Probabilities of Male and Female, float of shape (2,).
    """

    face: Face
    box: Box
    age: int
    interval: tuple[int, int]
    ages: np.ndarray
    branches: np.ndarray
    genders: np.ndarray

    @property
    def branch(self) -> str:
        """The most probable age branch, for example "24-39"."""
        return BRANCH_NAMES[int(self.branches.argmax())]

    @property
    def gender(self) -> str:
        """The more probable gender, "Male" or "Female"."""
        return GENDERS[int(self.genders.argmax())]

    def __str__(self) -> str:
        """Gender, age and branch, as people read them."""
        low, high = self.interval
        return (
            f"{self.gender} ({self.genders.max():.0%}), {self.age} years ({low}-{high}), "
            f"branch {self.branch} ({self.branches.max():.0%})"
        )

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
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types: the row, and the probabilities of all branches and genders."""
        row = self.to_row()
        return {
            "box": self.box._asdict(),
            **{name: value for name, value in row.items() if name not in self.box._fields},
            "age_branch_probabilities": _named(BRANCH_NAMES, self.branches),
            "gender_probabilities": _named(GENDERS, self.genders),
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
        self.model, note = load_model(model_path)
        self.crop = Crop.from_json(note["crop"])
        self._graph = inference_graph(self.model)
        self._detector = FaceDetector()

    def predict(self, photo: str | Path | bytes | np.ndarray | Image.Image) -> list[Estimate]:
        """Finds and judges the faces of one photo.

        Args:
            photo: A path, an http address, a file's bytes, RGB uint8 of shape (height, width, 3),
                or a PIL image.

        Returns:
            One estimate a face, from left to right; empty if there is none.

        Raises:
            AgelibError: If the photo cannot be read, or is an array of another form.
        """
        image = read_photo(photo)
        return self._judge([image], [self._find(image)])[0]

    def predict_all(self, photos: Iterable[Photo]) -> Iterator[tuple[Photo, list[Estimate]]]:
        """Judges the faces of many photos, those of several photos at a time.

        Args:
            photos: From `agelib.prediction.photos.read_photos`, for example; read as they are
                needed.

        Yields:
            Each photo, in order, and its estimates; none for one that could not be read.
        """
        batch: list[Photo] = []
        for photo in photos:
            batch.append(photo)
            size = sum(each.image.size for each in batch if each.image is not None)
            if size > _BATCH_BYTES or len(batch) == _BATCH:
                yield from self._judge_photos(batch)
                batch = []
        yield from self._judge_photos(batch)

    def _judge_photos(self, photos: Sequence[Photo]) -> Iterator[tuple[Photo, list[Estimate]]]:
        images = [photo.image for photo in photos if photo.image is not None]
        judged = iter(self._judge(images, [self._find(image) for image in images]))
        for photo in photos:
            yield photo, [] if photo.image is None else next(judged)

    def _find(self, image: np.ndarray) -> list[Face]:
        long_side = max(image.shape[:2])
        canvas_size = next((size for size in _CANVASES if size >= long_side), PHOTO_CANVAS)
        faces = self._detector.detect([image], canvas_size)[0]
        return sorted(faces, key=lambda face: face.box[0])

    def _judge(
        self, images: Sequence[np.ndarray], faces: Sequence[Sequence[Face]]
    ) -> list[list[Estimate]]:
        """Returns the estimates of each image's faces."""
        size = self.model.input_shape[1:3]
        crops = [
            resize(crop_face(image, face, self.crop), size)
            for image, found in zip(images, faces, strict=True)
            for face in found
        ]
        if not crops:
            return [[] for _ in images]
        outputs = probabilities(self._graph, np.stack(crops))
        places = [
            (face, _box(face, image.shape))
            for image, found in zip(images, faces, strict=True)
            for face in found
        ]
        judged = iter(_estimates(places, outputs))
        return [[next(judged) for _ in found] for found in faces]


def _box(face: Face, shape: tuple[int, ...]) -> Box:
    left, top, right, bottom = map(round, face.box)
    left, top = min(max(left, 0), shape[1] - 1), min(max(top, 0), shape[0] - 1)
    return Box(left, top, max(left + 1, min(right, shape[1])), max(top + 1, min(bottom, shape[0])))


def _estimates(
    places: Sequence[tuple[Face, Box]], outputs: dict[str, np.ndarray]
) -> list[Estimate]:
    years, ages = median_age(outputs["age"]), outputs["age"]
    ends = np.stack(age_interval(ages), axis=1).tolist()
    columns = years.tolist(), map(tuple, ends), ages, outputs["age_branch"], outputs["gender"]
    return [Estimate(*place, *row) for place, *row in zip(places, *columns, strict=True)]


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(p), 4) for name, p in zip(names, values, strict=True)}
