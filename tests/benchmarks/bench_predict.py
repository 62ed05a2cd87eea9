"""Photos to ages and genders: agelib against two other ways, in one process.

    python tests/benchmarks/bench_predict.py [--repeats 5]

The photos are made of a public-domain portrait: one face, and ten. Against it run (a) the usual
loop, the mtcnn package on the whole photo and then `model.predict` on one crop after the other,
with the same model, and (b) the networks of deepface's age and gender analysis, two VGG-16 on 224
pixels for each face, with random weights, as theirs are not at hand; the faces are found for (b)
free of charge. Prints medians, faces a second and ratios, what a photo takes against detection
alone, the time until a new Estimator answers for the first time, and what the network takes against
the same network compiled as usual, with its weights as variables.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from skimage import data

sys.path.insert(0, str(Path(__file__).parents[2]))

from agelib.backend import keras, tf
from agelib.config import Crop
from agelib.faces.crop import Face, crop_face
from agelib.faces.images import resize
from agelib.model.inference import inference_graph
from agelib.prediction.estimator import PHOTO_CANVAS, Estimator

_VGG_SIZE = 224


def photos() -> dict[int, np.ndarray]:
    """Returns photos by how many faces they hold."""
    portrait = data.astronaut()[:320, 60:380]
    row = np.hstack([portrait] * 5)
    return {1: data.astronaut(), 10: np.vstack([row, row[:, ::-1]])}


def one_by_one(detector, estimator: Estimator, photo: np.ndarray) -> int:
    """The usual loop."""
    size = estimator.model.input_shape[1:3]
    found = detector.detect_faces(photo)
    for face in found:
        x, y, width, height = face["box"]
        box = Face((x, y, x + width, y + height), face["confidence"], np.zeros((5, 2)))
        crop = resize(crop_face(photo, box, Crop(size[0], 0.0)), size)
        estimator.model.predict(crop[None], verbose=0)
    return len(found)


def two_networks(networks: list[keras.Model], photo: np.ndarray, faces: list[Face]) -> int:
    """What deepface computes once it has the faces."""
    for face in faces:
        crop = crop_face(photo, face, Crop(_VGG_SIZE, 0.0))[None] / np.float32(255)
        for network in networks:
            network.predict_on_batch(crop)
    return len(faces)


def seconds(calls: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """Returns the median time of each, taken in turns after a call that does not count."""
    taken = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if i:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


def compare_graphs(model: keras.Model, repeats: int) -> None:
    usual = tf.function(
        lambda crops: model(tf.cast(crops, tf.float32), training=False),
        input_signature=[tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)],
    )
    ours = inference_graph(model)
    for count in (1, 10, 128):
        crops = tf.constant(np.stack([resize(photos()[1], model.input_shape[1:3])] * 2 * count))
        calls = {
            "usual": lambda crops=crops: len(usual(crops)["age"].numpy()),
            "ours": lambda crops=crops: len(ours(crops)["age"].numpy()),
        }
        taken = seconds(calls, repeats)
        print(
            f"  {count:3} face(s) and mirror images: {taken['ours'] * 1000:.1f} ms, "
            f"{taken['ours'] / taken['usual']:.2f} of the {taken['usual'] * 1000:.1f} ms as usual"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    from mtcnn import MTCNN

    begin = time.perf_counter()
    estimator = Estimator()
    estimator.predict(photos()[1])
    print(f"Estimator, from nothing to its first answer: {time.perf_counter() - begin:.1f} s")

    detector = MTCNN()
    networks = [
        keras.applications.VGG16(weights=None, classes=classes, classifier_activation="softmax")
        for classes in (101, 2)
    ]
    for count, photo in photos().items():
        faces = [estimate.face for estimate in estimator.predict(photo)]
        counts: dict[str, int] = {}

        def counted(name: str, call: Callable[[], int], counts=counts) -> Callable[[], int]:
            return lambda: counts.__setitem__(name, call())

        calls = {
            "agelib": lambda photo=photo: len(estimator.predict(photo)),
            "one by one": lambda photo=photo: one_by_one(detector, estimator, photo),
            "deepface's networks": lambda photo=photo, faces=faces: two_networks(
                networks, photo, faces
            ),
            "detection": lambda photo=photo: len(
                estimator._detector.detect([photo], PHOTO_CANVAS)[0]
            ),
        }
        taken = seconds({name: counted(name, call) for name, call in calls.items()}, repeats)
        print(f"\nphoto of {photo.shape[1]} x {photo.shape[0]} pixels with {count} face(s)")
        for name, time_ in taken.items():
            print(f"  {name:20} {time_ * 1000:8.0f} ms, {counts[name] / time_:6.1f} faces/s")
        rate = {name: counts[name] / taken[name] for name in taken}
        for other in ("one by one", "deepface's networks"):
            print(f"  agelib is {rate['agelib'] / rate[other]:.1f} times as fast as {other}")
        print(f"  agelib takes {taken['agelib'] / taken['detection']:.2f} times detection alone")

    print("\nthe network alone")
    compare_graphs(estimator.model, 4 * repeats)


if __name__ == "__main__":
    main()
