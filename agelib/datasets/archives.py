"""Archives of images: how to verify, remember and unpack them."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agelib import AgelibError, files, first_line
from agelib.files import Checksum, is_full, need_space, no_space, read_json, sha256, write_json

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


def unpack_once(source: Path, target: Path) -> Path:
    """Unpacks an archive unless that was done already; without the archive its folder will do.

    Returns:
        The target.

    Raises:
        AgelibError: If the archive is missing, damaged or unsafe, or the disk is full.
    """
    if not source.exists():
        if target.is_dir():
            return target
        raise AgelibError(f"{source} is missing: run the download step (notebook 01) first.")
    origin = known(source) or remember(source)
    stamp = note_of(target)
    if target.is_dir() and stamp.exists() and read_json(stamp) == origin:
        return target
    need_space(target.parent, 2 * source.stat().st_size)
    try:
        unpack(source, target)
    except AgelibError:
        note_of(source).unlink()  # whoever mends the archive wants it looked at anew
        raise
    except OSError as error:
        if is_full(error):
            raise no_space(target.parent, f"what {source.name} holds") from error
        raise AgelibError(
            f"{source} cannot be unpacked ({error}): make sure that {target.parent} can be read "
            "and written, and run the download step again."
        ) from error
    write_json(stamp, origin)
    return target


def unpack(source: Path, target: Path) -> None:
    """Replaces a folder by what an archive holds: it is there whole or not at all.

    Of a tar file that is the folder of the same name, of a zip file, which anybody may have made,
    the one nearest to the top that has a `labels.csv`. What would land outside, links and devices
    are refused.

    Raises:
        AgelibError: If the archive is damaged, unsafe or another one.
        OSError: If the disk fails; the archive may be in order.
    """
    # A sibling of the target, so that the last step is a mere rename; always the same one, so that
    # whatever a killed process left there goes away.
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _extract_all(source, scratch / "new")
        unpacked = _find_top(source, scratch / "new", target.name)
        if target.exists():
            target.rename(scratch / "old")
        unpacked.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _find_top(source: Path, new: Path, name: str) -> Path:
    """Returns the folder with the images among what was unpacked."""
    if source.suffix != ".zip":
        found, what = [new / name] * (new / name).is_dir(), f"folder {name}"
    else:
        found = sorted((path.parent for path in new.rglob(LABELS)), key=lambda p: len(p.parts))
        what = LABELS
    if not found:
        raise AgelibError(f"{source} holds no {what}: it is another archive.")
    return found[0]


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


def _extract_all(source: Path, folder: Path) -> None:
    try:
        if zipfile.is_zipfile(source):
            _extract_zip(source, folder)
            return
        with whole(source) as tar:
            for member in tqdm(tar, desc=f"extract {source.name}", unit=" files"):
                tar.extract(member, folder, filter=_only_files)
    except OSError as error:
        if error.errno:
            raise
        raise AgelibError(
            f"{source} cannot be unpacked ({error}): delete it and run the download step again."
        ) from error


def _extract_zip(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    with whole_zip(source) as archive:
        for member in tqdm(archive.infolist(), desc=f"extract {source.name}", unit=" files"):
            # Some programs on Windows write backslashes.
            parts = member.filename.replace("\\", "/").split("/")
            kind = stat.S_IFMT(member.external_attr >> 16)  # none where Windows wrote it
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            if not plain or not parts[0] or ".." in parts or ":" in parts[0]:
                raise AgelibError(
                    f"{source} is not safe to unpack ({member.filename!r} is a link or would lie "
                    "outside): do not use it."
                )
            member.filename = "/".join(parts)
            archive.extract(member, folder)


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


def _only_files(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Refuses what no data set holds, where the "data" filter would defuse it."""
    if member.name.startswith("/"):
        raise tarfile.AbsolutePathError(member)
    if not (member.isreg() or member.isdir()):
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)


def _check_end(tar: tarfile.TarFile) -> None:
    """Makes sure that the archive goes to its end: `tarfile` takes a damaged header for one."""
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends too early")
    while tar.fileobj.read(2**20):  # gzip checks its checksum at the end
        pass
