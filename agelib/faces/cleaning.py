"""Cleaning: a data set's table and images to shards of face crops.

The usable rows of each split are cut into units of `UNIT_ROWS`; each unit becomes one shard. A unit
depends on its rows and the crop settings alone, so that any number of processes may work side by
side, and a run that was cut off goes on with the units that are not finished.
"""

import functools
import hashlib
import itertools
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs
from tqdm import tqdm

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets.own_photos import is_loose
from agelib.datasets.tables import (
    check_sources,
    count_reasons,
    held_out,
    images_folder,
    person_hash,
    read_table,
    split_by_hash,
)
from agelib.disk import need_space, patient, reading
from agelib.faces import shards
from agelib.faces.crop import PORTRAIT_CANVAS, Face, choose_face, crop_face
from agelib.faces.images import Rejected, read_image
from agelib.faces.shards import FaceSet, encode_jpeg, read_manifest
from agelib.files import atomic, read_json, sha256, write_json
from agelib.labels import RACES

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.faces.detector import FaceDetector

UNIT_ROWS = 2048
REJECTED = "rejected.csv"
PARTS = "parts"  # notes of finished shards, until the manifest takes them over

BATCH = 64
_THREADS = 2
_AHEAD = 2  # batches
_MAX_SIDE = 1024  # pixels of an image in memory: more than any crop has, and batches stay small

_Image = np.ndarray | Rejected


def clean(
    name: str, config: Config, on_shard: Callable[[list[Path]], None] | None = None
) -> dict[str, Any]:
    """Turns a data set into shards in `data/faces/<name>`; finished shards are kept.

    Args:
        name: The data set's.
        config: All settings.
        on_shard: Called with a shard's files as soon as they are whole.

    Returns:
        The manifest.

    Raises:
        AgelibError: If the images are not there, or the folder holds other crops.
    """
    table, images = read_table(name, config), images_folder(name, config)
    return clean_table(table, images, config.faces / name, name, config, on_shard)


def is_of_now(name: str, config: Config) -> bool:
    """Tells whether the shards in `data/faces/<name>`, if any, are of these labels and settings."""
    folder = config.faces / name
    manifest = folder / shards.MANIFEST
    records = [manifest] if manifest.exists() else sorted((folder / PARTS).glob("*.json"))
    head = _head(read_table(name, config), images_folder(name, config), name, config)
    return all(head.items() <= read_json(path).items() for path in records)


def clean_table(
    table: pd.DataFrame,
    images: Path,
    folder: Path,
    name: str,
    config: Config,
    on_shard: Callable[[list[Path]], None] | None = None,
) -> dict[str, Any]:
    """Turns any labelled images into shards.

    Args:
        table: As `read_table` returns it; without `age_high` all ages are exact.
        images: The folder that the table's paths are relative to.
        folder: Where the shards go.
        name: The data set's name, for the manifest.
        config: Gives the crop's size and margin and the number of workers.
        on_shard: As for `clean`.

    Returns:
        The manifest, which is also written to the folder.

    Raises:
        AgelibError: If the folder holds crops made with other settings or from other images.
    """
    units = _units(table)
    head = _head(table, images, name, config)
    done = _finished(folder, head, config.drive / "faces" / name)
    todo = {stem: rows for stem, rows in units.items() if stem not in done}
    if not todo and (folder / shards.MANIFEST).exists():
        return _leave(table, folder)
    need_space(folder, sum(len(rows) for rows in todo.values()) * config.crop_size**2)
    parts = folder / PARTS
    workers = min(effective_n_jobs(config.workers), max(1, len(todo)))
    jobs = (
        delayed(_clean_unit)(rows, images, folder, stem, head, alone=workers == 1)
        for stem, rows in todo.items()
    )
    total = sum(len(rows) for rows in units.values())
    with tqdm(total=total, desc=f"clean {name}", unit=" images") as bar:
        for stem, shard in itertools.chain(done.copy().items(), _run(jobs, workers)):
            done[stem] = shard
            bar.update(shard["rows"])
            if on_shard and (parts / f"{stem}.json").exists():
                on_shard([*(folder / file for file in shard["files"]), parts / f"{stem}.json"])
    manifest = _manifest(table, {stem: done[stem] for stem in units}, head)
    _write_rejected(folder / REJECTED, table, manifest)
    write_json(folder / shards.MANIFEST, manifest)
    shutil.rmtree(parts, ignore_errors=True)
    return manifest


def _units(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns shard name -> its rows, in the table's order."""
    usable = table[table["reject"] == ""]
    return {
        f"{split}-{i:05d}": rows.iloc[i * UNIT_ROWS : (i + 1) * UNIT_ROWS]
        for split, rows in usable.groupby("split", sort=True)
        for i in range(-(-len(rows) // UNIT_ROWS))
    }


def _head(table: pd.DataFrame, images: Path, name: str, config: Config) -> dict[str, Any]:
    """Returns what a shard's content depends on; shards of another head are not ours."""
    columns = ("path", "age", "age_high", "gender", "person", "race", "split", "reject")
    labels = table[[column for column in columns if column in table]]
    labels = labels[labels["reject"] != "unlabelled"]
    usable = labels["reject"] == ""
    if is_loose(images):  # archives are verified whole, but anybody may mend a photo
        with reading(images):  # what cannot be read just now has not changed
            photos = labels["path"].where(usable).map(partial(_photo, images))
        labels = labels.assign(photo=photos)
    # As text, which is the same whatever pandas makes of missing numbers.
    text = labels.to_csv(index=False, na_rep="", lineterminator="\n")
    return {
        "format": shards.FORMAT,
        "dataset": name,
        "crop": config.crop,
        "races": _races(table),
        "official": _official(table),
        "detector": {"name": "mtcnn", "version": version("mtcnn"), "canvas_size": PORTRAIT_CANVAS},
        "jpeg_quality": shards.JPEG_QUALITY,
        "unit_rows": UNIT_ROWS,
        "table": hashlib.sha256(os.fsencode(text)).hexdigest(),
    }


def _official(table: pd.DataFrame) -> list[str]:
    """Returns which splits the set's own labels name."""
    named = table.loc[table["reject"] == "", "official"] if "official" in table else ()
    return sorted(set(named) - {""})


def _races(table: pd.DataFrame) -> list[str]:
    """Returns the names of a set's races: those of its own words, or what UTKFace's codes mean."""
    races = table["race"].dropna()
    return list(RACES) if pd.api.types.is_numeric_dtype(races) else sorted(races.unique())


def _photo(images: Path, path: str) -> str:
    """Returns a photo's SHA-256, or nothing of one that is of no use."""
    try:
        return "" if pd.isna(path) else patient(sha256)(images / path)
    except (FileNotFoundError, IsADirectoryError, PermissionError):  # which cleaning will say
        return ""


def _run(jobs: Iterable, workers: int) -> Iterator[tuple[str, dict]]:
    """Yields each unit's shard as soon as it is finished, in any order."""
    try:
        yield from Parallel(n_jobs=workers, return_as="generator_unordered")(jobs)
    except BrokenExecutor as error:
        raise AgelibError(
            "A worker process died, most likely for want of memory: run this again with fewer "
            "--workers; finished shards are kept."
        ) from error


def _finished(folder: Path, head: dict, copy: Path) -> dict[str, dict]:
    """Returns the shards that are there already: of a finished run, and of one cut off."""
    done = {}
    manifest = folder / shards.MANIFEST
    records = [manifest] if manifest.exists() else sorted((folder / PARTS).glob("*.json"))
    for path in records:
        record = read_json(path)
        for key, value in head.items():
            if record.get(key) != value:
                made = f"with {key} {record.get(key)}, but {value} is asked for"
                if key == "table":
                    made = (
                        "of other images or labels (the archive, a source or --val-fraction is new)"
                    )
                places = " and ".join(
                    str(place) for place in (folder, copy) if os.path.exists(place)
                )
                raise AgelibError(
                    f"{folder} was made {made}: use the same settings, or delete {places}."
                )
        done.update(record["shards"])
    return {
        stem: shard
        for stem, shard in done.items()
        if shards.shard_is_whole(folder, shard, hashes=False)
    }


def _clean_unit(
    rows: pd.DataFrame, images: Path, folder: Path, stem: str, head: dict, alone: bool
) -> tuple[str, dict]:
    """Writes one shard and, last, the note that says it is whole."""
    records = rows.to_dict("records")
    paths = [Path(images) / row["path"] for row in records]
    jpegs, kept, rejected = [], [], []
    for row, result in zip(records, crop_images(paths, head["crop"], alone), strict=True):
        if isinstance(result, Rejected):
            rejected.append([row["path"], result.reason])
            continue
        race = -1 if pd.isna(row["race"]) else row["race"]
        race = head["races"].index(race) if isinstance(race, str) else race
        row = {"age_high": row["age"]} | row
        kept.append(row | {"race": race, "person": person_hash(row["person"])})
        jpegs.append(result)
    files = shards.write_shard(folder, stem, jpegs, kept)
    shard = {"rows": len(rows), "faces": len(kept), "files": files, "rejected": rejected}
    write_json(folder / PARTS / f"{stem}.json", head | {"shards": {stem: shard}})
    return stem, shard


def _leave(table: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Returns the manifest of a finished set, with all that belongs beside it and no more."""
    manifest = shards.read_manifest(folder)
    if not (folder / REJECTED).exists():
        _write_rejected(folder / REJECTED, table, manifest)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return manifest


def _manifest(table: pd.DataFrame, done: dict[str, dict], head: dict) -> dict[str, Any]:
    """Returns the manifest: settings, versions, counts per split and reason, every shard."""
    counts = count_reasons(table).drop("usable", errors="ignore").to_dict()
    splits: dict[str, int] = {}
    for stem, shard in done.items():
        split = stem.split("-")[0]
        splits[split] = splits.get(split, 0) + shard["faces"]
        for _, reason in shard["rejected"]:
            counts[reason] = counts.get(reason, 0) + 1
    return head | {
        "versions": {name: version(name) for name in ("mtcnn", "numpy", "pillow", "tensorflow")},
        "rows": len(table),
        "counts": {"kept": sum(splits.values()), **{k: int(v) for k, v in counts.items()}},
        "splits": splits,
        "shards": done,
    }


def _write_rejected(path: Path, table: pd.DataFrame, manifest: dict) -> None:
    """Names every image that is not in the shards, and why."""
    metadata = table.loc[table["reject"] != "", ["path", "reject"]].to_numpy().tolist()
    cleaning = [pair for shard in manifest["shards"].values() for pair in shard["rejected"]]
    rejected = pd.DataFrame(metadata + cleaning, columns=["path", "reason"])
    with atomic(path) as partial:
        rejected.to_csv(partial, index=False, errors="surrogateescape")


@functools.cache
def detector(alone: bool) -> "FaceDetector":
    """Returns this process' detector.

    Args:
        alone: Whether this process has the machine to itself. One of several keeps to a core and
            leaves the GPU to whoever trains: each would claim all of its memory.
    """
    from agelib.backend import tf
    from agelib.faces.detector import FaceDetector

    if not alone:
        # A process that has computed before keeps its settings.
        with suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
    return FaceDetector()


def crop_images(
    paths: Sequence[Path | bytes], crop: dict[str, Any], alone: bool
) -> Iterator[bytes | Rejected]:
    """Finds and crops the face that each image is about.

    Args:
        paths: Image files, or their bytes.
        crop: Settings of `crop_face`.
        alone: As for `detector`.

    Yields:
        For each image, in order, the JPEG of its face crop, or why there is none.
    """
    batches = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]
    detect = detector(alone).detect
    with ThreadPoolExecutor(_THREADS) as pool:
        read = _ahead(pool, _read, batches)
        detected = ((images, detect(list(_readable(images)))) for images in read)
        for results in _ahead(pool, functools.partial(_encode, crop=crop), detected):
            yield from results


def _ahead(pool: Executor, call: Callable, items: Iterable) -> Iterator:
    """Yields `call(item)` for each item, in order, a few of them computed ahead."""
    pending: deque = deque()
    for item in items:
        pending.append(pool.submit(call, item))
        if len(pending) > _AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _read(paths: Sequence[Path | bytes]) -> list[_Image]:
    return [_or_rejected(read_image, path, _MAX_SIDE) for path in paths]


def _readable(images: Iterable[_Image]) -> Iterator[np.ndarray]:
    return (image for image in images if not isinstance(image, Rejected))


def _encode(
    batch: tuple[list[_Image], list[list[Face]]], crop: dict[str, Any]
) -> list[bytes | Rejected]:
    images, found = batch
    faces = iter(found)
    return [
        image
        if isinstance(image, Rejected)
        else _or_rejected(_encode_face, image, next(faces), crop)
        for image in images
    ]


def _encode_face(image: np.ndarray, faces: list[Face], crop: dict[str, Any]) -> bytes:
    return encode_jpeg(crop_face(image, choose_face(faces, image.shape), **crop))


def _or_rejected(call: Callable, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Rejected as reason:
        # A traceback would keep the whole batch in memory.
        return reason.with_traceback(None)


def check_splits(names: Iterable[str], config: Config) -> None:
    """Makes sure that face sets were split as the settings ask: the hash of each person tells.

    Args:
        names: Of the face sets.
        config: As for `read_table`.

    Raises:
        AgelibError: If one was split otherwise.
    """
    check_sources(config)
    for name in names:
        folder = config.faces / name
        manifest = read_manifest(folder)
        official = set(manifest["official"])
        trained, shares = name in config.train_sources, held_out(name, config, official)
        splits = [split for split, count in manifest["splits"].items() if count]
        hashed = set(splits) - ((official - {"train"}) if trained else set())
        as_asked = all(
            (split_by_hash(FaceSet([folder], split).person, *shares) == split).all()
            for split in hashed
        )
        if not as_asked or (trained and "train" not in splits):
            raise AgelibError(
                f"{folder} was split into train, val and test by other settings: give the "
                "--train-sources, --test-sources and --val-fraction that it was cleaned with, "
                "or delete it and clean again."
            )
