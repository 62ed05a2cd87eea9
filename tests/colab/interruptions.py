"""When a machine is taken away in the middle of a notebook, and what the next one must not repeat.

Each class looks at the folder that stands for Drive, which alone survives.
"""

import csv
import hashlib
import json
from pathlib import Path

EPOCHS = 3


class Shards:
    """Takes the machine once the first shard has reached Drive, with the note that it is whole."""

    def __init__(self, drive: Path):
        self._faces = drive / "faces"
        self._kept: dict[Path, tuple] = {}

    def due(self) -> bool:
        """Tells whether it is time."""
        return bool(self._notes())

    def begin_again(self) -> None:
        """Remembers what is on Drive when the machine is gone."""
        for note in self._notes():
            for shard in json.loads(note.read_text())["shards"].values():
                for name in shard["files"]:
                    path = note.parents[1] / name
                    self._kept[path] = _identity(path)

    def look(self) -> bool:
        """Looks on while the notebook runs again; never stops it."""
        return False

    def verdict(self) -> tuple[str, list[str]]:
        """Returns what was not repeated, in numbers, and what was that should not have been."""
        manifests = [json.loads(p.read_text()) for p in self._faces.glob("*/manifest.json")]
        total = sum(len(manifest["shards"]) for manifest in manifests)
        kept = len({path.name.split(".")[0] for path in self._kept})
        problems = [
            f"{p} was written again" for p, was in self._kept.items() if _identity(p) != was
        ]
        if not kept < total:
            problems.append(f"{kept} of {total} shards were on Drive already: killed too late")
        faces = sum(
            shard["faces"]
            for manifest in manifests
            for stem, shard in manifest["shards"].items()
            if self._faces / manifest["dataset"] / f"{stem}.index.npy" in self._kept
        )
        text = (
            f"{kept} of {total} shards ({faces} faces) lay on Drive when the machine went; "
            f"{len(self._kept)} files kept, with checksum, inode and time of writing"
        )
        return text, problems

    def _notes(self) -> list[Path]:
        """Returns the notes of finished shards that have arrived whole themselves."""
        notes = []
        for sums in self._faces.glob("*/SHA256SUMS"):
            names = (line.split("  ", 1)[1] for line in sums.read_text().splitlines())
            notes += [sums.parent / name for name in names if name.startswith("parts/")]
        return notes


class Epochs:
    """Takes the machine once the history of some epochs has reached Drive."""

    def __init__(self, drive: Path):
        self._runs = drive / "runs"
        self._before: list[dict[str, str]] = []
        self._fewest = 0

    def due(self) -> bool:
        """Tells whether it is time."""
        return len(self._rows()) >= EPOCHS

    def begin_again(self) -> None:
        """Remembers what is on Drive when the machine is gone."""
        self._before = self._rows()
        self._fewest = len(self._before)

    def look(self) -> bool:
        """Looks on while the notebook runs again; never stops it."""
        self._fewest = min(self._fewest, len(self._rows()))
        return False

    def verdict(self) -> tuple[str, list[str]]:
        """Returns what was not repeated, in numbers, and what was that should not have been."""
        after, kept = self._rows(), len(self._before)
        problems = []
        if after[:kept] != self._before:
            problems.append(f"the first {kept} rows of history.csv are not those of before")
        if self._fewest < kept:
            problems.append(f"history.csv on Drive fell back from {kept} to {self._fewest} rows")
        if not kept < len(after):
            problems.append(f"{kept} of {len(after)} epochs were done already: killed too late")
        text = (
            f"{kept} of {len(after)} epochs were on Drive when the machine went; "
            f"{len(after) - kept} epochs were added"
        )
        return text, problems

    def _rows(self) -> list[dict[str, str]]:
        """Returns the rows of the one run's history, but for the mark of its best epoch so far."""
        paths = list(self._runs.glob("*/history.csv"))
        rows = csv.DictReader(paths[0].read_text().splitlines()) if paths else ()
        return [{name: value for name, value in row.items() if name != "best"} for row in rows]


def _identity(path: Path) -> tuple[str, int, int]:
    """Returns what changes if a file is written again."""
    stat = path.stat()
    return hashlib.sha256(path.read_bytes()).hexdigest(), stat.st_ino, stat.st_mtime_ns


# By a notebook's number.
INTERRUPTIONS = {"02": Shards, "04": Epochs}
