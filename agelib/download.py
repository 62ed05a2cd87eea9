"""The archives, fetched, verified and extracted."""

import os
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path

import requests
from tqdm import tqdm

from agelib import AgelibError
from agelib.archives import ARCHIVES, Archive
from agelib.config import Config
from agelib.files import atomic, hash_file, need_space, read_json, sha256, write_json

_TRIES = 5


def fetch(name: str, config: Config) -> Path:
    """Makes sure that an archive lies in `data/raw`, whole and verified.

    A mirror (`AGELIB_MIRROR`, or the sample's own) comes before the official home.

    Args:
        name: "wiki", "imdb" or "utkface".
        config: Says where `data/raw` and the mirror are.

    Returns:
        The archive's path.

    Raises:
        AgelibError: If it cannot be had, or is not what it should be.
    """
    archive = ARCHIVES[name]
    target = config.raw / archive.file
    if _known(target):
        return target
    try:
        if config.mirror is None:
            need_space(config.raw, archive.size)
            _fetch_official(archive, target)
        else:
            _fetch_mirror(archive, target, config.mirror)
    except (OSError, ValueError, requests.RequestException) as error:
        raise AgelibError(
            f"{archive.file} could not be fetched from {config.mirror or archive.url} ({error}): "
            f"try again later, or get it by hand from {archive.home} into a folder and name that "
            "folder in AGELIB_MIRROR."
        ) from error
    remember(target)
    return target


def extract(name: str, config: Config) -> Path:
    """Unpacks an archive in `data/raw`, once; the folder is there whole or not at all.

    Members that would land outside the folder, links and devices are refused.

    Returns:
        The folder with the images.

    Raises:
        AgelibError: If the archive is missing, damaged or unsafe.
    """
    archive = ARCHIVES[name]
    source, target = config.raw / archive.file, config.raw / archive.folder
    stamp = config.raw / f"{archive.folder}.json"
    if not source.exists():
        if target.is_dir():
            return target
        raise AgelibError(f"{source} is missing: run the download step (notebook 01) first.")
    origin = _known(source) or remember(source)
    if target.is_dir() and stamp.exists() and read_json(stamp) == origin:
        return target
    need_space(config.raw, 2 * source.stat().st_size)
    # A sibling of the target, so that the last step is a mere rename.
    with tempfile.TemporaryDirectory(dir=config.raw, prefix=f".{archive.folder}.") as scratch:
        _unpack(source, Path(scratch))
        unpacked = Path(scratch) / archive.folder
        if not unpacked.is_dir():
            raise AgelibError(f"{source} holds no folder {archive.folder}: it is another archive.")
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)
    write_json(stamp, origin)
    return target


def _unpack(source: Path, folder: Path) -> None:
    try:
        with tarfile.open(source) as tar:
            for member in tqdm(tar, desc=f"extract {source.name}", unit=" files"):
                tar.extract(member, folder, filter=_only_files)
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


def _fetch_official(archive: Archive, target: Path) -> None:
    if "drive.google.com" in archive.url:
        # Imported here, since only this archive needs it.
        import gdown

        with atomic(target) as partial:
            # gdown speaks of errors in exceptions of its own, all of them Exception.
            try:
                gdown.download(archive.url, str(partial))
            except Exception as error:
                raise OSError(str(error).strip().split("\n")[0]) from error
            if not partial.exists() or not tarfile.is_tarfile(partial):
                raise OSError("Google Drive sent a web page in place of the archive")
        return
    _retrieve(archive.url, target, f"md5:{archive.md5}")


def _fetch_mirror(archive: Archive, target: Path, mirror: str) -> None:
    """Takes an archive from a folder or a URL, checked against the `SHA256SUMS` beside it."""
    if "://" in mirror:
        url = mirror.rstrip("/")
        sums = requests.get(f"{url}/SHA256SUMS", timeout=30)
        expected = _parse_sums(sums.text if sums.ok else "").get(archive.file)
        _retrieve(f"{url}/{archive.file}", target, f"sha256:{expected}" if expected else None)
        return
    source = Path(mirror) / archive.file
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist")
    need_space(target.parent, source.stat().st_size)
    with atomic(target) as partial:
        shutil.copyfile(source, partial)
        sums_file = Path(mirror) / "SHA256SUMS"
        sums = _parse_sums(sums_file.read_text() if sums_file.exists() else "")
        if archive.file in sums and sha256(partial) != sums[archive.file]:
            raise OSError(f"{source} does not have the SHA-256 that {sums_file} names")


def _retrieve(url: str, target: Path, checksum: str | None) -> None:
    """Downloads a file, going on where an earlier try was cut off if the server allows.

    Args:
        url: What to fetch.
        target: Where to; what has arrived so far lies beside it as `.part`.
        checksum: "md5:..." or "sha256:...", or None.

    Raises:
        OSError: If the file does not arrive whole (what has arrived is kept for the next try), or
            is not the right one (it is removed).
    """
    partial = target.with_name(f"{target.name}.part")
    for attempt in range(_TRIES):
        try:
            _append_rest(url, partial)
            break
        except requests.HTTPError:
            raise  # the server has answered; asking again changes nothing
        except requests.RequestException:
            if attempt == _TRIES - 1:
                raise
    algorithm, _, expected = (checksum or "").partition(":")
    if checksum and hash_file(partial, algorithm) != expected:
        partial.unlink()
        raise OSError(f"what arrived does not have the {algorithm.upper()} {expected}")
    os.replace(partial, target)


def _append_rest(url: str, partial: Path) -> None:
    """Fetches what is missing of a file."""
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable and start:
            return  # it was whole already
        response.raise_for_status()
        goes_on = response.status_code == requests.codes.partial_content
        rest = int(response.headers.get("Content-Length", 0))
        need_space(partial.parent, rest)
        with (
            open(partial, "ab" if goes_on else "wb") as file,
            tqdm(
                total=rest + start * goes_on,
                initial=start * goes_on,
                desc=f"download {url.rsplit('/', 1)[-1]}",
                unit="B",
                unit_scale=True,
            ) as bar,
        ):
            for block in response.iter_content(1 << 20):
                file.write(block)
                bar.update(len(block))
            # requests takes a connection that closes early for the end of the file.
            if rest and bar.n < rest + start * goes_on:
                raise requests.ConnectionError(f"{url} stopped after {bar.n:,} bytes")


def _parse_sums(text: str) -> dict[str, str]:
    """Returns file name -> SHA-256 from the lines of a `SHA256SUMS` file."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[1].lstrip("*"): pair[0] for pair in pairs if len(pair) == 2}


def _known(target: Path) -> dict | None:
    """Returns what was noted of a file when it was verified, if it has not changed since."""
    note = target.with_name(f"{target.name}.json")
    if not (target.exists() and note.exists()):
        return None
    known = read_json(note)
    return known if known["size"] == target.stat().st_size else None


def remember(target: Path) -> dict:
    """Notes a verified archive's size and SHA-256 beside it, so that nobody fetches it again."""
    note = {"size": target.stat().st_size, "sha256": sha256(target)}
    write_json(target.with_name(f"{target.name}.json"), note)
    return note
