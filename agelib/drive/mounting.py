"""Google Drive as a folder of a Colab machine: mounted, and flushed at the end."""

import os
from pathlib import Path

from agelib import AgelibError, disk_errors, first_line
from agelib.config import Config, on_colab

_RESTART = "choose Runtime > Restart session, and run the notebook from the top"

# What Colab says when it cannot mount Drive -> what to do.
_ADVICE = {
    ("credential", "authoriz", "oauth"): (
        "access was not allowed: run this cell again and, in Google's window, choose the account "
        "that this notebook is open in and allow all that it asks for; if no window appears, let "
        "the browser show pop-ups and accept third-party cookies"
    ),
    ("domain policy",): (
        "the organisation of this Google account has forbidden it: use another account"
    ),
    ("timeout", "timed out"): (
        "Google took too long: run this cell again, which often helps; if not, move what lies at "
        "the top of My Drive into folders, since many files there slow it down"
    ),
}


def mount(config: Config) -> Path:
    """Returns the folder that lasts: mounts Google Drive on Colab, makes a folder elsewhere.

    Raises AgelibError if Drive cannot be mounted or the folder cannot be made.
    """
    try:
        if on_colab():
            _mount_google(config.drive)
        else:
            config.drive.mkdir(parents=True, exist_ok=True)
    # Colab raises ValueError, MessageError or pexpect's TIMEOUT, depending on what went wrong.
    except Exception as error:
        remedy = _advice(error) if on_colab() else "name another folder in AGELIB_DRIVE"
        raise AgelibError(f"{config.drive} cannot be used ({_reason(error)}): {remedy}.") from error
    return config.drive


def flush() -> None:
    """Waits until Google Drive has everything; does nothing outside Colab.

    Raises AgelibError if Google Drive does not confirm it.
    """
    if not on_colab():
        return
    from google.colab import drive

    try:
        drive.flush_and_unmount()
    # Colab raises ValueError, or what the program that it starts does.
    except Exception as error:
        raise AgelibError(
            f"Google Drive does not confirm that everything has arrived ({_reason(error)}): leave "
            "this notebook open, wait a few minutes and run this cell again; if it fails again, "
            "run the notebook from its cell with drive.mount(config), which copies what is "
            "missing, before you close it: Colab then wipes this machine."
        ) from error


def check_mounted(remote: Path) -> None:
    """Raises AgelibError where Google Drive should be mounted and a plain folder lies instead."""
    point = disk_errors.MOUNT_POINT
    if disk_errors.on_google(remote) and not os.path.ismount(point):
        raise AgelibError(
            f"Google Drive is not mounted at {point} (any more), so {remote} would not last: run "
            "the notebook's cell with drive.mount(config) first, since the command line on Colab "
            "cannot mount Drive by itself."
        )


def _mount_google(folder: Path) -> None:
    from google.colab import drive

    try:
        if not os.path.ismount(disk_errors.MOUNT_POINT):
            drive.mount(disk_errors.MOUNT_POINT)
        if not os.path.ismount(disk_errors.MOUNT_POINT):
            # A folder MyDrive that something wrote there passes for a mounted Drive.
            raise ValueError("Mountpoint must not already contain files")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if not disk_errors.is_disconnected(error):
            raise
        # Drive passes for mounted as long as its folder can be seen, alive or not.
        drive.mount(disk_errors.MOUNT_POINT, force_remount=True)
        folder.mkdir(parents=True, exist_ok=True)


def _reason(error: Exception) -> str:
    """Returns what went wrong in few words; pexpect's begin with an object's address."""
    said = first_line(error)
    return type(error).__name__ if said.startswith("<") or not said else said


def _advice(error: Exception) -> str:
    point = Path(disk_errors.MOUNT_POINT)
    said = f"{type(error).__name__} {error}".lower()
    if disk_errors.is_disconnected(error):
        return f"the connection broke, and mounting again did not mend it: {_RESTART}"
    if isinstance(error, OSError):
        return f"{disk_errors.advice(error, point)}, then run this cell again"
    if "must not already contain files" in said:
        return _how_to_empty(point)
    for signs, advice in _ADVICE.items():
        if any(sign in said for sign in signs):
            return advice
    return f"run this cell again; if that does not help, {_RESTART}"


def _how_to_empty(point: Path) -> str:
    """Says how to empty the mount point; never by deleting, as it may be Drive after all."""
    if os.path.ismount(point):
        return f"it is mounted already and in use: {_RESTART}"
    try:
        names = sorted(os.listdir(point))
    except OSError:  # the folder itself is what is broken
        return _RESTART
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"{point} holds {', '.join(names[:3])}{more}, written there while Drive was not mounted: "
        f"run `!mv {point} {point}_before` to set that aside, then this cell again"
    )
