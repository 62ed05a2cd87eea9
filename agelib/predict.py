"""Prediction: a photo to faces, each with age, age branch and gender."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from agelib import AgelibError
from agelib.detector import FaceDetector
from agelib.evaluate import probabilities
from agelib.faces import PORTRAIT_CANVAS, Face, crop_face, read_image, resize
from agelib.labels import BRANCH_NAMES, GENDERS
from agelib.metrics import mean_age
from agelib.model import PRETRAINED, load_model

# Few sizes, since each is compiled once; a photo gets the first that it fits into, or the last.
_CANVASES = (PORTRAIT_CANVAS, 160, 320, 640)
PHOTO_CANVAS = _CANVASES[-1]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PICTURE_SUFFIX = ".estimates.png"


@dataclass(frozen=True)
class Estimate:
    """What the model says of one face.

    Attributes:
        face: Where it is.
        age: Years, the mean of `ages`.
        ages: Probabilities of the years 1 to 85, float of shape (85,).
        branches: Probabilities of the five age branches, float of shape (5,).
        genders: Probabilities of Male and Female, float of shape (2,).
    """

    face: Face
    age: float
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

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types, without the 85 single years."""
        return {
            "box": [round(value, 1) for value in self.face.box],
            "confidence": round(self.face.confidence, 4),
            "age": round(self.age, 1),
            "age_branch": self.branch,
            "age_branch_probabilities": _named(BRANCH_NAMES, self.branches),
            "gender": self.gender,
            "gender_probabilities": _named(GENDERS, self.genders),
        }


class Estimator:
    """Estimates age and gender of every face in a photo.

    Args:
        model_path: A model.keras; it holds all that prediction needs, the crop settings too.
            By default the one that comes with the package.

    Raises:
        AgelibError: If the file is missing or no such model.
    """

    def __init__(self, model_path: Path = PRETRAINED):
        self.model, note = load_model(model_path)
        self._crop = note["crop"]
        self._detector = FaceDetector()

    def predict(self, photo: Path | bytes | np.ndarray) -> list[Estimate]:
        """Finds and judges the faces of one photo.

        Args:
            photo: A path, a file's bytes, or RGB uint8 of shape (height, width, 3).

        Returns:
            One estimate a face, from left to right; empty if there is none.

        Raises:
            AgelibError: If the photo cannot be read, or is an array of another form.
        """
        image = _check(photo) if isinstance(photo, np.ndarray) else read_image(photo)
        long_side = max(image.shape[:2])
        canvas_size = next((size for size in _CANVASES if size >= long_side), PHOTO_CANVAS)
        faces = self._detector.detect([image], canvas_size)[0]
        return self._judge(image, sorted(faces, key=lambda face: face.box[0]))

    def _judge(self, image: np.ndarray, faces: Sequence[Face]) -> list[Estimate]:
        if not faces:
            return []
        size = self.model.input_shape[1:3]
        crops = [resize(crop_face(image, face, **self._crop), size) for face in faces]
        outputs = probabilities(self.model, np.stack(crops))
        years = mean_age(outputs["age"])
        return [
            Estimate(face, float(age), ages, branches, genders)
            for face, age, ages, branches, genders in zip(
                faces, years, outputs["age"], outputs["age_branch"], outputs["gender"], strict=True
            )
        ]


def find_photos(places: Sequence[Path]) -> list[Path]:
    """Returns the photos among files and folders, folders read at any depth.

    Annotated pictures (`*.estimates.png`) in a folder are no photos.

    Raises:
        AgelibError: If a place does not exist or a folder holds no photo.
    """
    photos = []
    for place in map(Path, places):
        if not place.exists():
            raise AgelibError(f"{place} does not exist.")
        found = [place] if place.is_file() else sorted(_images_below(place))
        if not found:
            raise AgelibError(f"{place} holds no photo ({', '.join(IMAGE_SUFFIXES)}).")
        photos += found
    return photos


def name_pictures(photos: Sequence[Path]) -> list[str]:
    """Returns a file name of its own for the annotated picture of each photo."""
    names: dict[str, str] = {}
    for photo in photos:
        stems = chain([photo.stem], (f"{photo.stem}-{number}" for number in count(2)))
        # Some file systems take A.png and a.png for one file.
        stem = next(stem for stem in stems if stem.lower() not in names)
        names[stem.lower()] = f"{stem}{PICTURE_SUFFIX}"
    return list(names.values())


def _images_below(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.endswith(PICTURE_SUFFIX)
    ]


def _check(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise AgelibError(
            f"The photo is {image.dtype} of shape {image.shape}, but must be RGB uint8 of shape "
            "(height, width, 3), as agelib.faces.read_image returns it."
        )
    return image


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: round(float(p), 4) for name, p in zip(names, values, strict=True)}
