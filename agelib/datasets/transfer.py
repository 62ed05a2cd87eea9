"""Files from the web, which go on where a bad line broke off."""

import html
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from agelib.datasets.archives import metadata_path
from agelib.disk import need_space, retrying
from agelib.files import read_json, write_json

_PAUSES = (1, 2, 4, 8)  # seconds, while nothing more arrives
_BLOCK = 1 << 16


def download(url: str, target: Path, verify: Callable[[Path], None]) -> Path:
    """Downloads a file; what has arrived lies beside it as `.part`, where the next try goes on.

    Args:
        url: Where from.
        target: The file to make or replace; returned.
        verify: Looks at the whole file before it gets its name; raises ValueError if it is wrong.

    Raises:
        AgelibError: If there is no space for it.
        OSError: If it does not arrive.
    """
    partial = target.with_name(f"{target.name}.part")
    retrying(_append_rest, _may_pass, _PAUSES, lambda: _size(partial))(url, partial)
    try:
        verify(partial)
        os.replace(partial, target)
    except (OSError, ValueError):
        _discard(partial)
        raise
    _discard(partial)
    return target


def holds(url: str) -> bool:
    """Tells whether a server has something at an address."""
    ask = retrying(requests.head, _may_pass, _PAUSES)
    return ask(url, allow_redirects=True, timeout=30).status_code != requests.codes.not_found


def read_text(url: str) -> str:
    """Returns what a server has at an address, "" if nothing."""
    return retrying(_read_text, _may_pass, _PAUSES)(url)


def _read_text(url: str) -> str:
    response = requests.get(url, timeout=30)
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


def _may_pass(error: Exception) -> bool:
    if not isinstance(error, requests.RequestException):
        return False
    if error.response is None:
        return not isinstance(error, ValueError)  # an address that makes no sense
    status = error.response.status_code
    return status >= 500 or status == requests.codes.too_many_requests


def _append_rest(url: str, partial: Path) -> None:
    """Fetches what is missing of a file, or all of it if the server's is another one by now."""
    before = read_json(metadata_path(partial)) if metadata_path(partial).exists() else None
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
            write_json(metadata_path(partial), version)
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
