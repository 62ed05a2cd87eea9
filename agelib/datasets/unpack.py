"""The same images in another packing, made into the archive that their authors publish."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from agelib.datasets.archives import Archive, whole, whole_zip
from agelib.files import atomic, need_space


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
