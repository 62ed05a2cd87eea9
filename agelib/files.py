"""Files: found below a folder by one rule, written whole or not at all, and checked."""

import glob
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
from PIL import Image

from agelib import AgelibError

_EXTENSIONS = Image.registered_extensions()  # which loads all of Pillow's decoders
# Those that are asked for: for others Pillow starts programs (Ghostscript) or opens no photos.
_PHOTOS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF")
IMAGE_FORMATS = tuple(name for name in (*_PHOTOS, "HEIF") if name in Image.OPEN)
# Phones write these, which not every Pillow opens; passed over, nobody would miss them.
_PHONE_SUFFIXES = {".avif", ".heic", ".heif"}
IMAGE_SUFFIXES = tuple(
    sorted(_PHONE_SUFFIXES | {end for end, name in _EXTENSIONS.items() if name in IMAGE_FORMATS})
)
# OpenCV opens these by way of FFmpeg, which has no list of endings.
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
    *(".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN"}


def is_hidden(path: PurePath) -> bool:
    """Tells whether a relative path is hidden, or a system's own, as macOS' `__MACOSX` is."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in path.parts)


def find_files(folder: Path, suffixes: Collection[str] = ()) -> list[Path]:
    """Returns the files below a folder, at any depth and sorted, without hidden ones.

    With `suffixes`, such as `IMAGE_SUFFIXES`, only files with one of these, or with its capitals.
    Links to folders are not followed. Raises OSError if a folder cannot be read, which `rglob`
    would take for an empty one.
    """

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_hidden(PurePath(name))]
        found += [Path(place, name) for name in names if not is_hidden(PurePath(name))]
    wanted = (path for path in found if not suffixes or path.suffix.lower() in suffixes)
    return sorted(path for path in wanted if path.is_file())


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path that becomes `path` when the block ends well, and vanishes otherwise.

    The data is on the disk before the name is: a crash leaves the old file or the new one. A file
    that is replaced keeps its mode, and a symbolic link stays one. A device or a pipe cannot be
    replaced: its own path is yielded.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    path = _link_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        with open(partial, "r+b") as file:  # Windows syncs no file that is open for reading
            os.fsync(file.fileno())
        # Drive has one mode for all, and refuses to be told so.
        if path.exists() and path.stat().st_mode != partial.stat().st_mode:
            partial.chmod(path.stat().st_mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(path: Path) -> None:
    """Removes what killed processes left of a file; nobody else may be writing it right now."""
    path = _link_target(path)
    for partial in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*.part*"):
        partial.unlink(missing_ok=True)


def _link_target(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all; equal content gives equal bytes."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds; raises AgelibError if it is not JSON."""
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


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes a table for spreadsheets; a file's name in it may be bytes that are no text."""
    # Without its mark at the beginning, Excel takes UTF-8 for another encoding.
    table.to_csv(path, index=False, encoding="utf-8-sig", errors="surrogateescape")
