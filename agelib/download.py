"""The archives, fetched, verified and extracted."""

import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from agelib import AgelibError, archives, files, first_line
from agelib.archives import ARCHIVES, Archive, known, note_of, remember
from agelib.config import Config
from agelib.files import Checksum, atomic, need_space, read_json, write_json

_TRIES = 5
_BLOCK = 1 << 16


def fetch(name: str, config: Config) -> Path:
    """Makes sure that an archive lies in `data/raw`, verified once.

    It must have the checksum that its mirror or its authors name or, where there is none, be
    readable from end to end; later calls look at its size alone. A mirror (`AGELIB_MIRROR`) comes
    before the official home; the sample has its own mirror alone. An archive that the user put
    there is verified in the same way and kept; one that has changed since then is fetched anew.

    Args:
        name: "wiki", "imdb" or "utkface".
        config: Says where `data/raw` and the mirror are.

    Returns:
        The archive's path.

    Raises:
        AgelibError: If it cannot be had, or is not what it should be.
    """
    archive, mirror = ARCHIVES[name], config.mirror and config.mirror.rstrip("/")
    target = config.raw / archive.file
    if known(target):
        return target
    lacking = ""
    try:
        if mirror and config.profile != "sample" and not _holds(mirror, archive.file):
            lacking, mirror = f" is not in {mirror} and", None
            print(f"{archive.file}{lacking} comes from {archive.url}.", file=sys.stderr)
        checksum = _checksum(archive, mirror)
        if target.exists() and not note_of(target).exists():
            archives.check(target, checksum)
        elif mirror:
            _fetch_mirror(archive, target, mirror, checksum)
        else:
            _fetch_official(archive, target, checksum)
    except (OSError, ValueError) as error:
        way_out = (
            f"delete {mirror} and run the download step again"
            if config.profile == "sample"
            else f"try again later, or get it by hand from {archive.home} into a folder and name "
            "that folder in AGELIB_MIRROR"
        )
        raise AgelibError(
            f"{archive.file}{lacking} could not be fetched from {mirror or archive.url} "
            f"({_reason(error)}): {way_out}."
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
    archive = ARCHIVES[name]
    return archives.unpack_once(config.raw / archive.file, config.raw / archive.folder)


def _holds(mirror: str, file: str) -> bool:
    if "://" in mirror:
        url = f"{mirror}/{file}"
        answer = _patiently(lambda: requests.head(url, allow_redirects=True, timeout=30))
        return answer.status_code != requests.codes.not_found
    if not Path(mirror).is_dir():
        raise FileNotFoundError(f"{mirror} does not exist")
    return (Path(mirror) / file).exists()


def _checksum(archive: Archive, mirror: str | None) -> Checksum:
    """Returns the mirror's checksum, whose archives may be others, or else the official one."""
    if mirror is None:
        return archive.md5 and ("md5", archive.md5)
    if "://" in mirror:
        text = _patiently(lambda: _read_sums(f"{mirror}/SHA256SUMS"))
    else:
        path = Path(mirror) / "SHA256SUMS"
        text = path.read_text() if path.exists() else ""
    return archives.find_sha256(archive.file, text)


def _read_sums(url: str) -> str:
    response = requests.get(url, timeout=30)
    if response.status_code == requests.codes.not_found:
        return ""
    response.raise_for_status()
    return response.text


def _fetch_mirror(archive: Archive, target: Path, mirror: str, checksum: Checksum) -> None:
    if "://" in mirror:
        _download(f"{mirror}/{archive.file}", target, checksum)
        return
    source = Path(mirror) / archive.file
    need_space(target.parent, source.stat().st_size)
    files.remove_partials(target)
    with atomic(target) as partial:
        shutil.copyfile(source, partial)
        archives.verify(partial, checksum)


def _fetch_official(archive: Archive, target: Path, checksum: Checksum) -> None:
    if "drive.google.com" not in archive.url:
        _download(archive.url, target, checksum)
        return
    need_space(target.parent, archive.size)
    with atomic(target) as partial:
        _patiently(lambda: _ask_drive(archive.url, target, partial))
        if not partial.exists() or not tarfile.is_tarfile(partial):
            raise OSError("Google Drive sent a web page in place of the archive")
        archives.verify(partial, checksum)


def _ask_drive(url: str, target: Path, partial: Path) -> None:
    # Imported here, since only this archive needs it.
    import gdown

    files.remove_partials(target)
    try:
        gdown.download(url, str(partial))
    except OSError:
        raise  # requests' errors are among them
    # gdown speaks of other errors in exceptions of its own, all of them Exception.
    except Exception as error:
        raise OSError(first_line(error)) from error


def _download(url: str, target: Path, checksum: Checksum) -> None:
    """Downloads a file; what has arrived lies beside it as `.part`, where the next try goes on."""
    partial = target.with_name(f"{target.name}.part")
    _patiently(lambda: _append_rest(url, partial), lambda: _size(partial))
    try:
        archives.verify(partial, checksum)
        os.replace(partial, target)
    except OSError:
        _discard(partial)
        raise
    _discard(partial)


def _patiently(ask: Callable[[], Any], reached: Callable[[], int] = lambda: 0) -> Any:
    """Asks again after each failure that may pass, until a few in a row have got no further."""
    most, failures = reached(), 0
    while True:
        try:
            return ask()
        except requests.RequestException as error:
            failures = 0 if reached() > most else failures + 1
            if failures == _TRIES or not _may_pass(error):
                raise
            most = max(most, reached())
        if failures:
            sleep(2 ** (failures - 1))


def _may_pass(error: requests.RequestException) -> bool:
    if error.response is None:
        return not isinstance(error, ValueError)  # an address that makes no sense
    status = error.response.status_code
    return status >= 500 or status == requests.codes.too_many_requests


def _reason(error: Exception) -> str:
    """Returns in a few words what requests says in terms of its own objects."""
    if getattr(error, "response", None) is not None:
        return f"HTTP {error.response.status_code}"
    if getattr(error, "request", None) is not None:
        return f"no connection to {urlsplit(error.request.url).hostname}"
    return str(error)


def _append_rest(url: str, partial: Path) -> None:
    """Fetches what is missing of a file, or all of it if the server's is another one by now."""
    before = read_json(note_of(partial)) if note_of(partial).exists() else None
    start = _size(partial) if before else 0
    if start and start == before["size"]:
        return
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        status, version = response.status_code, _version(response)
        if start and (status == 416 or (status == 206 and version != before)):
            _discard(partial)
            return _append_rest(url, partial)
        response.raise_for_status()
        if not start or status != 206:
            _discard(partial)
            write_json(note_of(partial), version)
        need_space(partial.parent, max(0, version["size"] - _size(partial)))
        _receive(response, partial, version["size"])


def _receive(response: requests.Response, partial: Path, size: int) -> None:
    name, start = f"download {partial.stem}", _size(partial)
    with (
        open(partial, "ab") as file,
        tqdm.wrapattr(file, "write", size or None, desc=name, initial=start) as watched,
    ):
        try:
            for block in response.iter_content(_BLOCK):
                watched.write(block)
            # requests may take a connection that closes early for the end of the file.
            if file.tell() < size:
                raise requests.ConnectionError
        except requests.RequestException as error:
            raise requests.ConnectionError(f"it stopped after {file.tell():,} bytes") from error


def _version(response: requests.Response) -> dict[str, Any]:
    """Returns what tells one state of a server's file from another: its size among it, or 0."""
    headers = response.headers
    size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    version = {"size": int(size) if size.isdigit() else 0}
    return version | {name: headers.get(name) for name in ("ETag", "Last-Modified")}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    note_of(partial).unlink(missing_ok=True)
