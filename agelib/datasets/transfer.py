"""Files from the web or a folder; a download goes on where a bad line broke off."""

import functools
import html
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from agelib.datasets.archives import metadata_path
from agelib.disk_errors import need_space, retrying
from agelib.files import atomic, read_json, remove_partials, write_json

_PAUSES = (1, 2, 4, 8)  # seconds, while nothing more arrives
_BLOCK = 1 << 16


def _is_transient(error: Exception) -> bool:
    if not isinstance(error, requests.RequestException):
        return False
    if error.response is None:
        return not isinstance(error, ValueError)  # an address that makes no sense
    status = error.response.status_code
    return status >= 500 or status == requests.codes.too_many_requests


_retrying = functools.partial(retrying, is_transient=_is_transient, pauses=_PAUSES)


def download(address: str, target: Path, verify: Callable[[Path], None]) -> Path:
    """Downloads a file, or copies it where the address is a path, and returns `target`.

    What has arrived of a download lies beside it as `.part`, where the next try goes on. `verify`
    looks at the whole file before it gets its name, and raises ValueError if it is wrong. Raises
    OSError if the file does not arrive, AgelibError if there is no space for it.
    """
    if not _is_url(address):
        need_space(target.parent, Path(address).stat().st_size)
        remove_partials(target)
        with atomic(target) as copy:
            shutil.copyfile(Path(address), copy)
            verify(copy)
        return target
    partial = target.with_name(f"{target.name}.part")
    _retrying(_append_rest, progress=lambda: _size(partial))(address, partial)
    try:
        verify(partial)
        os.replace(partial, target)
    except (OSError, ValueError):
        _discard(partial)
        raise
    _discard(partial)
    return target


@_retrying
def exists(address: str) -> bool:
    """Tells whether a server or a folder, which must be there, has a file."""
    if _is_url(address):
        response = requests.head(address, allow_redirects=True, timeout=30)
        return response.status_code != requests.codes.not_found
    if not Path(address).parent.is_dir():
        raise FileNotFoundError(f"{Path(address).parent} does not exist")
    return Path(address).exists()


@_retrying
def read_text(address: str) -> str:
    """Returns what a server or a folder has in a text file, "" if there is none."""
    if not _is_url(address):
        return Path(address).read_text() if Path(address).exists() else ""
    response = requests.get(address, timeout=30)
    if response.status_code == requests.codes.not_found:
        return ""
    response.raise_for_status()
    return response.text


def reason(error: Exception) -> str:
    """Returns in a few words what requests says in terms of its own objects."""
    if getattr(error, "response", None) is not None:
        return f"HTTP {error.response.status_code}"
    if getattr(error, "request", None) is not None:
        return f"no connection to {urlsplit(error.request.url).hostname}"
    return str(error)


def _is_url(address: str) -> bool:
    return "://" in address


def _append_rest(url: str, partial: Path) -> None:
    """Downloads what is missing of a file, or all of it if the server's has changed."""
    metadata = metadata_path(partial)
    before = read_json(metadata) if metadata.exists() else None
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
        _refuse_page(response)
        if not start or status != 206:
            _discard(partial)
            write_json(metadata, version)
        need_space(partial.parent, max(0, version["size"] - _size(partial)))
        _receive(response, partial, version["size"])


def _refuse_page(response: requests.Response) -> None:
    """Refuses the pages that come with status 200, such as Google Drive's about its quota."""
    if response.headers.get("Content-Type", "").startswith("text/html"):
        start = next(response.iter_content(_BLOCK), b"").decode(errors="replace")
        title = re.search(r"<title>\s*([^<]{1,80}?)\s*</title>", start)
        named = f' "{html.unescape(title[1])}"' if title else ""
        raise OSError(f"it sent a web page{named} in place of the archive")


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
    metadata_path(partial).unlink(missing_ok=True)
