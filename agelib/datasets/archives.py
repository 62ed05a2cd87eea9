"""The archives as their authors publish them, and how to verify one."""

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agelib import AgelibError, files, first_line
from agelib.files import Checksum, read_json, sha256, write_json

LABELS = "labels.csv"


@dataclass(frozen=True)
class Archive:
    """An archive of a data set.

    Attributes:
        file: Its name, and its name in a mirror: a tar file or a zip file.
        folder: The folder that it unpacks to.
        url: Its official home; None where a program cannot fetch it.
        md5: Its checksum where one is known.
        size: Bytes, roughly; None where nobody knows.
        kaggle: The same images on Kaggle, as owner/name, if they are there.
    """

    file: str
    folder: str
    url: str | None = None
    md5: str | None = None
    size: int | None = None
    kaggle: str | None = None


def check(source: Path, checksum: Checksum) -> None:
    """Verifies an archive that the user provided.

    Raises:
        AgelibError: If it is not the right one, or not whole.
    """
    try:
        verify(source, checksum)
    except OSError as error:
        raise AgelibError(
            f"{source} is not the right archive ({error}): complete it, or delete it, and run the "
            "download step again."
        ) from error


def verify(source: Path, checksum: Checksum) -> None:
    """Makes sure that an archive has its checksum or, where none is known, that it is whole.

    Raises:
        OSError: If it is not; says why.
    """
    files.verify(source, checksum)
    if checksum is None and zipfile.is_zipfile(source):
        with whole_zip(source) as archive:
            if damaged := archive.testzip():
                raise OSError(f"it is damaged: {damaged}")
    elif checksum is None:
        with whole(source) as tar:
            for _ in tar:
                pass


def remember(source: Path) -> dict[str, Any]:
    """Notes a verified archive's size and SHA-256 beside it, so that nobody fetches it again."""
    note = {"size": source.stat().st_size, "sha256": sha256(source)}
    write_json(note_of(source), note)
    return note


def known(source: Path) -> dict[str, Any] | None:
    """Returns what was noted of an archive when it was verified, if its size is still the same."""
    if not (source.exists() and note_of(source).exists()):
        return None
    note = read_json(note_of(source))
    return note if note["size"] == source.stat().st_size else None


def note_of(path: Path) -> Path:
    """Returns where the note of a file or folder lies: beside it."""
    return path.with_name(f"{path.name}.json")


@contextmanager
def whole_zip(source: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file whose members are then read, and names whatever is wrong with it.

    Raises:
        OSError: If it is damaged, which has no `errno`, or the disk fails, which has one.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            yield archive
    # A RuntimeError wants a password, and one of its kind knows no such compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise OSError(f"it cannot be read: {first_line(error)}") from error


@contextmanager
def whole(source: Path) -> Iterator[tarfile.TarFile]:
    """Opens an archive whose members are then read, and names whatever is wrong with it.

    Raises:
        AgelibError: If a member is not safe to unpack.
        OSError: If it is damaged, which has no `errno`, or the disk fails, which has one.
    """
    try:
        with tarfile.open(source) as tar:
            yield tar
            _check_end(tar)
    except tarfile.FilterError as error:
        raise AgelibError(f"{source} is not safe to unpack ({error}): do not use it.") from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if getattr(error, "errno", None):
            raise
        reason = first_line(error).rstrip(":")
        raise OSError(f"it is damaged: {reason}") from error


def _check_end(tar: tarfile.TarFile) -> None:
    """Makes sure that the archive goes to its end: `tarfile` takes a damaged header for one."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends too early")
    while tar.fileobj.read(2**20):  # gzip checks its checksum at the end
        pass
