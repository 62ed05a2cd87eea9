"""The archives, fetched, verified and extracted."""

import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from agelib import AgelibError, archives, files
from agelib.archives import ARCHIVES, Archive
from agelib.config import Config
from agelib.files import Checksum, atomic, need_space, read_json, sha256, write_json

_TRIES = 5
_BLOCK = 1 << 16


def fetch(name: str, config: Config) -> Path:
    """Makes sure that an archive lies in `data/raw`, whole and verified.

    A mirror (`AGELIB_MIRROR`, or the sample's own) comes before the official home. An archive that
    the user put there is verified and kept.

    Args:
        name: "wiki", "imdb" or "utkface".
        config: Says where `data/raw` and the mirror are.

    Returns:
        The archive's path.

    Raises:
        AgelibError: If it cannot be had, or is not what it should be.
    """
    archive, mirror = ARCHIVES[name], config.mirror
    target = config.raw / archive.file
    if _known(target):
        return target
    lacking = ""
    try:
        if mirror and config.profile != "sample" and not _holds(mirror, archive.file):
            lacking, mirror = f" is not in {mirror} and", None
            print(f"{archive.file}{lacking} comes from {archive.url}.", file=sys.stderr)
        checksum = _checksum(archive, mirror)
        if target.exists() and not _note(target).exists():
            archives.check(target, checksum)
        elif mirror:
            _fetch_mirror(archive, target, mirror, checksum)
        else:
            _fetch_official(archive, target, checksum)
    except (OSError, ValueError, requests.RequestException) as error:
        raise AgelibError(
            f"{archive.file}{lacking} could not be fetched from {mirror or archive.url} ({error}): "
            f"try again later, or get it by hand from {archive.home} into a folder and name that "
            "folder in AGELIB_MIRROR."
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
    source, target = config.raw / archive.file, config.raw / archive.folder
    if not source.exists():
        if target.is_dir():
            return target
        raise AgelibError(f"{source} is missing: run the download step (notebook 01) first.")
    origin = _known(source) or remember(source)
    stamp = _note(target)
    if target.is_dir() and stamp.exists() and read_json(stamp) == origin:
        return target
    need_space(config.raw, 2 * source.stat().st_size)
    try:
        archives.unpack(source, target)
    except AgelibError:
        _note(source).unlink()  # whoever mends the archive wants it looked at anew
        raise
    write_json(stamp, origin)
    return target


def remember(target: Path) -> dict[str, Any]:
    """Notes a verified archive's size and SHA-256 beside it, so that nobody fetches it again."""
    note = {"size": target.stat().st_size, "sha256": sha256(target)}
    write_json(_note(target), note)
    return note


def _known(target: Path) -> dict[str, Any] | None:
    """Returns what was noted of a file when it was verified, if it has not changed since."""
    if not (target.exists() and _note(target).exists()):
        return None
    known = read_json(_note(target))
    return known if known["size"] == target.stat().st_size else None


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _holds(mirror: str, file: str) -> bool:
    if "://" in mirror:
        answer = requests.head(_url(mirror, file), allow_redirects=True, timeout=30)
        return answer.status_code != requests.codes.not_found
    if not Path(mirror).is_dir():
        raise FileNotFoundError(f"{mirror} does not exist")
    return (Path(mirror) / file).exists()


def _url(mirror: str, file: str) -> str:
    return f"{mirror.rstrip('/')}/{file}"


def _checksum(archive: Archive, mirror: str | None) -> Checksum:
    """Returns the mirror's checksum, whose archives may be others, or else the official one."""
    if mirror is None:
        return archive.md5 and ("md5", archive.md5)
    if "://" in mirror:
        answer = requests.get(_url(mirror, "SHA256SUMS"), timeout=30)
        text = answer.text if answer.ok else ""
    else:
        path = Path(mirror) / "SHA256SUMS"
        text = path.read_text() if path.exists() else ""
    lines = (line.split() for line in text.splitlines())
    sums = {line[1].lstrip("*"): line[0] for line in lines if len(line) == 2}
    return ("sha256", sums[archive.file]) if archive.file in sums else None


def _fetch_mirror(archive: Archive, target: Path, mirror: str, checksum: Checksum) -> None:
    if "://" in mirror:
        _download(_url(mirror, archive.file), target, checksum)
        return
    source = Path(mirror) / archive.file
    need_space(target.parent, source.stat().st_size)
    files.remove_partials(target)
    with atomic(target) as partial:
        shutil.copyfile(source, partial)
        files.verify(partial, checksum)


def _fetch_official(archive: Archive, target: Path, checksum: Checksum) -> None:
    if "drive.google.com" not in archive.url:
        _download(archive.url, target, checksum)
        return
    # Imported here, since only this archive needs it.
    import gdown

    need_space(target.parent, archive.size)
    files.remove_partials(target)
    with atomic(target) as partial:
        # gdown speaks of errors in exceptions of its own, all of them Exception.
        try:
            gdown.download(archive.url, str(partial))
        except Exception as error:
            raise OSError(str(error).strip().split("\n")[0]) from error
        if not partial.exists() or not tarfile.is_tarfile(partial):
            raise OSError("Google Drive sent a web page in place of the archive")


def _download(url: str, target: Path, checksum: Checksum) -> None:
    """Downloads a file; what has arrived lies beside it as `.part`, where the next try goes on."""
    partial = target.with_name(f"{target.name}.part")
    most, failures = _size(partial), 0
    while True:
        try:
            _append_rest(url, partial)
            break
        except requests.HTTPError:
            raise  # the server has answered; asking again changes nothing
        except requests.RequestException:
            failures = 0 if _size(partial) > most else failures + 1
            if failures == _TRIES:
                raise
            most = max(most, _size(partial))
    try:
        files.verify(partial, checksum)
        os.replace(partial, target)
    except OSError:
        _discard(partial)
        raise
    _discard(partial)


def _append_rest(url: str, partial: Path) -> None:
    """Fetches what is missing of a file, or all of it if the server's is another one by now."""
    known = read_json(_note(partial)) if _note(partial).exists() else None
    start = _size(partial) if known else 0
    if start and start == known["size"]:
        return
    headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        status, version = response.status_code, _version(response)
        if start and (status == 416 or (status == 206 and version != known)):
            _discard(partial)
            return _append_rest(url, partial)
        response.raise_for_status()
        if not start or status != 206:
            start = 0
            _discard(partial)
            write_json(_note(partial), version)
        need_space(partial.parent, max(0, version["size"] - start))
        with (
            open(partial, "ab") as file,
            tqdm(
                desc=f"download {partial.stem}",
                total=version["size"] or None,
                initial=start,
                unit="B",
                unit_scale=True,
            ) as bar,
        ):
            for block in response.iter_content(_BLOCK):
                file.write(block)
                bar.update(len(block))
    # requests takes a connection that closes early for the end of the file.
    if _size(partial) < version["size"]:
        raise requests.ConnectionError(f"{url} stopped after {_size(partial):,} bytes")


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
    _note(partial).unlink(missing_ok=True)
