"""The archives as their authors publish them, their names, and what is recorded of them."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agelib import AgelibError
from agelib.files import read_json, sha256, write_json

LABELS = "labels.csv"
_ORIGIN = ".origin.json"

_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")
# What browsers, Windows (" - Copy"), macOS and Google Drive add to a copy's name, and Drive to a
# folder's that it zips.
_COPY_MARKS = re.compile(
    r"^copy of | - (?:copy|copie|copia|cópia|kopia|kopie)\b| copy\b(?: \d+)?| ?\(\d+\)"
    r"|-\d{8}t\d{6}z(?:-\d+)+"
)


@dataclass(frozen=True)
class Archive:
    """An archive of a data set."""

    file: str  # its name at its home and in a mirror: a tar file or a zip file
    folder: str  # what it unpacks to
    url: str | None = None  # its official home; None where a program cannot fetch it
    md5: str | None = None
    size: int | None = None  # bytes, roughly
    kaggle: str | None = None  # the same images on Kaggle, as owner/name

    @property
    def names(self) -> list[str]:
        """The names to recommend for a file that the user provides, the official one first."""
        kaggle = [f"{Path(self.kaggle).name}.zip", "archive.zip"] if self.kaggle else []
        return list(dict.fromkeys([self.file, f"{self.folder}.zip", *kaggle]))

    @property
    def has_labels(self) -> bool:
        """Whether its images are those beside a `labels.csv`, in whatever folder."""
        return self.file.endswith(".zip")

    def is_official(self, path: Path) -> bool:
        """Tells whether a file is named as the official archive, perhaps as a copy of it."""
        return _plain_name(path) == self.file.lower()

    def find_in(self, folder: Path) -> list[Path]:
        """Returns the files in a folder that have one of its names, the official one first."""
        stems = {Path(name).stem for name in self.names if name.endswith(".zip")}
        endings = (".zip",) if self.has_labels else _ENDINGS
        wanted = {f"{stem}{ending}".lower() for stem in stems for ending in endings}
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        found = [path for path in paths if _plain_name(path) in wanted and path.is_file()]
        return sorted(found, key=lambda path: path.name != self.file)


def _plain_name(path: Path) -> str:
    return _COPY_MARKS.sub("", path.name.lower())


def metadata_path(path: Path) -> Path:
    """Returns where the metadata of a file lies: beside it, under a hidden name."""
    return path.with_name(f".{path.name}.json")


def write_metadata(source: Path) -> dict[str, Any]:
    """Records a verified archive's size and SHA-256, so that nobody verifies it again."""
    metadata = {"size": source.stat().st_size, "sha256": sha256(source)}
    write_json(metadata_path(source), metadata)
    return metadata


def read_metadata(source: Path) -> dict[str, Any] | None:
    """Returns what was recorded of a verified archive, None if there is none of this size."""
    if not (source.exists() and metadata_path(source).exists()):
        return None
    metadata = read_json(metadata_path(source))
    return metadata if metadata["size"] == source.stat().st_size else None


def write_origin(folder: Path, metadata: dict[str, Any]) -> None:
    """Records in a folder that was unpacked the metadata of its archive."""
    write_json(folder / _ORIGIN, metadata)


def read_origin(folder: Path) -> dict[str, Any] | None:
    """Returns the metadata of the archive that a folder was unpacked from, None for others."""
    # Earlier versions wrote it beside the folder, under a name that a user may have taken.
    for path in (folder / _ORIGIN, folder.with_name(f"{folder.name}.json")):
        with contextlib.suppress(OSError, AgelibError):
            origin = read_json(path)
            if isinstance(origin, dict) and set(origin) == {"size", "sha256"}:
                return origin
    return None
