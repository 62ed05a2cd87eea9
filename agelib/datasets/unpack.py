"""Archives, zip or tar, verified and unpacked."""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from tqdm import tqdm

from agelib import first_line
from agelib.datasets.archives import LABELS, Archive, write_origin
from agelib.disk_errors import need_space
from agelib.files import hash_file, is_hidden

# Algorithm and hexadecimal digest of a file for which they are known.
Checksum = tuple[str, str] | None

_BLOCK = 1 << 20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)


class _Member(NamedTuple):
    path: PurePosixPath
    kind: int  # `stat.S_IFREG` or `stat.S_IFDIR`, or what is refused: links and devices
    size: int
    open: Callable[[], IO[bytes]]


def verify(source: Path, archive: Archive, checksum: Checksum) -> None:
    """Makes sure that a file has its checksum or, where none is known, that it is whole and right.

    Raises ValueError if it is another one, damaged or unsafe, and OSError if the disk fails.
    """
    if checksum:
        if hash_file(source, checksum[0]) != checksum[1]:
            raise ValueError(f"it does not have the {checksum[0].upper()} {checksum[1]}")
        return
    with _open_files(source) as files:
        _find_top(files, archive)
        for member in files:
            with member.open() as file:
                while file.read(_BLOCK):
                    pass


def unpack(source: Path, archive: Archive, target: Path, origin: dict[str, Any]) -> None:
    """Replaces a folder by the images in a zip or tar file: it is there whole or not at all.

    `origin` is the archive's metadata, which the folder gets too.

    Of several folders of the archive's name (for a set with labels: that have a `labels.csv`) the
    one nearest to the top counts: Kaggle's UTKFace has a second copy further down. What lies
    beside it and hidden files are left out. Raises as `verify`, and AgelibError if there is no
    space.
    """
    # A sibling of the target, so that the last step is a mere rename; always the same one, so that
    # whatever a killed process left there goes away.
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with _open_files(source) as files:
            top = _find_top(files, archive)
            wanted = [member for member in files if member.path.is_relative_to(top)]
            need_space(target.parent, sum(member.size for member in wanted))
            for member in tqdm(wanted, desc=f"extract {source.name}", unit=" files"):
                path = scratch / "new" / member.path.relative_to(top)
                path.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as content, open(path, "wb") as file:
                    shutil.copyfileobj(content, file, _BLOCK)
            write_origin(scratch / "new", origin)
        if target.exists():
            target.rename(scratch / "old")
        (scratch / "new").rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _find_top(files: list[_Member], archive: Archive) -> PurePosixPath:
    paths = [member.path for member in files]
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
def _open_files(source: Path) -> Iterator[list[_Member]]:
    """Opens a zip or tar file; yields its visible files, to be read inside the block."""
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                yield _visible_files(map(partial(_from_zip, archive), archive.infolist()))
        else:
            with tarfile.open(source) as archive:
                yield _visible_files(map(partial(_from_tar, archive), archive.getmembers()))
                _check_end(archive)
    # A RuntimeError wants a password, and one of its kind knows no such compression.
    except RuntimeError as error:
        raise ValueError(f"it cannot be read: {first_line(error)}") from error
    except (*_DAMAGED, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise ValueError(f"it is damaged: {first_line(error).rstrip(':')}") from error


def _from_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    name = info.filename.replace("\\", "/")  # as some programs on Windows write
    kind = stat.S_IFMT(info.external_attr >> 16) or stat.S_IFREG  # Windows notes none
    if kind == stat.S_IFREG and name.endswith("/"):
        kind = stat.S_IFDIR
    return _Member(PurePosixPath(name), kind, info.file_size, partial(archive.open, info))


def _from_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kind = stat.S_IFREG if info.isreg() else stat.S_IFDIR if info.isdir() else stat.S_IFLNK
    path = PurePosixPath(info.name.replace("\\", "/"))
    return _Member(path, kind, info.size, partial(archive.extractfile, info))


def _visible_files(members: Iterable[_Member]) -> list[_Member]:
    """Returns the files that are not hidden; refuses links, devices and names that lead outside."""
    files = []
    for member in members:
        path = member.path
        outside = path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1])
        if outside or member.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise ValueError(f"{str(path)!r} is a link or would lie outside, which is not safe")
        if member.kind == stat.S_IFREG and not is_hidden(path):
            files.append(member)
    return files


def _check_end(archive: tarfile.TarFile) -> None:
    """Makes sure that the archive goes to its end: `tarfile` takes a damaged header for one."""
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it ends too early")
    while archive.fileobj.read(_BLOCK):  # gzip checks its checksum at the end
        pass
