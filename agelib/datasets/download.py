"""The archives, fetched, verified and extracted.

One comes from a folder where the user put it, from a mirror, from its home, or from Kaggle.
"""

import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import requests

from agelib import AgelibError, files, first_line
from agelib.config import Config
from agelib.datasets import archives, transfer, unpack
from agelib.datasets.archives import LABELS, Archive, known, note_of, remember
from agelib.datasets.tables import DATASETS, DataSet, find
from agelib.disk import is_full, need_space, no_space
from agelib.files import Checksum, atomic

_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")

_KAGGLE = "https://www.kaggle.com/api/v1/datasets/download"
# What kagglehub keeps for a while of the one data set that is asked for: its zip file and the
# images, which are there twice.
_KAGGLE_CACHE = 800_000_000


def fetch(name: str, config: Config) -> Path:
    """Makes sure that an archive lies in `data/raw`, verified once.

    It must have the checksum that its mirror or its authors name or, where there is none, be
    readable from end to end; later calls look at its size alone. What the user put into `data/raw`
    or into `archives` on Drive comes first, then a mirror (`AGELIB_MIRROR`), then the official
    home, then Kaggle; the sample has its own mirror alone. An archive that has changed since it was
    verified is fetched anew, unless it can only be put there by hand.

    Args:
        name: The data set's.
        config: Says where `data/raw`, Drive and the mirror are.

    Returns:
        The archive's path.

    Raises:
        AgelibError: If it cannot be had, or is not what it should be.
    """
    found, mirror = find(name), config.mirror and config.mirror.rstrip("/")
    archive = found.archive
    target, sample = config.raw / archive.file, config.profile == "sample" and archive.url
    if known(target):
        return target
    if found.home and not sample:
        print(f"{archive.file}: {found.licence} ({found.home})", file=sys.stderr)
    lacking = ""
    try:
        if mirror and not sample and not _holds(mirror, archive.file):
            lacking, mirror = f" is not in {mirror} and", None
        checksum = _checksum(archive, mirror)
        if target.exists() and not (archive.url and note_of(target).exists()):
            archives.check(target, checksum)
        elif sample or not take_from_folders(archive, _folders(config), target, checksum):
            if not (archive.url or mirror):
                raise _not_there(name, config)
            if lacking:
                print(f"{archive.file}{lacking} comes from {_place(archive)}.", file=sys.stderr)
            _fetch_from_afar(archive, target, mirror, checksum)
    except (OSError, ValueError) as error:
        if is_full(error):
            raise no_space(config.raw, archive.file) from error
        raise AgelibError(
            f"{archive.file}{lacking} could not be fetched from {mirror or _place(archive)} "
            f"({transfer.reason(error)}): {_ways_round(found, config)}"
        ) from error
    remember(target)
    return target


def extract(name: str, config: Config) -> Path:
    """Unpacks an archive in `data/raw`, once; the folder is there whole or not at all.

    Returns:
        The folder with the images.

    Raises:
        AgelibError: If the archive is missing, damaged or unsafe.
    """
    archive = find(name).archive
    return unpack.unpack_once(config.raw / archive.file, config.raw / archive.folder)


def find_sha256(file: str, sums: str) -> Checksum:
    """Returns a file's checksum if it is among the lines that `sha256sum` wrote."""
    for line in sums.splitlines():
        digest, _, name = line.strip().partition(" ")
        if name.strip().removeprefix("*").removeprefix("./") == file:
            return "sha256", digest
    return None


def _place(archive: Archive) -> str:
    """Returns the official home's address without what only a machine reads."""
    return (archive.url or "").partition("?")[0]


def _folders(config: Config) -> list[Path]:
    """Returns where the user may put an archive by hand."""
    return [config.raw, config.drive / "archives"]


def _not_there(name: str, config: Config) -> AgelibError:
    """Returns the error for a data set that nobody has put there, and no program can fetch."""
    archive, home = find(name).archive, find(name).home
    places = " or ".join(str(folder) for folder in _folders(config))
    fetched = [known for known, found in DATASETS.items() if found.archive.url]
    return AgelibError(
        f"There are no images of {name}: put {archive.file} into {places}, or a folder "
        f"{config.raw / archive.folder}, either with a {LABELS}"
        f"{f' ({home}; data/README.md says how)' if home else ''}. Only {', '.join(fetched)} are "
        "downloaded."
    )


def _ways_round(found: DataSet, config: Config) -> str:
    archive = found.archive
    if config.profile == "sample":
        return f"delete {config.mirror} and run the download step again."
    pages = [found.home, *([kaggle_page(archive)] if archive.kaggle else [])]
    raw, drive = _folders(config)
    mirror = f"name a folder or an address that has {archive.file} in AGELIB_MIRROR"
    if config.mirror:
        mirror = "make AGELIB_MIRROR empty, to do without it, or name another in it"
    return (
        "try again later, or\n"
        f"- get it with your browser from {' or '.join(pages)} and put the file, as it is, into\n"
        f"  {drive} (make that folder if it is missing) or\n"
        f"  {raw};\n"
        f"  these names are recognised: {', '.join(good_names(archive))}; or\n"
        f"- {mirror};\n"
        "then run the download step again."
    )


def _fetch_from_afar(
    archive: Archive, target: Path, mirror: str | None, checksum: Checksum
) -> None:
    if mirror:
        _fetch_mirror(archive, target, mirror, checksum)
        return
    try:
        transfer.download(archive.url, target, partial(archives.verify, checksum=checksum))
    except OSError as error:
        if not archive.kaggle or is_full(error):
            raise
        why = transfer.reason(error)
        print(
            f"{archive.file} is fetched from Kaggle ({kaggle_page(archive)}), since it could not "
            f"be fetched from {_place(archive)} ({why}).",
            file=sys.stderr,
        )
        try:
            fetch_from_kaggle(archive, target)
        except (OSError, ValueError) as second:
            if is_full(second):
                raise
            raise OSError(f"{why}; from Kaggle: {transfer.reason(second)}") from second


def _holds(mirror: str, file: str) -> bool:
    if "://" in mirror:
        url = f"{mirror}/{file}"
        answer = transfer.patiently(lambda: requests.head(url, allow_redirects=True, timeout=30))
        return answer.status_code != requests.codes.not_found
    if not Path(mirror).is_dir():
        raise FileNotFoundError(f"{mirror} does not exist")
    return (Path(mirror) / file).exists()


def _checksum(archive: Archive, mirror: str | None) -> Checksum:
    """Returns the mirror's checksum, whose archives may be others, or else the official one."""
    if mirror is None:
        return archive.md5 and ("md5", archive.md5)
    if "://" in mirror:
        text = transfer.patiently(lambda: _read_sums(f"{mirror}/SHA256SUMS"))
    else:
        path = Path(mirror) / "SHA256SUMS"
        text = path.read_text() if path.exists() else ""
    return find_sha256(archive.file, text)


def _read_sums(url: str) -> str:
    response = requests.get(url, timeout=30)
    if response.status_code == requests.codes.not_found:
        return ""
    response.raise_for_status()
    return response.text


def _fetch_mirror(archive: Archive, target: Path, mirror: str, checksum: Checksum) -> None:
    if "://" in mirror:
        url = f"{mirror}/{archive.file}"
        transfer.download(url, target, partial(archives.verify, checksum=checksum))
        return
    source = Path(mirror) / archive.file
    need_space(target.parent, source.stat().st_size)
    files.remove_partials(target)
    with atomic(target) as copy:
        shutil.copyfile(source, copy)
        archives.verify(copy, checksum)


def good_names(archive: Archive) -> list[str]:
    """Returns the names to recommend, the official one first."""
    names = [archive.file, f"{archive.folder}.zip"]
    if archive.kaggle:
        names += [f"{Path(archive.kaggle).name}.zip", "archive.zip"]
    return list(dict.fromkeys(names))


def take_from_folders(
    archive: Archive, folders: Sequence[Path], target: Path, checksum: Checksum
) -> bool:
    """Makes the archive out of what the user put into some folders, if that is there.

    A file of the official kind must have the checksum, where one is known; any other is read from
    end to end and packed anew. The user's file stays as it is. What cannot be used is named on
    standard error and passed over.

    Args:
        archive: What to look for.
        folders: Where.
        target: What to write.
        checksum: The archive's own.

    Returns:
        Whether the archive is there now.

    Raises:
        AgelibError: If there is no space for it.
        OSError: If the disk fills up.
    """
    for path in _candidates(archive, folders, target):
        try:
            _take_over(path, archive, target, checksum)
        except (OSError, ValueError) as error:
            if is_full(error):
                raise
            print(f"{path} is not used for {archive.file}: {error}.", file=sys.stderr)
        else:
            print(f"{archive.file} comes from {path}.", file=sys.stderr)
            return True
    return False


def _candidates(archive: Archive, folders: Sequence[Path], target: Path) -> Iterator[Path]:
    stems = {Path(name).stem for name in good_names(archive) if name.endswith(".zip")}
    endings = (".zip",) if archive.file.endswith(".zip") else _ENDINGS
    wanted = {f"{stem}{ending}".lower() for stem in stems for ending in endings}
    for folder in folders:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in sorted(paths, key=lambda path: path.name != archive.file):
            if path != target and path.is_file() and _plain_name(path) in wanted:
                yield path


def _plain_name(path: Path) -> str:
    """Returns a file's name without the number that browsers and Drive give a second copy."""
    return re.sub(r" ?\(\d+\)", "", path.name.lower())


def _take_over(path: Path, archive: Archive, target: Path, checksum: Checksum) -> None:
    ending = "".join(Path(archive.file).suffixes)
    official = _plain_name(path).endswith(ending)
    if not (official and (checksum or ending == ".zip" or unpack.has_layout(path, archive))):
        unpack.pack(path, archive, target)
        return
    need_space(target.parent, path.stat().st_size)
    files.remove_partials(target)
    with atomic(target) as partial:
        shutil.copyfile(path, partial)
        archives.verify(partial, checksum)


def kaggle_page(archive: Archive) -> str:
    """Returns the address of a data set's page, to download it by hand."""
    return f"https://www.kaggle.com/datasets/{archive.kaggle}"


def fetch_from_kaggle(archive: Archive, target: Path) -> None:
    """Fetches a public data set, which takes no account, and packs it as its authors do.

    Colab has kagglehub, which may have the data at hand; elsewhere the zip file is downloaded.

    Args:
        archive: What to make.
        target: Where to.

    Raises:
        AgelibError: If there is no space.
        OSError: If it cannot be had.
        ValueError: If it holds something else.
    """
    try:
        import kagglehub
    except ImportError:
        source = target.with_name(f"{Path(archive.kaggle).name}.zip")
        transfer.download(f"{_KAGGLE}/{archive.kaggle}", source, _check_zip)
        unpack.pack(source, archive, target)
        source.unlink()
        return
    cache = Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub")
    if not (cache / "datasets" / archive.kaggle).exists():
        need_space(cache, _KAGGLE_CACHE)
    try:
        folder = Path(kagglehub.dataset_download(archive.kaggle))
    except OSError:
        raise  # requests' errors are among them
    # kagglehub speaks of other errors in exceptions of its own, all of them Exception.
    except Exception as error:
        raise OSError(first_line(error)) from error
    unpack.pack(folder, archive, target)


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise OSError("what Kaggle sent is no zip file, or not all of it")
