"""What a disk or Google Drive refuses, in sentences that say what to do about it.

Drive reports its own limits as the errors of a disk: too many requests as an input/output error,
a dead connection as one of a socket.
"""

import errno
import functools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from agelib import AgelibError, first_line
from agelib.config import on_colab

MOUNT_POINT = "/content/drive"

# What a dead connection looks like: only mounting again mends it.
LOST = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET, errno.ESTALE, errno.ENODEV}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_PASSING = {errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.EBUSY}
_PAUSES = (2, 10)  # seconds

_LIMITS = (
    "Google limits how much may be read and written in a while, and copes badly with folders of "
    "very many files: wait an hour (at worst a day) and move what is not needed out of that folder"
)

Work = TypeVar("Work", bound=Callable)


def on_google(path: Path) -> bool:
    """Tells whether a path lies on the Google Drive of a Colab machine."""
    return on_colab() and path.is_relative_to(MOUNT_POINT)


def patient(work: Work) -> Work:
    """Makes a function try again, after a pause, where an error may pass by itself."""

    @functools.wraps(work)
    def trying(*arguments, **options):
        for pause in _PAUSES:
            try:
                return work(*arguments, **options)
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                time.sleep(pause)
        return work(*arguments, **options)

    return trying


@contextmanager
def explained(failed: str, *places: Path, to_go: int = 0) -> Iterator[None]:
    """Turns what the system says of a disk into a sentence that says what to do.

    Args:
        failed: What did not work, as the sentence begins.
        places: What is read and written; the last is the one that may be full.
        to_go: Bytes that are still to be written, if that is known.

    Raises:
        AgelibError: If the system raises an error.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise AgelibError(
            f"{failed} ({reason}): {advice(error, *places, to_go=to_go)}, then run this again; "
            "what was copied before is safe."
        ) from error


def reading(place: Path) -> AbstractContextManager[None]:
    """Explains what goes wrong while something on Drive is merely looked at."""
    return explained(f"{place} could not be read", place)


def advice(error: OSError, *places: Path, to_go: int = 0) -> str:
    """Returns what to do about an error of the system; the rest as for `explained`."""
    google = any(map(on_google, places))
    if error.errno in _FULL:
        return _room(places[-1], to_go)
    if error.errno in LOST:
        if google:
            return "the connection to Drive broke: run the cell with drive.mount(config) again"
        return f"the connection to {places[-1]} broke: restore it"
    if error.errno in _FORBIDDEN:
        whose = "this Google account may" if google else "you may"
        return f"make sure that {whose} read and write there"
    if error.errno in _PASSING:
        return _LIMITS if google else "see whether the disk or its connection is at fault"
    return "make sure that the folder can be used and that there is space"


def _room(folder: Path, to_go: int) -> str:
    """Says how to make room; Drive on Colab keeps on the machine's disk what it has yet to send."""
    needed = f"{to_go / 1e6:,.1f} MB are to be copied, " if to_go else ""
    free = f"{needed}{_free(folder) / 1e6:,.1f} MB are free: make room"
    if on_google(folder):
        return f"{free} on Drive (its trash counts: empty it) and on this machine's disk"
    return f"{free} there, or name another folder (AGELIB_DATA, and AGELIB_DRIVE for Drive)"


def _free(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def need_space(folder: Path, size: int) -> None:
    """Makes sure that `size` bytes fit into a folder before work starts.

    Raises:
        AgelibError: If they do not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise AgelibError(
            f"{folder} needs {size / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free: "
            "make room, or name another folder: --data or AGELIB_DATA, and AGELIB_DRIVE for Drive."
        )


def is_full(error: Exception) -> bool:
    """Tells whether an error says that a disk, or somebody's share of it, is full."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)


def no_space(folder: Path, what: str) -> AgelibError:
    """Returns the error for a disk that fills up in spite of `need_space`."""
    return AgelibError(
        f"{folder} has no space left for {what}: make room, or name another folder (--data or "
        "AGELIB_DATA), and run this again."
    )
