"""The archives as their authors publish them: where they are, what is allowed, how to open them."""

import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from agelib import AgelibError
from agelib.files import Checksum, verify

_IMDB_WIKI = "https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki"


@dataclass(frozen=True)
class Archive:
    """An archive as its authors publish it.

    Attributes:
        file: Its name, and its name in a mirror.
        folder: The folder that it unpacks to.
        url: Its official home.
        home: The page to read, and to download from by hand.
        md5: Its checksum where one is known.
        size: Bytes, roughly.
        licence: What the authors allow.
    """

    file: str
    folder: str
    url: str
    home: str
    md5: str | None
    size: int
    licence: str


ARCHIVES = {
    "wiki": Archive(
        "wiki_crop.tar",
        "wiki_crop",
        f"{_IMDB_WIKI}/static/wiki_crop.tar",
        _IMDB_WIKI,
        "f536eb7f5eae229ae8f286184364b42b",
        811_315_200,
        "academic research only",
    ),
    "imdb": Archive(
        "imdb_crop.tar",
        "imdb_crop",
        f"{_IMDB_WIKI}/static/imdb_crop.tar",
        _IMDB_WIKI,
        "44b7548f288c14397cb7a7bab35ebe14",
        7_012_157_440,
        "academic research only",
    ),
    "utkface": Archive(
        "UTKFace.tar.gz",
        "UTKFace",
        "https://drive.google.com/uc?id=0BxYys69jI14kYVM3aVhKS1VhRUk"
        "&resourcekey=0-dabpv_3J0C0cditpiAfhAw",
        "https://susanqq.github.io/UTKFace",
        None,
        106_634_631,
        "non-commercial research only",
    ),
}


def describe(names: Sequence[str]) -> pd.DataFrame:
    """Returns what a user should know of some archives: file, size, licence and home."""
    rows = [
        {"data set": name, "file": a.file, "GB": a.size / 1e9, "licence": a.licence, "home": a.home}
        for name, a in ((name, ARCHIVES[name]) for name in names)
    ]
    return pd.DataFrame(rows).set_index("data set").round(1)


def unpack(source: Path, target: Path) -> None:
    """Replaces a folder by the one of the same name in an archive: it is there whole or not at all.

    What would land outside the folder, links and devices are refused.

    Raises:
        AgelibError: If the archive is damaged, unsafe or another one.
    """
    # A sibling of the target, so that the last step is a mere rename; always the same one, so that
    # whatever a killed process left there goes away.
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with _whole(source) as tar:
            for member in tqdm(tar, desc=f"extract {source.name}", unit=" files"):
                tar.extract(member, scratch / "new", filter=_only_files)
        unpacked = scratch / "new" / target.name
        if not unpacked.is_dir():
            raise AgelibError(f"{source} holds no folder {target.name}: it is another archive.")
        if target.exists():
            target.rename(scratch / "old")
        unpacked.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check(source: Path, checksum: Checksum) -> None:
    """Makes sure that an archive is the right one or, where no checksum is known, that it is whole.

    Raises:
        AgelibError: If it is not.
    """
    try:
        verify(source, checksum)
    except OSError as error:
        raise AgelibError(
            f"{source} is not the right archive ({error}): complete it, or delete it, and run the "
            "download step again."
        ) from error
    if checksum is None:
        with _whole(source) as tar:
            for _ in tar:
                pass


@contextmanager
def _whole(source: Path) -> Iterator[tarfile.TarFile]:
    """Opens an archive whose members are then read, and names whatever is wrong with it."""
    try:
        with tarfile.open(source) as tar:
            yield tar
            _check_end(tar)
    except tarfile.FilterError as error:
        raise AgelibError(f"{source} is not safe to unpack ({error}): do not use it.") from error
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        reason = str(error).split("\n")[0].rstrip(":")
        raise AgelibError(
            f"{source} is damaged ({reason}): delete it and run the download step again."
        ) from error


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
