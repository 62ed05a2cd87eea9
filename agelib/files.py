"""Files that are whole or absent, and their checksums."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agelib import AgelibError

if TYPE_CHECKING:  # loading it would load TensorFlow
    import pandas as pd

# Algorithm and hexadecimal digest of a file for which they are known.
Checksum = tuple[str, str] | None

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` when the block ends well, and vanishes otherwise.

    The data is on the disk before the name is: a crash leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with open(partial, "r+b") as file:  # Windows syncs no file that is open for reading
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(path: Path) -> None:
    """Removes what killed processes left of a file; nobody else may be writing it right now."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.part*"):
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; equal content gives equal bytes."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        AgelibError: If the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise AgelibError(f"{path} is damaged ({error}): delete it and run this again.") from error


def hash_file(path: Path, algorithm: str) -> str:
    """Returns a file's checksum in hexadecimal, for example its "md5"."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def sha256(path: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal."""
    return hash_file(path, "sha256")


def verify(path: Path, checksum: Checksum) -> None:
    """Makes sure that a file has its checksum, if that is known.

    Raises:
        OSError: If it has another one.
    """
    if checksum and hash_file(path, checksum[0]) != checksum[1]:
        raise OSError(f"it does not have the {checksum[0].upper()} {checksum[1]}")


def write_csv(table: "pd.DataFrame", path: Path) -> None:
    """Writes a table for spreadsheets; a file's name in it may be bytes that are no text."""
    # Without its mark at the beginning, Excel takes UTF-8 for another encoding.
    table.to_csv(path, index=False, encoding="utf-8-sig", errors="surrogateescape")
