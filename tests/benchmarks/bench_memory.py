"""Memory of cleaning more and more images, and of reading their faces back.

    python tests/benchmarks/bench_memory.py [--images 1000 10000 30000]

Takes real images of WIKI where AGELIB_MIRROR names a folder with the archives, else the sample's;
where there are too few, they come again. Each number of images is cleaned, and its faces read, in
a fresh process. Prints the peaks of their memory, which must not grow with the number of images,
and how large a face in the shards is in shares of its pixels.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

from agelib.config import Config
from agelib.datasets import sample
from agelib.datasets.download import extract, fetch
from agelib.datasets.registry import DATASETS
from agelib.datasets.tables import read_table
from agelib.faces.shards import FaceSet

CROP_SIZE = 64


def make_config(data: Path) -> Config:
    profile = "wiki" if os.environ.get("AGELIB_MIRROR") else "sample"
    return Config.from_profile(profile, crop_size=CROP_SIZE, workers=1, data=data)


def repeated(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Returns so many usable rows, taken anew as often as it needs."""
    usable = table.query("reject == ''").sample(frac=1, random_state=0)
    return usable.iloc[np.arange(count) % len(usable)].assign(split="test")


def clean_images(count: int, config: Config, faces: Path) -> None:
    from agelib.faces.cleaning import clean_table  # loads TensorFlow, which reading does not

    table = repeated(read_table("wiki", config), count)
    clean_table(table, config.raw / DATASETS["wiki"].archive.folder, faces, "benchmark", config)


def read_faces(count: int, config: Config, faces: Path) -> None:
    read = sum(len(batch) for batch in FaceSet([faces], "test").batches())
    assert 0 < read <= count


STEPS = {"clean": clean_images, "read": read_faces}


def run_step(step: str, count: int, config: Config, faces: Path) -> None:
    """Runs a step in this process and prints how long it took and its peak of memory in MB."""
    begun = time.perf_counter()
    STEPS[step](count, config, faces)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, peak]))


def run_in_fresh_process(step: str, count: int, config: Config, faces: Path) -> list[float]:
    """Returns what `run_step` prints."""
    arguments = ["--images", count, "--data", config.data, "--step", step, "--faces", faces]
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def share_of_pixels(faces: Path) -> float:
    """Returns the bytes of a face in the shards, its index entry too, relative to its pixels."""
    size = sum(path.stat().st_size for path in faces.glob("*.npy"))
    return size / len(FaceSet([faces], "test")) / (3 * CROP_SIZE**2)


def compare(counts: list[int], config: Config) -> None:
    print(f"{'images':>8} {'step':8}{'seconds':>9}{'images/s':>10}{'peak MB':>9}")
    peaks: dict[str, list[float]] = {step: [] for step in STEPS}
    for count in counts:
        with tempfile.TemporaryDirectory() as faces:
            for step in STEPS:
                seconds, peak = run_in_fresh_process(step, count, config, Path(faces))
                peaks[step].append(peak)
                print(f"{count:8} {step:8}{seconds:9.1f}{count / seconds:10.1f}{peak:9.0f}")
            share = share_of_pixels(Path(faces))
    for step, (first, *_, last) in peaks.items():
        print(
            f"{step:12}{last / first:.2f} times the peak for {counts[-1]} as for {counts[0]} images"
        )
    print(f"shards      {share:.1%} of the bytes that {CROP_SIZE} x {CROP_SIZE} RGB pixels take")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 30_000])
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "agelib-bench")
    # What the fresh processes are called with.
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--faces", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = make_config(options.data)
    if options.step:
        run_step(options.step, options.images[0], config, options.faces)
        return
    if config.profile == "sample":
        sample.make_archives(Path(config.mirror))
    fetch("wiki", config)
    extract("wiki", config)
    compare(options.images, config)


if __name__ == "__main__":
    main()
