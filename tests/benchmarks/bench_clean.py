"""Cleaning against the plain loop: one image after the other through MTCNN, on one core each.

    python tests/benchmarks/bench_clean.py [--images 1000]

Takes real images where AGELIB_MIRROR names a folder with the archives, else the sample's. Prints
how many times as fast agelib is, and how far both agree on the faces. Then two worker processes
against one, and against two that each clean all of it alone. Lines that begin with "bar" compare
a figure with its target.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

from agelib.backend import tf
from agelib.config import Config
from agelib.datasets import sample
from agelib.datasets import tables as datasets
from agelib.datasets.download import extract, fetch
from agelib.datasets.registry import DATASETS
from agelib.faces import cleaning, shards
from agelib.faces import crop as faces_crop
from agelib.faces import images as faces
from agelib.faces.detector import iou

CONFIDENT = 0.9
_MORE = 4  # images for agelib, for each of the loop's, so that both take a while


def pick_images(count: int, config: Config) -> pd.DataFrame:
    """Returns usable rows of all data sets in equal parts, paths relative to data/raw."""
    tables = []
    for name in config.sources:
        fetch(name, config)
        extract(name, config)
        table = datasets.read_table(name, config).query("reject == ''")
        rows = table.sample(min(len(table), count // len(config.sources)), random_state=0)
        tables.append(
            rows.assign(path=DATASETS[name].archive.folder + "/" + rows["path"], split="test")
        )
    return pd.concat(tables, ignore_index=True)


def plain_loop(detector, table: pd.DataFrame, config: Config, folder: Path) -> list:
    """The way it is usually done: read, detect, crop, write, image by image."""
    boxes = []
    for i, path in enumerate(table["path"]):
        image = faces.read_image(config.raw / path)
        found = [
            faces_crop.Face((x, y, x + w, y + h), face["confidence"], np.zeros((5, 2)))
            for face in detector.detect_faces(image)
            for x, y, w, h in [face["box"]]
        ]
        boxes.append((image.shape, found))
        if found:
            face = most_central(found, image.shape)
            crop = faces_crop.crop_face(image, face, config.crop)
            (folder / f"{i}.jpg").write_bytes(shards.encode_jpeg(crop))
    return boxes


def most_central(found: list, shape: tuple) -> faces_crop.Face:
    centre = np.array([shape[1], shape[0]]) / 2
    return min(
        found,
        key=lambda face: np.linalg.norm(np.add(face.box[:2], face.box[2:]) / 2 - centre),
    )


def agreement(
    detector, loop: list, table: pd.DataFrame, config: Config
) -> tuple[float, float, float]:
    """Returns the share of confident faces found again, and of faces where the loop has none.

    The last number leaves out those that the loop's detector finds in the image at other sizes.
    """
    same, confident, extra, alone = 0, 0, 0, 0
    images = [faces.read_image(config.raw / path) for path in table["path"]]
    ours = faces_crop.detector(shared=False).detect(images)
    for image, (shape, theirs), found in zip(images, loop, ours, strict=True):
        sure = [face for face in theirs if face.confidence >= CONFIDENT]
        confident += bool(sure)
        if found and not theirs:
            extra += 1
            alone += not any(detector.detect_faces(at) for at in other_sizes(image))
        if sure and found:
            chosen = most_central(found, shape)
            same += iou(chosen, most_central(sure, shape)) >= 0.5
    return same / confident, extra / len(loop), alone / len(loop)


def other_sizes(image: np.ndarray) -> list[np.ndarray]:
    return [cv2.resize(image, None, fx=scale, fy=scale) for scale in (0.5, 0.7, 1.5, 2)]


def clocks() -> np.ndarray:
    """Returns the time and the processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def seconds(call, *arguments) -> tuple[np.ndarray, object]:
    begun = clocks()
    result = call(*arguments)
    return clocks() - begun, result


def clean_with(table: pd.DataFrame, config: Config, workers: int) -> np.ndarray:
    """Returns what cleaning takes with so many processes on `clocks`, their start left out."""
    config = Config.from_profile(
        config.profile, crop_size=config.crop_size, data=config.data, workers=workers
    )
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        warm_up = table.iloc[::3]  # some units for each process
        cleaning.clean_table(warm_up, config.raw, Path(first), "warm-up", config)
        run = (table, config.raw, Path(second), "benchmark", config)
        return seconds(cleaning.clean_table, *run)[0]


def use_core(core: int) -> None:
    os.sched_setaffinity(0, {core})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def clean_on(core: int, table: pd.DataFrame, config: Config) -> float:
    use_core(core)
    return clean_with(table, config, workers=1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "agelib-bench")
    options = parser.parse_args()
    profile = "wiki" if os.environ.get("AGELIB_MIRROR") else "sample"
    config = Config.from_profile(profile, crop_size=64, data=options.data)
    if profile == "sample":
        sample.make_archives(Path(config.mirror))
    table = pick_images(_MORE * options.images, config)
    few = table.iloc[::_MORE]
    cores = os.sched_getaffinity(0)

    use_core(min(cores))
    from mtcnn import MTCNN

    detector = MTCNN()
    detector.detect_faces(faces.read_image(config.raw / table["path"].iloc[0]))
    with tempfile.TemporaryDirectory() as folder:
        slow, loop = seconds(plain_loop, detector, few, config, Path(folder))
    fast = clean_with(table, config, workers=1)
    same, extra, alone = agreement(detector, loop, few, config)
    print(f"images: {len(few)} of profile {profile}, and {len(table)} for agelib")
    slow, fast = slow / len(few), fast / len(table)
    print(f"plain loop: {1 / slow[0]:.1f} images/s, agelib: {1 / fast[0]:.1f} images/s")
    time_, processor = slow / fast
    print(
        f"bar: cleaning, times as fast as the plain loop: {time_:.1f}, in processor time "
        f"{processor:.1f} (wanted: at least 30)"
    )
    print(
        f"bar: images with a face where the loop has none: {extra:.2%}, and where its detector has "
        f"none at other sizes: {alone:.2%} (wanted: at most 0.5 %)"
    )
    print(f"agreement: {same:.2%} of the loop's confident faces, IoU at least 0.5", flush=True)

    cleaning.UNIT_ROWS = max(64, len(table) // 8)
    one, two = [], []
    for _ in range(3):
        os.sched_setaffinity(0, {min(cores)})
        one.append(clean_with(table, config, workers=1)[0])
        os.sched_setaffinity(0, cores)
        two.append(clean_with(table, config, workers=2)[0])
    gain = min(one) / min(two)
    print(f"two workers on two cores are {gain:.2f} times as fast as one on one, best of three")
    pair = joblib.Parallel(n_jobs=2)(
        joblib.delayed(clean_on)(core, table, config) for core in sorted(cores)[:2]
    )
    limit = 2 * min(one) / np.mean(pair)
    print(f"two processes with nothing in common {limit:.2f} times: what the machine allows")


if __name__ == "__main__":
    main()
