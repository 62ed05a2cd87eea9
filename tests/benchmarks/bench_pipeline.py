"""Does the input pipeline keep up with the network, and what memory does it take?

    python tests/benchmarks/bench_pipeline.py [--faces 4000 32000] [--steps 40]

In fresh processes, the time to the first batch and the peak memory for few and for many faces: of
the pipeline, and of all images decoded to float64 in memory, which is how the system that this
project re-creates feeds its network. Then training steps a second on what the pipeline gives,
against the same steps on one batch that is there already. The faces are random pictures.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from agelib.faces.shards import FaceSet, encode_jpeg, index_type

SIZE, BATCH = 64, 64


class Faces(FaceSet):
    """So many faces of which 1,000 differ, mapped from a file as those of a shard are."""

    def __init__(self, folder: Path, count: int):
        self.crop_size = SIZE
        self._images = [np.load(folder / "images.npy", mmap_mode="r")]
        index = np.resize(np.load(folder / "index.npy"), count)
        self._set_faces(index, *np.zeros((3, count), int))


def write_faces(folder: Path) -> None:
    random = np.random.default_rng(0)
    jpegs = []
    for _ in range(1000):
        coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
        jpegs.append(encode_jpeg(cv2.resize(coarse, (SIZE, SIZE))))
    lengths = np.array([len(jpeg) for jpeg in jpegs])
    index = np.zeros(len(jpegs), index_type(1))
    index["offset"], index["length"] = np.cumsum(lengths) - lengths, lengths
    index["age"] = index["age_high"] = random.integers(1, 86, 1000)
    index["gender"] = random.integers(0, 2, 1000)
    np.save(folder / "index.npy", index)
    np.save(folder / "images.npy", np.frombuffer(b"".join(jpegs), np.uint8))


def pipeline_batches(faces: Faces):
    from agelib.training.batches import train_batches

    return iter(train_batches(faces, np.ones(len(faces)), BATCH, SIZE, seed=0, first_epoch=0))


def reference_batches(faces: Faces):
    images = np.array([faces.image(i) for i in range(len(faces))], dtype=np.float64) / 255
    order = np.random.default_rng(0).permutation(len(faces))
    return (images[order[i : i + BATCH]] for i in range(0, len(faces), BATCH))


WAYS = {"pipeline": pipeline_batches, "reference": reference_batches}


def first_batch(way: str, folder: Path, count: int) -> None:
    """Prints the seconds to the first batch, and the peak memory after ten."""
    from agelib.backend import tf  # both ways feed a network

    tf.constant(0)
    begun = time.perf_counter()
    batches = WAYS[way](Faces(folder, count))
    next(batches)
    seconds = time.perf_counter() - begun
    for _ in itertools.islice(batches, 9):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def steps_per_second(model, batches, steps: int) -> float:
    for _ in range(3):
        model.train_on_batch(*next(batches))
    begun = time.perf_counter()
    for _ in range(steps):
        model.train_on_batch(*next(batches))
    return steps / (time.perf_counter() - begun)


def keeping_up(folder: Path, steps: int) -> None:
    """Prints the steps a second of both ways, taken in turns: the machine's own speed varies."""
    from agelib.model.network import build_model
    from agelib.training.recipe import compile_model

    model = build_model("EfficientNetB0", SIZE)
    compile_model(model, steps)
    fed = pipeline_batches(Faces(folder, 32_000))
    cached = itertools.repeat(next(fed))
    speeds = [(steps_per_second(model, b, steps // 4) for b in (fed, cached)) for _ in range(4)]
    fed_speed, cached_speed = np.mean([list(pair) for pair in speeds], axis=0)
    print(f"fed by the pipeline  {fed_speed:.2f} steps/s of {BATCH} faces")
    print(f"one cached batch     {cached_speed:.2f} steps/s")
    print(f"ratio                {fed_speed / cached_speed:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, nargs="+", default=[4000, 32_000])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--only", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        way, folder, count = options.only
        first_batch(way, Path(folder), int(count))
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_faces(Path(scratch))
        # First, as a process begins with the peak memory of the one that starts it.
        for count, way in itertools.product(options.faces, WAYS):
            command = [sys.executable, __file__, "--only", way, scratch, str(count)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(out.splitlines()[-1])
            print(
                f"{way:9} {count:6} faces: first batch after {found['seconds']:.2f} s, "
                f"peak {found['peak']:.0f} MB",
                flush=True,
            )
        keeping_up(Path(scratch), options.steps)


if __name__ == "__main__":
    main()
