"""The steps of the story: each pulls what it needs from Drive, works, and pushes what it made.

The notebooks and the command line call these; on a fresh Colab machine, where nothing of the last
notebook is left on the disk, they fetch it back.
"""

import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from agelib import AgelibError, disk_errors, plots, training
from agelib.config import Config, checkpoint_path
from agelib.datasets import archives, sample
from agelib.datasets import download as downloading
from agelib.datasets.own_photos import copy_own, is_user_folder
from agelib.datasets.registry import find_dataset, images_folder
from agelib.datasets.tables import check_sources
from agelib.drive import sync
from agelib.drive.mounting import check_mounted
from agelib.drive.sync import Backup, push_finished
from agelib.evaluation.evaluate import ESTIMATES, compare_with_pretrained, evaluate_run
from agelib.evaluation.tables import compare_table
from agelib.faces import cleaning
from agelib.faces.shards import MANIFEST, damaged_shards, read_crop, read_manifest
from agelib.files import read_json


def download(name: str, config: Config) -> Path:
    """Fetches an archive, keeps a copy on Drive, extracts it, and returns the images' folder.

    Of a folder of your own nothing is copied to Drive.
    """
    check_sources(config)
    if _is_yours(name, config):
        return _your_images(name, config)
    if config.profile == "sample":
        drawn = sample.make_archives(Path(config.mirror))
        archive = find_dataset(name).archive
        if archive.url and archive.file not in {path.name for path in drawn}:
            raise AgelibError(f"The sample has no {name}: choose another --profile, such as wiki.")
    _pull_archive(name, config)
    archive = downloading.fetch(name, config)
    copy = config.drive / "archives" / archive.name
    if sync.is_replaced(copy, archive):
        raise AgelibError(
            f"{copy} is no longer a copy of {archive}: delete the one that is out of date, and run "
            "the download step again."
        )
    folder = downloading.extract(name, config)
    # After that: what cannot be extracted must not come back from Drive again and again.
    sync.push(archive, copy)
    return folder


def clean(name: str, config: Config) -> dict[str, Any]:
    """Turns a data set into shards, and returns the manifest; each goes to Drive once it is whole.

    Raises AgelibError if the images are not there, or Drive or the folder holds other crops.
    """
    faces, remote = config.faces / name, config.drive / "faces" / name
    yours = _is_yours(name, config)
    with disk_errors.reading(remote):
        if (remote / MANIFEST).exists() and not yours:
            config.crop.check(read_crop(remote), remote, faces)
    pull_set(name, config)
    if yours:
        _your_images(name, config)  # on Colab, photos that are new on Drive since the download step
        if not cleaning.is_current(name, config):
            print(f"{name}: labels or settings changed, so all is cleaned again.", file=sys.stderr)
            sync.remove(remote)
            shutil.rmtree(faces, ignore_errors=True)
    else:
        if not images_folder(name, config).exists():
            _pull_archive(name, config)
        downloading.extract(name, config)
    manifest = cleaning.clean(name, config, on_shard=Backup(faces, remote).push)
    upload(name, config)
    return manifest


def _pull_archive(name: str, config: Config) -> None:
    folder = config.drive / "archives"
    check_mounted(folder)
    with disk_errors.reading(folder):
        found = find_dataset(name).archive.find_in(folder)
        pushed = [path for path in found if sync.holds(path)]
    if pushed and not (config.raw / pushed[0].name).exists():
        local = config.raw / pushed[0].name
        try:
            sync.pull(pushed[0], local)
        except AgelibError as error:
            if isinstance(error.__cause__, sync.Differs):
                return  # somebody put another there, which `fetch` verifies by itself
            raise
        archives.write_metadata(local)


def _is_yours(name: str, config: Config) -> bool:
    """Tells whether a data set is a folder of the user's, and no archive."""
    return name == "own" or is_user_folder(images_folder(name, config))


def _your_images(name: str, config: Config) -> Path:
    """Returns the folder of your own images; the sample draws its own."""
    folder = images_folder(name, config)
    if name != "own":
        return folder
    if config.own is None:
        sample.make_own(folder)
    elif folder != config.own:
        check_mounted(config.own)
        copy_own(config.own, folder)
    if not folder.is_dir():
        raise AgelibError(
            f"{folder} is no folder: name the one with your images (--own FOLDER, or folder in "
            "notebook 07)."
        )
    return folder


def verify(name: str, config: Config) -> list[str]:
    """Hashes every shard, removes the damaged ones, and returns their names.

    `clean` gets or makes them anew.
    """
    faces = config.faces / name
    if not (faces / MANIFEST).exists():
        pull_set(name, config)
    damaged = damaged_shards(faces) if (faces / MANIFEST).exists() else []
    for shard in damaged:
        for file in read_manifest(faces)["shards"][shard]["files"]:
            (faces / file).unlink(missing_ok=True)
    return damaged


def upload(name: str, config: Config) -> list[str]:
    """Brings a data set's shards to Drive, and returns the names of the files that were new there.

    Every byte is read, here and there, and compared. Raises AgelibError if a shard here is damaged.
    """
    faces, remote = config.faces / name, config.drive / "faces" / name
    if not (faces / MANIFEST).exists():
        pull_set(name, config)
    damaged = damaged_shards(faces)
    if damaged:
        raise AgelibError(
            f"{faces} has damaged shards ({', '.join(damaged)}): run `python -m agelib clean "
            "--verify`, or agelib.steps.verify and agelib.steps.clean; only these are made again."
        )
    copied = push_finished(faces, faces, remote, verify=True)
    sync.remove(remote, cleaning.PARTS)
    return copied


def pull_faces(config: Config) -> dict[str, dict[str, Any]]:
    """Makes sure that the shards of every data set are here; returns their manifests by name."""
    for name in config.sources:
        pull_set(name, config)
    return {name: read_manifest(config.faces / name) for name in config.sources}


def train(
    config: Config, on_epoch: Callable[[pd.DataFrame], None] = lambda history: None
) -> pd.DataFrame:
    """Trains the run's model, or goes on with it; returns the history, one row an epoch."""
    pull_faces(config)
    pull_run(config)
    folder, remote = config.run_folder, _run_on_drive(config)
    product, pushed = folder / "model.keras", remote / "model.keras"
    with disk_errors.reading(remote):
        finished = product.exists() and sync.holds(pushed) and pushed.exists()
    backup = Backup(folder, remote)

    def push_and_tell(history: pd.DataFrame) -> None:
        backup.push()
        on_epoch(history)

    history = training.train(config, push_and_tell)
    if not finished:
        _save_figures(config, learning_curves=plots.learning_curves(history))
        push_finished(product, folder, remote)
    return history


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluates the run's model, draws figures of its scores, and returns `evaluation.json`."""
    pull_faces(config)
    pull_run(config)
    report = evaluate_run(config)
    estimates = read_estimates(config)
    _save_figures(
        config,
        confusion=plots.confusion(report),
        age_errors=plots.age_errors(estimates),
        reliability=plots.reliability_diagram(estimates),
        groups=plots.groups(report),
    )
    push_finished(config.run_folder, config.run_folder, _run_on_drive(config))
    return report


def _save_figures(config: Config, **figures: Figure) -> None:
    folder = config.run_folder / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")


def read_estimates(config: Config) -> pd.DataFrame:
    """Returns the `estimates_table` of the run's model and the first test set.

    Raises AgelibError if the run has not been evaluated yet.
    """
    path = config.run_folder / ESTIMATES
    if not path.exists():
        raise AgelibError(f"{path} is missing: run the evaluate step (notebook 05) first.")
    return pd.read_csv(path, keep_default_na=False, encoding_errors="surrogateescape")


def compare(config: Config, runs: Sequence[str]) -> pd.DataFrame:
    """Returns the `compare_table` of several runs by name; those not evaluated yet are.

    They share the settings of where they and their faces are. "agelib" is the pretrained model.
    """
    reports = {run: evaluate(_as_trained(run, config)) for run in runs if run != "agelib"}
    return compare_with_pretrained(reports, config) if "agelib" in runs else compare_table(reports)


def pull_model(config: Config) -> Path:
    """Makes sure that the run's model is here, and returns its path.

    Raises AgelibError if it has not been trained yet.
    """
    pull_run(config)
    path = config.run_folder / "model.keras"
    if not path.exists():
        raise AgelibError(f"{path} is missing: run the train step (notebook 04 or 07) first.")
    return path


def pull_set(name: str, config: Config) -> None:
    """Fetches a set's shards from Drive, finished or not, unless others lie here already."""
    faces, remote = config.faces / name, config.drive / "faces" / name
    if not sync.holds(remote):
        return
    here, there = faces / MANIFEST, remote / MANIFEST
    with disk_errors.reading(remote):
        # Without both, one set is unfinished; shards of other settings are refused later.
        both = here.exists() and there.exists()
        fits = here.read_bytes() == there.read_bytes() if both else not here.exists()
    if fits:
        sync.pull(remote, faces)


def pull_run(config: Config) -> None:
    """Fetches the run from Drive if it got further there than here."""
    remote = _run_on_drive(config)
    with disk_errors.reading(remote):
        if sync.holds(remote) and _progress(remote) > _progress(config.run_folder):
            sync.pull(remote, config.run_folder)


def _as_trained(run: str, config: Config) -> Config:
    """Returns the settings with another run's name, and with what that was trained on."""
    config = dataclasses.replace(config, run=run)
    pull_run(config)
    path = config.run_folder / "config.json"
    sources = read_json(path)["train_sources"] if path.exists() else config.train_sources
    return dataclasses.replace(config, train_sources=tuple(sources))


def _progress(folder: Path) -> tuple[bool, int]:
    """Returns how far a run got: whether it is finished, and its epochs."""
    history = folder / "history.csv"
    goes_on = history.exists() and checkpoint_path(folder).exists()
    epochs = len(pd.read_csv(history)) if goes_on else 0
    return (folder / "model.keras").exists(), epochs


def _run_on_drive(config: Config) -> Path:
    return config.drive / "runs" / config.run
