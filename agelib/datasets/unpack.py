"""Archives, zip or tar, verified and unpacked."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from tqdm import tqdm

from agelib import AgelibError, first_line
from agelib.datasets.archives import (
    LABELS,
    Archive,
    metadata_path,
    read_metadata,
    write_metadata,
)
from agelib.disk import explained, need_space
from agelib.files import hash_file, is_hidden, read_json, write_json

# Algorithm and hexadecimal digest of a file for which they are known.
Checksum = tuple[str, str] | None

_BLOCK = 1 << 20


# Name, whether it is a file, whether it is a folder, size, and how to open it.
_Entry = tuple[str, bool, bool, int, Callable[[], IO[bytes]]]


class _Member(NamedTuple):
    path: PurePosixPath
    size: int
    open: Callable[[], IO[bytes]]


def verify(source: Path, archive: Archive, checksum: Checksum) -> None:
    """Makes sure that a file has its checksum or, where none is known, that it is whole and right.

    Raises:
        OSError: If the disk fails.
        ValueError: If the file is another one, damaged or unsafe.
    """
    if checksum:
        if hash_file(source, checksum[0]) != checksum[1]:
            raise ValueError(f"it does not have the {checksum[0].upper()} {checksum[1]}")
        return
    with _open_members(source) as members:
        _find_top(members, archive)
        for member in members:
            with member.open() as file:
                while file.read(_BLOCK):
                    pass


def unpack_once(source: Path, archive: Archive, target: Path) -> Path:
    """Unpacks an archive unless that was done already; without the archive its folder will do.

    Raises:
        AgelibError: If the archive is missing, damaged or unsafe, or the disk is full.
    """
    if not source.exists():
        if target.is_dir():
            return target
        raise AgelibError(f"{source} is missing: run the download step (notebook 01) first.")
    origin = read_metadata(source) or write_metadata(source)
    unpacked = metadata_path(target)
    if target.is_dir() and unpacked.exists() and read_json(unpacked) == origin:
        return target
    try:
        with explained(f"{source} could not be unpacked", source, target.parent):
            unpack(source, archive, target)
    except ValueError as error:
        metadata_path(source).unlink()  # whoever mends the archive wants it verified anew
        raise AgelibError(
            f"{source} cannot be unpacked ({error}): delete it and run the download step again."
        ) from error
    write_json(unpacked, origin)
    return target


def unpack(source: Path, archive: Archive, target: Path) -> None:
    """Replaces a folder by the images in a zip or tar file: it is there whole or not at all.

    Of several folders of the archive's name (for a set with labels: that have a `labels.csv`) the
    one nearest to the top counts: Kaggle's UTKFace has a second copy further down. What lies
    beside it and hidden files are left out.

    Raises:
        AgelibError: If there is no space.
        OSError: If the disk fails; the archive may be in order.
        ValueError: If the archive is another one, damaged or unsafe.
    """
    # A sibling of the target, so that the last step is a mere rename; always the same one, so that
    # whatever a killed process left there goes away.
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with _open_members(source) as members:
            top = _find_top(members, archive)
            wanted = [member for member in members if member.path.is_relative_to(top)]
            need_space(target.parent, sum(member.size for member in wanted))
            for member in tqdm(wanted, desc=f"extract {source.name}", unit=" files"):
                _write(member, scratch / "new" / member.path.relative_to(top))
        if target.exists():
            target.rename(scratch / "old")
        (scratch / "new").rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(member: _Member, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as content, open(path, "wb") as file:
        shutil.copyfileobj(content, file, _BLOCK)


def _find_top(members: list[_Member], archive: Archive) -> PurePosixPath:
    """Returns the folder with the images that is nearest to the top."""
    paths = [member.path for member in members]
    if archive.has_labels:
        wanted, tops = LABELS, [path.parent for path in paths if path.name == LABELS]
    else:
        wanted, folders = f"folder {archive.folder}", {f for path in paths for f in path.parents}
        tops = [folder for folder in folders if folder.name.lower() == archive.folder.lower()]
    if tops:
        return min(tops, key=lambda top: (len(top.parts), top))
    held = sorted({path.parts[0] for path in paths}, key=str.lower)
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    raise ValueError(f"it holds {', '.join(held[:3]) or 'nothing'}{more}, but no {wanted}")


@contextmanager
def _open_members(source: Path) -> Iterator[list[_Member]]:
    """Opens a zip or tar file whose members are then read; gives the files that are not hidden.

    Raises:
        OSError: If the disk fails.
        ValueError: If the archive is damaged, or unsafe: with links, devices, or names of files
            that would lie outside.
    """
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                yield _visible_members(_zip_entries(archive))
        else:
            with tarfile.open(source) as archive:
                yield _visible_members(_tar_entries(archive))
                _check_end(archive)
    # A RuntimeError wants a password, and one of its kind knows no such compression.
    except RuntimeError as error:
        raise ValueError(f"it cannot be read: {first_line(error)}") from error
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise ValueError(f"it is damaged: {first_line(error).rstrip(':')}") from error


def _zip_entries(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)  # none where Windows wrote it
        is_file = kind in (0, stat.S_IFREG)
        yield (
            info.filename,
            is_file,
            kind == stat.S_IFDIR,
            info.file_size,
            partial(archive.open, info),
        )


def _tar_entries(archive: tarfile.TarFile) -> Iterator[_Entry]:
    for info in archive.getmembers():
        yield info.name, info.isreg(), info.isdir(), info.size, partial(archive.extractfile, info)


def _visible_members(entries: Iterable[_Entry]) -> list[_Member]:
    members = []
    for name, is_file, is_folder, size, open_entry in entries:
        # Some programs on Windows write backslashes.
        path = PurePosixPath(name.replace("\\", "/"))
        outside = path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1])
        if outside or not (is_file or is_folder):
            raise ValueError(f"{name!r} in it is a link or would lie outside, which is not safe")
        if is_file and not name.endswith(("/", "\\")) and not is_hidden(path):
            members.append(_Member(path, size, open_entry))
    return members


def _check_end(archive: tarfile.TarFile) -> None:
    """Makes sure that the archive goes to its end: `tarfile` takes a damaged header for one."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends too early")
    while archive.fileobj.read(_BLOCK):  # gzip checks its checksum at the end
        pass
