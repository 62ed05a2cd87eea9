"""Cleaning: a data set's table and images to shards of face crops.

The usable rows of each split are cut into units of `UNIT_ROWS`; each unit becomes one shard. A unit
depends only on its rows and the crop settings. So several processes can share the work, and a run
that was cut off continues with the units that are missing.
"""

import hashlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed, effective_n_jobs
from tqdm import tqdm

from agelib import AgelibError
from agelib.config import Config, Crop
from agelib.datasets import tables
from agelib.datasets.own_photos import is_user_folder
from agelib.datasets.registry import images_folder
from agelib.disk_errors import need_space, reading, retrying
from agelib.faces import shards
from agelib.faces.crop import PORTRAIT_CANVAS, crop_images
from agelib.faces.images import Rejected
from agelib.faces.shards import FaceSet, read_manifest
from agelib.files import atomic, read_json, sha256, write_json
from agelib.labels import RACES

UNIT_ROWS = 2048
REJECTED = "rejected.csv"
PARTS = "parts"  # records of finished shards, until the manifest holds them


def clean(
    name: str, config: Config, on_shard: Callable[[list[Path]], None] | None = None
) -> dict[str, Any]:
    """Turns a data set into shards in `data/faces/<name>`, and returns their manifest.

    Finished shards are kept; `on_shard` is called with the files of each once they are complete.
    Raises AgelibError if the images are missing, or the folder holds other crops.
    """
    table, images = tables.read_table(name, config), images_folder(name, config)
    return clean_table(table, images, config.faces / name, name, config, on_shard)


def is_current(name: str, config: Config) -> bool:
    """Tells whether the shards in `data/faces/<name>`, if any, are of these labels and settings."""
    table, images = tables.read_table(name, config), images_folder(name, config)
    origin = _origin(table, images, name, config)
    return all(origin.items() <= record.items() for record in _records(config.faces / name))


def clean_table(
    table: pd.DataFrame,
    images: Path,
    folder: Path,
    name: str,
    config: Config,
    on_shard: Callable[[list[Path]], None] | None = None,
) -> dict[str, Any]:
    """Does what `clean` does with any table as from `read_table`, and the images that it names.

    The table's paths are relative to `images`; `folder` is for the shards; `name` is the data
    set's, for the manifest.
    """
    units = _units(table)
    origin = _origin(table, images, name, config)
    done = _finished(folder, origin, config.drive / "faces" / name)
    todo = {stem: rows for stem, rows in units.items() if stem not in done}
    parts, manifest = folder / PARTS, folder / shards.MANIFEST
    if todo or not manifest.exists():
        need_space(folder, sum(map(len, todo.values())) * config.crop_size**2)
        total = sum(map(len, units.values()))
        with tqdm(total=total, desc=f"clean {name}", unit=" images") as bar:
            finished = _clean_units(todo, images, folder, origin, config.workers)
            for stem, shard in itertools.chain(done.copy().items(), finished):
                done[stem] = shard
                bar.update(shard["rows"])
                if on_shard and (parts / f"{stem}.json").exists():
                    on_shard([*(folder / file for file in shard["files"]), parts / f"{stem}.json"])
        (folder / REJECTED).unlink(missing_ok=True)
        write_json(manifest, _manifest(table, {stem: done[stem] for stem in units}, origin))
    if not (folder / REJECTED).exists():
        _write_rejected(folder, table)
    shutil.rmtree(parts, ignore_errors=True)
    return read_manifest(folder)


def _units(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns shard name -> its rows, in the table's order."""
    usable = table[table["reject"] == ""]
    return {
        f"{split}-{start // UNIT_ROWS:05d}": rows.iloc[start : start + UNIT_ROWS]
        for split, rows in usable.groupby("split", sort=True)
        for start in range(0, len(rows), UNIT_ROWS)
    }


def _origin(table: pd.DataFrame, images: Path, name: str, config: Config) -> dict[str, Any]:
    """Returns what a shard's content depends on; shards of another origin are not mixed in."""
    columns = ("path", "age", "age_high", "gender", "person", "race", "split", "reject")
    labels = table[[column for column in columns if column in table]]
    labels = labels[labels["reject"] != "unlabelled"]
    usable = table[table["reject"] == ""]
    if is_user_folder(images):  # archives are verified, but a user may edit a photo
        with reading(images):  # a file that cannot be read now has not changed
            labels = labels.assign(photo=usable["path"].map(partial(_photo_sha256, images)))
    # As text, which is the same whatever pandas makes of missing numbers.
    text = labels.to_csv(index=False, na_rep="", lineterminator="\n")
    races = table["race"].dropna()
    utkface_codes = pd.api.types.is_numeric_dtype(races)
    return {
        "format": shards.FORMAT,
        "dataset": name,
        "crop": config.crop.to_json(),
        "races": list(RACES) if utkface_codes else sorted(races.unique()),
        "official": sorted(set(usable.get("official", ())) - {""}),
        "detector": {"name": "mtcnn", "version": version("mtcnn"), "canvas_size": PORTRAIT_CANVAS},
        "jpeg_quality": shards.JPEG_QUALITY,
        "unit_rows": UNIT_ROWS,
        "table": hashlib.sha256(os.fsencode(text)).hexdigest(),
    }


def _photo_sha256(images: Path, path: str) -> str:
    try:
        return retrying(sha256)(images / path)
    except (FileNotFoundError, IsADirectoryError, PermissionError):  # which cleaning will report
        return ""


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """Returns a face set's manifest, or the records of a run that was cut off."""
    manifest = folder / shards.MANIFEST
    paths = [manifest] if manifest.exists() else sorted((folder / PARTS).glob("*.json"))
    return map(read_json, paths)


def _finished(folder: Path, origin: dict, copy: Path) -> dict[str, dict]:
    """Returns the shards that exist: of a finished run, or of one that was cut off."""
    done = {}
    places = [place for place in (folder, copy) if os.path.exists(place)]
    for record in _records(folder):
        Crop.from_json(origin["crop"]).check(Crop.from_json(record["crop"]), *places)
        for key, value in origin.items():
            if record.get(key) == value:
                continue
            made = f"with {key} {record.get(key)}, but {value} is asked for"
            if key == "table":
                made = "of other images or labels (the archive, a source or --val-fraction is new)"
            raise AgelibError(
                f"{folder} was made {made}: use the same settings, or delete "
                f"{' and '.join(map(str, places))}."
            )
        done.update(record["shards"])
    return {
        stem: shard for stem, shard in done.items() if shards.is_intact(folder, shard, hashes=False)
    }


def _clean_units(
    units: dict[str, pd.DataFrame], images: Path, folder: Path, origin: dict, workers: int
) -> Iterator[tuple[str, dict]]:
    """Yields each unit's shard as soon as it is finished, in any order."""
    workers = min(effective_n_jobs(workers), max(1, len(units)))
    jobs = (
        delayed(_clean_unit)(rows, images, folder, stem, origin, shared=workers > 1)
        for stem, rows in units.items()
    )
    try:
        yield from Parallel(n_jobs=workers, return_as="generator_unordered")(jobs)
    except BrokenExecutor as error:
        raise AgelibError(
            "A worker process died, most likely because the memory is full: run this again with "
            "fewer --workers; finished shards are kept."
        ) from error


def _clean_unit(
    rows: pd.DataFrame, images: Path, folder: Path, stem: str, origin: dict, shared: bool
) -> tuple[str, dict]:
    """Writes one shard and then the record that says it is complete."""
    records = rows.to_dict("records")
    paths = [Path(images) / row["path"] for row in records]
    jpegs, faces, rejected = [], [], []
    crops = crop_images(paths, Crop.from_json(origin["crop"]), shared)
    for row, result in zip(records, crops, strict=True):
        if isinstance(result, Rejected):
            rejected.append([row["path"], result.reason])
            continue
        race = -1 if pd.isna(row["race"]) else row["race"]
        race = origin["races"].index(race) if isinstance(race, str) else race
        row = {"age_high": row["age"]} | row
        faces.append(row | {"race": race, "person": tables.person_hash(row["person"])})
        jpegs.append(result)
    if rejected and not any(map(os.path.lexists, paths)):  # they were there at the beginning
        raise AgelibError(
            f"The photos in {images} are gone: connect their disk again, then run this again; "
            "finished shards are kept."
        )
    files = shards.write_shard(folder, stem, jpegs, faces)
    shard = {"rows": len(rows), "faces": len(faces), "files": files, "rejected": rejected}
    write_json(folder / PARTS / f"{stem}.json", origin | {"shards": {stem: shard}})
    return stem, shard


def _manifest(table: pd.DataFrame, done: dict[str, dict], origin: dict) -> dict[str, Any]:
    splits, reasons = Counter(), Counter(table.loc[table["reject"] != "", "reject"])
    for stem, shard in done.items():
        splits[stem.split("-")[0]] += shard["faces"]
        reasons.update(reason for _, reason in shard["rejected"])
    return origin | {
        "versions": {name: version(name) for name in ("mtcnn", "numpy", "pillow", "tensorflow")},
        "rows": len(table),
        "counts": {"kept": splits.total(), **reasons},
        "splits": splits,
        "shards": done,
    }


def _write_rejected(folder: Path, table: pd.DataFrame) -> None:
    finished = read_manifest(folder)["shards"].values()
    metadata = table.loc[table["reject"] != "", ["path", "reject"]].to_numpy().tolist()
    cleaning = [pair for shard in finished for pair in shard["rejected"]]
    rejected = pd.DataFrame(metadata + cleaning, columns=["path", "reason"])
    with atomic(folder / REJECTED) as path:
        rejected.to_csv(path, index=False, errors="surrogateescape")


def check_splits(names: Iterable[str], config: Config) -> None:
    """Raises AgelibError if face sets were split by other settings, as hashes of persons show."""
    tables.check_sources(config)
    for name in names:
        folder, trained = config.faces / name, name in config.train_sources
        manifest = read_manifest(folder)
        official = set(manifest["official"])
        shares = tables.held_out_shares(name, config, official)
        splits = [split for split, count in manifest["splits"].items() if count]
        hashed = set(splits) - ((official - {"train"}) if trained else set())
        as_asked = all(
            (tables.split_by_person(FaceSet([folder], split).person, *shares) == split).all()
            for split in hashed
        )
        if not as_asked or (trained and "train" not in splits):
            raise AgelibError(
                f"{folder} was split into train, val and test by other settings: give the "
                "--train-sources, --test-sources and --val-fraction that it was cleaned with, "
                "or delete it and clean again."
            )
