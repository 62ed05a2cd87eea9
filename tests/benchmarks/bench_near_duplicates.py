"""Time and memory of looking for near-duplicates, against the whole matrix of correlations.

    python tests/benchmarks/bench_near_duplicates.py [--faces 100000] [--matrix 6000]

First, in fresh processes, half of the faces and all of them: seconds and peak of memory, which must
not grow with the square of their number. Then, in this process, our way and `np.corrcoef` over as
many faces as `--matrix` says, in turns, and how many of the planted copies each finds: half of them
are cut out around another box. The faces are drawn: about as many pairs are alike as in real sets.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from agelib.faces.near_duplicates import SIDE, THRESHOLD, near_duplicates

COPIES = 200
TURNS = 3


def draw_thumbnails(count: int) -> np.ndarray:
    """Returns smooth pictures with something in common; the last ones are copies of the first."""
    rng = np.random.default_rng(0)
    common = cv2.resize(rng.standard_normal((4, 4)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    thumbs = np.empty((count, SIDE, SIDE), np.uint8)
    for i in range(count - COPIES):
        own = cv2.resize(rng.standard_normal((8, 8)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        thumbs[i] = np.clip(128 + 30 * (1.8 * common + own), 0, 255)
    for i in range(COPIES):
        thumbs[count - COPIES + i] = copy(thumbs[i], moved=i % 2 == 1)
    return thumbs


def copy(thumb: np.ndarray, moved: bool) -> np.ndarray:
    if not moved:
        return np.clip(thumb * 0.9, 0, 255).astype(np.uint8)
    turn = cv2.getRotationMatrix2D((SIDE / 2, SIDE / 2), 2, 1.04)
    turn[:, 2] += 1
    return cv2.warpAffine(thumb, turn, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)


def whole_matrix(thumbs: np.ndarray) -> np.ndarray:
    correlation = np.corrcoef(thumbs.reshape(len(thumbs), -1))
    return np.argwhere(np.triu(correlation > THRESHOLD, 1))


WAYS = {"ours": near_duplicates, "np.corrcoef": whole_matrix}


def share_found(pairs: np.ndarray, count: int) -> float:
    """Returns how many of the planted copies are among the pairs."""
    planted = {(i, count - COPIES + i) for i in range(COPIES)}
    return len(planted & set(map(tuple, pairs.tolist()))) / COPIES


def measure(count: int) -> None:
    """Prints seconds, seconds of processors, and the peaks of memory in MB, before and after."""
    thumbs = draw_thumbnails(count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun, cpu = time.perf_counter(), time.process_time()
    near_duplicates(thumbs)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, cpu, before, peak]))


def compare(count: int) -> None:
    thumbs = draw_thumbnails(count)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    found = {}
    for _ in range(TURNS):
        for name, way in WAYS.items():
            begun = time.perf_counter()
            pairs = way(thumbs)
            seconds[name].append(time.perf_counter() - begun)
            found[name] = share_found(pairs, count)
    for name in WAYS:
        print(
            f"{name:12} {count:7,} faces {min(seconds[name]):6.2f} s, finds {found[name]:.0%} of "
            "the copies"
        )
    ratio = min(seconds["np.corrcoef"]) / min(seconds["ours"])
    matrix = count**2 * 8 / 1e6
    print(f"ours is {ratio:.1f} times as fast; the other's matrix takes {matrix:,.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faces", type=int, default=100_000)
    parser.add_argument("--matrix", type=int, default=6000)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only)
        return
    # First, as a process begins with the peak memory of the one that starts it.
    for count in (options.faces // 2, options.faces):
        command = [sys.executable, __file__, "--only", str(count)]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
        took, cpu, before, peak = json.loads(out)
        print(
            f"{'ours':12} {count:7,} faces {took:6.1f} s ({cpu:.0f} s of processors), peak "
            f"{peak:.0f} MB, of which {before:.0f} MB before",
            flush=True,
        )
    compare(options.matrix)


if __name__ == "__main__":
    main()
