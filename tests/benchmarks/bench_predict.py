"""Photos to ages and genders: agelib against two other ways, in one process.

    python tests/benchmarks/bench_predict.py [--repeats 9] [--small 1000] [--large 100]

The photos are made of a public-domain portrait: one face, and ten. Against it run (a) the usual
loop, the mtcnn package on the whole photo and then `model.predict` on one crop after the other,
with the same model, and (b) the networks of deepface's age and gender analysis, two VGG-16 on 224
pixels for each face, with random weights, as theirs are not at hand; the faces are found for (b)
free of charge. Prints medians, faces a second and ratios, what a photo takes against detection
alone, the time until a new Estimator answers for the first time against the import of TensorFlow,
and what the network takes against the same network compiled as usual, with its weights as
variables, and against that of agelib 0.5.0, EfficientNetB0 for 64 pixels.

Then folders of JPEG files of 200 x 200 pixels and of 12 megapixels, a face each, with a table:
photos a second against the usual loop, against cleaning's rate, and against decoding alone. All of
it in processor time too, which tells more on a busy machine. Lines that begin with "bar" compare a
figure with its target. On two idle cores the whole takes about two minutes.
"""

import argparse
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
from agelib.model.network import build_model
from agelib.prediction.detection import PHOTO_CANVAS
from agelib.prediction.estimator import Estimator
from agelib.prediction.results import predict_photos

_VGG_SIZE = 224
_CLOCKS = ("time", "processor time")
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


def seconds(calls: dict[str, Callable[[], int]], repeats: int) -> dict[str, np.ndarray]:
    """Returns the median of each on `clocks`, in turns after a call that does not count."""
    taken = {name: [] for name in calls}
    for i in range(repeats + 1):
        for name, call in calls.items():
            begin = clocks()
            call()
            if i:
                taken[name].append(clocks() - begin)
    return {name: np.median(times, axis=0) for name, times in taken.items()}


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
        before, after = (1000 * taken[0] for taken in seconds(calls, repeats).values())
        print(
            f"  {count:3} face(s) and mirror images: {after:.1f} ms, "
            f"{after / before:.2f} of the {before:.1f} ms as usual"
        )


def compare_networks(model: keras.Model, repeats: int) -> None:
    """Compares a model's speed on one face with that of the network of agelib 0.5.0."""
    calls = {}
    for name, each in (("now", model), ("0.5.0", build_model("EfficientNetB0", 64, augment=False))):
        graph = inference_graph(each)
        crops = tf.constant(np.stack([resize(photos()[1], each.input_shape[1:3])] * 2))
        calls[name] = lambda graph=graph, crops=crops: len(graph(crops)["age"].numpy())
    taken = seconds(calls, repeats)
    bar("the network on one face, in times of 0.5.0's", taken["now"] / taken["0.5.0"], "at most 1")


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


def compare_folder(estimator: Estimator, detector, paths: list[Path]) -> dict[str, np.ndarray]:
    """Prints rates, and returns what a photo takes in each way, as `clocks` does."""
    few = paths[: max(5, len(paths) // 50)]
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
    counts = np.array([len(paths), len(few), len(paths), len(paths)])
    each = np.diff(moments, axis=0) / counts[:, None]
    print(f"  a face in {sum(len(result.estimates) == 1 for result in results)} of them")
    for what, (ours, loop, cleaning, decoding) in zip(_CLOCKS, each.T, strict=True):
        print(f"  {1 / ours:.1f} photos a second of {what}")
        print(f"    {loop / ours:.1f} times as many as one by one")
        print(f"    {cleaning / ours:.2f} times as many as in cleaning ({1 / cleaning:.1f})")
        print(f"    {ours / decoding:.2f} times the {what} of decoding alone")
    return dict(zip(("agelib", "one by one", "cleaning", "decoding"), each, strict=True))


def bar(name: str, values: np.ndarray, wanted: str) -> None:
    """Prints a figure beside its target."""
    time_, processor = values
    print(
        f"bar: {name}: {time_:.2f}, in processor time {processor:.2f} (wanted: {wanted})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--small", type=int, default=1000, help="photos of 200 x 200 pixels")
    parser.add_argument("--large", type=int, default=100, help="photos of 12 megapixels")
    options = parser.parse_args()
    repeats = options.repeats
    from mtcnn import MTCNN

    photo, begin = photos()[1], clocks()
    estimator = Estimator()
    estimator.predict(photo)
    taken, imported = clocks() - begin, import_tensorflow()
    for what, answer, once in zip(_CLOCKS, taken, imported, strict=True):
        print(f"first answer: {answer:.1f} s of {what}; importing TensorFlow: {once:.1f} s")
    bar(
        "first answer of a new Estimator, in imports of TensorFlow", taken / imported, "at most 1.5"
    )

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
        for name, (time_, _) in taken.items():
            print(f"  {name:20} {time_ * 1000:8.0f} ms, {counts[name] / time_:6.1f} faces/s")
        rate = {name: counts[name] / taken[name][0] for name in taken}
        for other in ("one by one", "deepface's networks"):
            print(f"  agelib is {rate['agelib'] / rate[other]:.1f} times as fast as {other}")
        ratio = taken["agelib"] / taken["detection"]
        if count == 1:
            bar("one face in one photo, in detections of the photo", ratio, "at most 1.2")
        else:
            print(f"  agelib takes {ratio[0]:.2f} times detection alone")

    print("\nthe network alone")
    compare_graphs(estimator.model, 4 * repeats)
    compare_networks(estimator.model, 4 * repeats)

    with tempfile.TemporaryDirectory() as folder:
        print(f"\na folder of {options.small} photos of 200 x 200 pixels")
        small = compare_folder(
            estimator, detector, write_folder(Path(folder), options.small, (200, 200))
        )
        bar("small photos a second", 1 / small["agelib"], "at least 170 in time")
        print(f"\na folder of {options.large} photos of 4000 x 3000 pixels")
        large = compare_folder(
            estimator, detector, write_folder(Path(folder), options.large, (3000, 4000))
        )
        bar("large photos, in decodings", large["agelib"] / large["decoding"], "at most 2")


if __name__ == "__main__":
    main()
