"""Archives to folders, and other packings of the same images to the official archive."""

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from agelib import AgelibError
from agelib.datasets.archives import LABELS, Archive, known, note_of, remember, whole, whole_zip
from agelib.disk import is_full, need_space, no_space
from agelib.files import atomic, read_json, write_json


class _Member(NamedTuple):
    parts: tuple[str, ...]
    size: int
    open: Callable[[], IO[bytes]]


def pack(source: Path, archive: Archive, target: Path) -> None:
    """Writes the archive, whole or not at all, with the images that another packing holds.

    Of several folders of the archive's name the one nearest to the top counts: Kaggle's UTKFace
    has a second copy further down. What lies beside it stays behind.

    Args:
        source: A zip file, a tar file, or a folder.
        archive: What to make.
        target: Where to.

    Raises:
        AgelibError: If there is no space for it.
        OSError: If the source is damaged.
        ValueError: If it holds no such folder; says what it holds instead.
    """
    write_tar(target, _contents(source, archive, target))


def has_layout(source: Path, archive: Archive) -> bool:
    """Tells whether the archive's folder lies at the top of a file, so that it will do as it is.

    Raises:
        OSError: If the file is damaged.
        ValueError: If it holds no such folder; says what it holds instead.
    """
    with _members(source) as members:
        return _find_folder(members, archive.folder) == (archive.folder,)


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Writes names and contents below the folder that the archive is named after."""
    top, gzipped = path.name.split(".")[0], path.suffix == ".gz"
    with atomic(path) as temporary, open(temporary, "wb") as file:
        # Without a time stamp the bytes are the same every time.
        stream = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if gzipped else file
        with tarfile.open(fileobj=stream, mode="w") as archive:
            for name, content in files:
                entry = tarfile.TarInfo(f"{top}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        stream.close()


@contextmanager
def _members(source: Path) -> Iterator[list[_Member]]:
    """Opens a folder, a zip or a tar file, and gives the files in it that are not hidden."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        found = [(p.relative_to(source).as_posix(), p.stat().st_size, p) for p in paths]
        yield _visible((name, size, partial(open, path, "rb")) for name, size, path in found)
    elif zipfile.is_zipfile(source):
        with whole_zip(source) as file:
            infos = [info for info in file.infolist() if not info.is_dir()]
            yield _visible((i.filename, i.file_size, partial(file.open, i)) for i in infos)
    else:
        with whole(source) as tar:
            entries = [entry for entry in tar if entry.isreg()]
            yield _visible((e.name, e.size, partial(tar.extractfile, e)) for e in entries)


def _contents(source: Path, archive: Archive, target: Path) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of what counts, and ends well only if the source is whole."""
    with _members(source) as members:
        top = _find_folder(members, archive.folder)
        found = [member for member in members if member.parts[: len(top)] == top]
        need_space(target.parent, sum(member.size for member in found))
        for member in tqdm(found, desc=f"pack {target.name}", unit=" files"):
            with member.open() as file:
                yield "/".join(member.parts[len(top) :]), file.read()


def _visible(files: Iterable[tuple[str, int, Callable[[], IO[bytes]]]]) -> list[_Member]:
    # Some programs on Windows write backslashes, and macOS a hidden file beside each image.
    members = [_Member(tuple(name.replace("\\", "/").split("/")), *rest) for name, *rest in files]
    return [m for m in members if ".." not in m.parts and not m.parts[-1].startswith(".")]


def _find_folder(members: list[_Member], folder: str) -> tuple[str, ...]:
    """Returns where the folder nearest to the top lies, with its own name last."""
    tops = {
        member.parts[: i + 1]
        for member in members
        for i, part in enumerate(member.parts[:-1])
        if part.lower() == folder.lower()
    }
    if tops:
        return min(tops, key=lambda top: (len(top), top))
    held = sorted({member.parts[0] for member in members}, key=str.lower)
    more = f" and {len(held) - 3} more" if len(held) > 3 else ""
    raise ValueError(f"it holds {', '.join(held[:3]) or 'nothing'}{more}, but no folder {folder}")


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
        tops, what = [new / name], f"folder {name}"
    else:
        tops, what = sorted((path.parent for path in new.rglob(LABELS)), key=_depth), LABELS
    if not (tops and tops[0].is_dir()):
        raise AgelibError(f"{source} holds no {what}: it is another archive.")
    return tops[0]


def _depth(path: Path) -> int:
    return len(path.parts)


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


def _only_files(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Refuses what no data set holds, where the "data" filter would defuse it."""
    if member.name.startswith("/"):
        raise tarfile.AbsolutePathError(member)
    if not (member.isreg() or member.isdir()):
        raise tarfile.SpecialFileError(member)
    return tarfile.data_filter(member, folder)
