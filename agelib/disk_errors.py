"""What a disk or Google Drive refuses, in sentences that say what to do about it.

Drive reports its own limits as the errors of a disk: too many requests as an input/output error,
a dead connection as one of a socket.
"""

import errno
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from agelib import AgelibError, first_line
from agelib.config import on_colab

MOUNT_POINT = "/content/drive"

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISCONNECTED = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET, errno.ESTALE, errno.ENODEV}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_TRANSIENT = {errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.EBUSY}

_LIMITS = (
    "Google limits how much may be read and written in a while, and copes badly with folders of "
    "very many files: wait an hour (at worst a day) and move what is not needed out of that folder"
)

Work = TypeVar("Work", bound=Callable)


def is_full(error: Exception) -> bool:
    """Tells whether an error says that a disk, or somebody's share of it, is full."""
    return getattr(error, "errno", None) in _FULL


def is_disconnected(error: Exception) -> bool:
    """Tells whether a connection is dead: only mounting again mends it."""
    return getattr(error, "errno", None) in _DISCONNECTED


def is_transient(error: Exception) -> bool:
    """Tells whether an error may pass by itself."""
    return getattr(error, "errno", None) in _TRANSIENT


def on_google(path: Path) -> bool:
    """Tells whether a path lies on the Google Drive of a Colab machine."""
    return on_colab() and path.is_relative_to(MOUNT_POINT)


def retrying(
    work: Work,
    is_transient: Callable[[Exception], bool] = is_transient,
    pauses: Sequence[float] = (2, 10),
    progress: Callable[[], int] = lambda: 0,
) -> Work:
    """Makes a function try again after a pause, in seconds, where an OSError is transient.

    `progress` tells how far the work has got: a try that got further is followed by the next at
    once, and all pauses are allowed again.
    """

    @functools.wraps(work)
    def retried(*arguments, **options):
        reached, left = progress(), iter(pauses)
        while True:
            try:
                return work(*arguments, **options)
            except OSError as error:
                if not is_transient(error):
                    raise
                if progress() > reached:
                    reached, left, pause = progress(), iter(pauses), 0
                elif (pause := next(left, None)) is None:
                    raise
            if pause:
                time.sleep(pause)

    return retried


def explain(error: OSError, failed: str, *places: Path, size: int = 0) -> AgelibError:
    """Returns the sentence for an error of the system, which begins with what `failed`.

    `places` are read and written; the last is the one that may be full. `size` is the number of
    bytes that are still to be written, if that is known.
    """
    return AgelibError(
        f"{failed} ({first_line(error)}): {advice(error, *places, size=size)}, then run this "
        "again; what is done already is kept."
    )


@contextmanager
def explained(failed: str, *places: Path, size: int = 0) -> Iterator[None]:
    """Raises what `explain` returns in place of an error of the system."""
    try:
        yield
    except OSError as error:
        raise explain(error, failed, *places, size=size) from error


def reading(place: Path) -> AbstractContextManager[None]:
    """Explains what goes wrong while something is only read."""
    return explained(f"{place} could not be read", place)


def need_space(folder: Path, size: int) -> None:
    """Makes a folder; raises AgelibError unless `size` bytes fit into it."""
    with explained(f"{folder} cannot be written", folder, size=size):
        retrying(folder.mkdir)(parents=True, exist_ok=True)
        if retrying(shutil.disk_usage)(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def advice(error: OSError, *places: Path, size: int = 0) -> str:
    """Returns what to do about an error of the system; places and size as for `explain`."""
    google = any(map(on_google, places))
    if is_full(error):
        return _make_room(places[-1], size)
    if is_disconnected(error):
        if google:
            return "the connection to Drive broke: run the cell with drive.mount(config) again"
        return f"the connection to {places[-1]} broke: restore it"
    if error.errno in _REFUSED:
        whose = "this Google account may" if google else "you may"
        return f"make sure that {whose} read and write there"
    if is_transient(error):
        return _LIMITS if google else "see whether the disk or its connection is at fault"
    return "make sure that the folder can be used and that there is space"


def _make_room(folder: Path, size: int) -> str:
    """Says how to make room; Drive on Colab keeps on the machine's disk what it has yet to send."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        free = 0
    needed = f"{size / 1e6:,.1f} MB are needed, " if size else ""
    room = f"{needed}{free / 1e6:,.1f} MB are free: make room"
    if on_google(folder):
        return f"{room} on Drive (its trash counts: empty it) and on this machine's disk"
    return f"{room} there, or name another folder (AGELIB_DATA, and AGELIB_DRIVE for Drive)"
