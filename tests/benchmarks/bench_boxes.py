"""Faces in photos: false boxes, missed faces and faces answered the wrong way round.

    python tests/benchmarks/bench_boxes.py [--photos 480]

Pastes a face into each of many photos without one, from the smallest that can be found to one that
fills the photo: real faces where AGELIB_MIRROR names a folder with the archives, else drawn ones.
The photos are scikit-image's, in the public domain or free; where they show a face, it is blurred.
Then the same photos turned by 90, 180 and 270 degrees, and with their frame cutting the face.
Prints what MTCNN finds in one look ("before") and what prediction makes of it ("after").
Some "false" boxes are people in the background of the pasted faces.
"""

import argparse
import os
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from skimage import data

sys.path.insert(0, str(Path(__file__).parents[2]))

from agelib.datasets.sample import draw_portrait
from agelib.faces.crop import Face
from agelib.faces.detector import FaceDetector, iou
from agelib.faces.images import read_image, resize
from agelib.prediction.detection import PHOTO_CANVAS, find_faces, turn_face

_SMALLEST = 48  # pixels of what is pasted; the face in it has about half
_SAME = 0.4  # intersection over union
_BATCH = 16


@dataclass
class Scene:
    """A photo, where its face is, and by how many quarter turns it has been turned."""

    image: np.ndarray
    face: Face
    turns: int = 0


def read_faces(count: int, detector: FaceDetector) -> list[tuple[np.ndarray, Face]]:
    """Returns pictures of one face each, and where MTCNN finds it in the picture alone."""
    rng = np.random.default_rng(0)
    mirror = os.environ.get("AGELIB_MIRROR")
    if not mirror:
        pictures = [draw_portrait(int(rng.integers(1, 80)), i % 2, rng, 150) for i in range(count)]
    else:
        pictures = []
        for name in ("appa-real.zip", "aaf.zip"):
            with zipfile.ZipFile(Path(mirror) / name) as file:
                names = sorted(each for each in file.namelist() if each.endswith(".jpg"))
                chosen = rng.choice(names, count // 2, replace=False)
                pictures += [read_image(file.read(each)) for each in chosen]
    found = detector.detect(pictures)
    return [(image, faces[0]) for image, faces in zip(pictures, found, strict=True) if faces]


def backgrounds() -> list[np.ndarray]:
    astronaut = data.astronaut()
    astronaut[40:200, 160:290] = cv2.GaussianBlur(astronaut, (0, 0), 30)[40:200, 160:290]
    return [data.coffee(), data.chelsea(), data.rocket(), astronaut]


def make_scenes(faces: list[tuple[np.ndarray, Face]], count: int) -> list[Scene]:
    rng = np.random.default_rng(1)
    scenes = []
    for i in range(count):
        picture, face = faces[i % len(faces)]
        photo = backgrounds()[i % 4] if i % 8 < 4 else backgrounds()[i % 4][:, ::-1].copy()
        shortest = min(photo.shape[:2])
        side = int(np.exp(rng.uniform(np.log(_SMALLEST), np.log(shortest))))
        left, top = (int(rng.integers(0, size - side + 1)) for size in photo.shape[1::-1])
        photo[top : top + side, left : left + side] = resize(picture, (side, side))
        scale = side / picture.shape[0]
        box = np.add(np.multiply(face.box, scale), (left, top, left, top))
        scenes.append(Scene(photo, Face(tuple(box), 1.0, face.landmarks * scale + (left, top))))
    return scenes


def turn(scene: Scene, turns: int) -> Scene:
    image = np.rot90(scene.image, turns).copy()
    return Scene(image, turn_face(scene.face, turns, scene.image.shape), turns)


def cut(scene: Scene, side: int, share: float) -> Scene:
    """Cuts off a share of the face, at the left, the top, the right or the bottom."""
    edges = np.array([0, 0, *scene.image.shape[1::-1]])
    box = np.array(scene.face.box)
    inward = (1 - share) * box[side] + share * box[(side + 2) % 4]
    edges[side] = np.clip(inward, 0, edges[side] if side > 1 else None)
    left, top, right, bottom = (int(edge) for edge in edges)
    moved = Face(tuple(box - (left, top, left, top)), 1.0, scene.face.landmarks - (left, top))
    return Scene(scene.image[top:bottom, left:right].copy(), moved)


def before(detector: FaceDetector, images: list[np.ndarray]) -> list[list[tuple[Face, int]]]:
    return [[(face, 0) for face in faces] for faces in detector.detect(images, PHOTO_CANVAS)]


def after(detector: FaceDetector, images: list[np.ndarray]) -> list[list[tuple[Face, int]]]:
    found = find_faces(detector, images)
    return [
        [
            (turn_face(one.face, -one.turns, np.rot90(image, one.turns).shape), one.turns)
            for one in faces
        ]
        for image, faces in zip(images, found, strict=True)
    ]


def measure(call: Callable, detector: FaceDetector, scenes: list[Scene]) -> str:
    found, begin = [], time.perf_counter()
    for start in range(0, len(scenes), _BATCH):
        found += call(detector, [scene.image for scene in scenes[start : start + _BATCH]])
    taken = (time.perf_counter() - begin) / len(scenes)
    missed = silent = false = 0
    for scene, faces in zip(scenes, found, strict=True):
        right = [turns for face, turns in faces if iou(face, scene.face) >= _SAME]
        missed += not right
        silent += any((turns + scene.turns) % 4 for turns in right)
        false += len(faces) - len(right)
    share = missed / len(scenes)
    return (
        f"{missed:4} missed ({share:.1%}), {silent:4} the wrong way round, {false:4} false boxes, "
        f"{taken * 1000:4.0f} ms a photo"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=480)
    count = parser.parse_args().photos
    detector = FaceDetector()
    scenes = make_scenes(read_faces(count, detector), count)
    fewer = scenes[: count // 2]
    kinds = {"upright": scenes}
    kinds |= {
        f"turned by {90 * turns}": [turn(each, turns) for each in fewer] for turns in (1, 2, 3)
    }
    kinds |= {
        f"face cut by {share:.0%}": [cut(each, i % 4, share) for i, each in enumerate(fewer)]
        for share in (0.1, 0.2, 0.3, 0.4)
    }
    for call in (before, after):  # which compiles what both need
        call(detector, [np.zeros((PHOTO_CANVAS, PHOTO_CANVAS, 3), np.uint8)])
    for kind, chosen in kinds.items():
        print(f"{kind}: {len(chosen)} photos with a face each")
        for call in (before, after):
            print(f"  {call.__name__:6} {measure(call, detector, chosen)}", flush=True)


if __name__ == "__main__":
    main()
