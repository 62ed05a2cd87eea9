"""What a project keeps on Drive: where it lies there, and how it comes back to a fresh machine."""

import dataclasses
from pathlib import Path

import pandas as pd

from agelib.config import Config
from agelib.datasets.tables import find
from agelib.drive import sync
from agelib.faces.shards import MANIFEST
from agelib.files import read_json
from agelib.training.callbacks import checkpoint_path


def pull_set(name: str, config: Config) -> None:
    """Fetches a set's shards from Drive, finished or not, unless others lie here already."""
    faces, remote = config.faces / name, config.drive / "faces" / name
    if not sync.holds(remote):
        return
    here, there = faces / MANIFEST, remote / MANIFEST
    with sync.reading(remote):
        # Without both, one set is unfinished; shards of other settings are refused later.
        both = here.exists() and there.exists()
        fits = here.read_bytes() == there.read_bytes() if both else not here.exists()
    if fits:
        sync.pull(remote, faces)


def pull_run(config: Config) -> None:
    """Fetches the run from Drive if it got further there than here."""
    remote = run_on_drive(config)
    with sync.reading(remote):
        if sync.holds(remote) and _progress(remote) > _progress(config.run_folder):
            sync.pull(remote, config.run_folder)


def as_trained(run: str, config: Config) -> Config:
    """Returns the settings with another run's name, and with what that was trained on."""
    config = dataclasses.replace(config, run=run)
    pull_run(config)
    noted = config.run_folder / "config.json"
    sources = read_json(noted)["train_sources"] if noted.exists() else config.train_sources
    return dataclasses.replace(config, train_sources=tuple(sources))


def _progress(folder: Path) -> tuple[bool, int]:
    """Returns how far a run got: whether it is finished, and its epochs."""
    history = folder / "history.csv"
    goes_on = history.exists() and checkpoint_path(folder).exists()
    epochs = len(pd.read_csv(history)) if goes_on else 0
    return (folder / "model.keras").exists(), epochs


def run_on_drive(config: Config) -> Path:
    """Returns where the run lies on Drive."""
    return config.drive / "runs" / config.run


def archive_on_drive(name: str, config: Config) -> Path:
    """Returns where an archive lies on Drive."""
    return config.drive / "archives" / find(name).archive.file
