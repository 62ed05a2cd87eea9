"""Photos to ages and genders: agelib against two other ways, in one process.

    python tests/benchmarks/bench_predict.py [--repeats 5] [--small 1000] [--large 100]

The photos are made of a public-domain portrait: one face, and ten. Against it run (a) the usual
loop, the mtcnn package on the whole photo and then `model.predict` on one crop after the other,
with the same model, and (b) the networks of deepface's age and gender analysis, two VGG-16 on 224
pixels for each face, with random weights, as theirs are not at hand; the faces are found for (b)
free of charge. Prints medians, faces a second and ratios, what a photo takes against detection
alone, the time until a new Estimator answers for the first time against the import of TensorFlow,
and what the network takes against the same network compiled as usual, with its weights as
variables.

Then folders of JPEG files of 200 x 200 pixels and of 12 megapixels, a face each, with a table:
photos a second against the usual loop, against cleaning's rate, and against decoding alone. The
same in processor time, which tells more on a busy machine.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).parents[2]))

from agelib.backend import keras, tf
from agelib.config import Crop
from agelib.faces.crop import Face, crop_face, crop_images
from agelib.faces.images import read_image, resize
from agelib.model.inference import inference_graph
from agelib.prediction.detection import PHOTO_CANVAS
from agelib.prediction.estimator import Estimator
from agelib.prediction.results import predict_photos

_VGG_SIZE = 224
_IMPORT = """
from time import perf_counter, process_time
begin = perf_counter(), process_time()
import agelib.backend
print(perf_counter() - begin[0], process_time() - begin[1])
"""


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


def clocks() -> np.ndarray:
    """Returns the time and the processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def import_tensorflow() -> np.ndarray:
    """Returns what importing TensorFlow takes in a process of its own, as `clocks` does."""
    command = [sys.executable, "-c", _IMPORT]
    answer = subprocess.run(command, cwd=sys.path[0], check=True, capture_output=True, text=True)
    return np.array(answer.stdout.split(), float)


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


def write_folder(folder: Path, count: int, shape: tuple[int, int]) -> list[Path]:
    """Writes JPEG files of a portrait, each lighter or darker than the one before."""
    paths = []
    for i in range(count):
        light = np.uint8(np.clip(data.astronaut()[:320, 60:380] * (0.7 + 0.05 * (i % 10)), 0, 255))
        photo = np.zeros((*shape, 3), np.uint8)
        side = min(shape)
        photo[:side, :side] = resize(light, (side, side))
        paths.append(folder / f"{i:04d}.jpg")
        Image.fromarray(photo).save(paths[-1], quality=92)
    return paths


def compare_folder(estimator: Estimator, detector, paths: list[Path]) -> None:
    few = paths[: max(1, len(paths) // 10)]
    list(crop_images(few, estimator.crop, shared=False))  # which compiles, as the next line does
    estimator.predict(few[0])
    moments = [clocks()]
    results = list(predict_photos(estimator, paths, table=paths[0].with_name("faces.csv")))
    moments.append(clocks())
    for path in few:
        one_by_one(detector, estimator, read_image(path))
    moments.append(clocks())
    list(crop_images(paths, estimator.crop, shared=False))
    moments.append(clocks())
    for path in paths:
        read_image(path)
    moments.append(clocks())
    counts = len(paths), len(few), len(paths), len(paths)
    print(f"  a face in {sum(len(result.estimates) == 1 for result in results)} of them")
    for what, taken in zip(("time", "processor time"), np.diff(moments, axis=0).T, strict=True):
        ours, loop, cleaning, decoding = taken / counts
        print(f"  {1 / ours:.1f} photos a second of {what}")
        print(f"    {loop / ours:.1f} times as many as one by one")
        print(f"    {cleaning / ours:.2f} times as many as in cleaning ({1 / cleaning:.1f})")
        print(f"    {ours / decoding:.2f} times the {what} of decoding alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", type=int, default=1000, help="photos of 200 x 200 pixels")
    parser.add_argument("--large", type=int, default=100, help="photos of 12 megapixels")
    options = parser.parse_args()
    repeats = options.repeats
    from mtcnn import MTCNN

    photo, begin = photos()[1], clocks()
    estimator = Estimator()
    estimator.predict(photo)
    taken, imported = clocks() - begin, import_tensorflow()
    for what, answer, once in zip(("time", "processor time"), taken, imported, strict=True):
        print(f"first answer of a new Estimator: {answer:.1f} s of {what}, ", end="")
        print(f"{answer / once:.2f} times importing TensorFlow ({once:.1f} s)")

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

    with tempfile.TemporaryDirectory() as folder:
        for side, count in (((200, 200), options.small), ((3000, 4000), options.large)):
            print(f"\na folder of {count} photos of {side[1]} x {side[0]} pixels")
            compare_folder(estimator, detector, write_folder(Path(folder), count, side))


if __name__ == "__main__":
    main()
