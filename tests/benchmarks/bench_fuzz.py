"""Cleaning thousands of odd, damaged and enormous images in one process: what becomes of them.

    python tests/benchmarks/bench_fuzz.py [--images 10000] [--kind "cut jpeg"]

Mutates real faces where AGELIB_MIRROR names a folder with the archives, else the sample's. Prints
for each kind how many were kept, and the reasons of the rest; then the speed and the peak of this
process' memory, which must not grow with the number of images. With `--kind` all are of one kind.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import mutations

from agelib.config import Config
from agelib.datasets import sample, tables
from agelib.datasets.download import extract, fetch
from agelib.datasets.registry import DATASETS
from agelib.faces import cleaning
from agelib.faces.shards import FaceSet

UNIT_ROWS = 1000
LIGHT_ROUNDS = 8  # to one round of the heavy kinds, of which each image takes seconds


def find_sources(config: Config, count: int) -> list[Path]:
    """Returns some images of every data set."""
    sources = []
    for name in config.sources:
        fetch(name, config)
        extract(name, config)
        rows = tables.read_table(name, config).query("reject == ''")
        paths = rows.sample(min(len(rows), count), random_state=0)["path"]
        sources += [config.raw / DATASETS[name].archive.folder / path for path in paths]
    return sources


def make(sources: list[Path], folder: Path, count: int, kinds: list[str]) -> pd.DataFrame:
    """Returns the table of the mutations, with their kinds."""
    order = np.random.default_rng(0).permutation(len(sources))
    made = mutations.mutate([sources[i] for i in order], folder, count, kinds)
    table = pd.DataFrame([(mutation.path, mutation.kind) for mutation in made])
    table.columns = ["path", "kind"]
    labels = {"age": 30, "gender": 1, "race": pd.NA, "person": "", "reject": "", "split": "test"}
    return table.assign(**labels)


def make_elsewhere(*arguments) -> pd.DataFrame:
    """Makes the mutations in a process of their own, whose memory is not ours."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(make, *arguments).result()


def peak_memory() -> float:
    """Returns this process' peak so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def outcome_of_each(table: pd.DataFrame, faces: Path, kept: int) -> pd.Series:
    """Returns path -> "kept" or the reason, and makes sure that each path is there once."""
    rejected = pd.read_csv(faces / "rejected.csv", index_col="path")["reason"]
    kept = pd.Series("kept", FaceSet([faces], "test").paths if kept else [])
    outcomes = pd.concat([kept, rejected])
    assert sorted(outcomes.index) == sorted(table["path"])
    return outcomes


def print_kinds(table: pd.DataFrame, outcomes: pd.Series) -> None:
    results = table["path"].map(outcomes).groupby(table["kind"], sort=False)
    for kind, result in results:
        counts = ", ".join(f"{reason} {count}" for reason, count in Counter(result).most_common())
        print(f"{kind:32}{counts}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--kind", choices=[*mutations.KINDS, *mutations.HEAVY])
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "agelib-bench")
    options = parser.parse_args()
    profile = "wiki" if os.environ.get("AGELIB_MIRROR") else "sample"
    config = Config.from_profile(profile, crop_size=64, workers=1, data=options.data)
    if profile == "sample":
        sample.make_archives(Path(config.mirror))
    mixed = [*mutations.KINDS] * LIGHT_ROUNDS + [*mutations.HEAVY]
    kinds = [options.kind] if options.kind else mixed
    sources = find_sources(config, 500)
    cleaning.UNIT_ROWS = UNIT_ROWS
    peaks = []
    with tempfile.TemporaryDirectory() as images, tempfile.TemporaryDirectory() as faces:
        table = make_elsewhere(sources, Path(images), options.images, kinds)
        begun = time.perf_counter()
        manifest = cleaning.clean_table(
            *(table, Path(images), Path(faces), "fuzz", config),
            on_shard=lambda files: peaks.append(peak_memory()),
        )
        seconds = time.perf_counter() - begun
        outcomes = outcome_of_each(table, Path(faces), manifest["counts"]["kept"])
    assert Counter(manifest["counts"]) == Counter(outcomes)
    assert manifest["rows"] == options.images
    print_kinds(table, outcomes)
    print(f"total       {manifest['rows']} images of profile {profile}: {manifest['counts']}")
    print(f"speed       {len(table) / seconds:.1f} images/s")
    print(f"peak memory {peaks[0]:.0f} MB at image {min(UNIT_ROWS, len(table))}, ", end="")
    print(f"{peaks[-1]:.0f} MB at the end")


if __name__ == "__main__":
    main()
