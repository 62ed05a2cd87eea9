"""A folder that stands for Google Drive, mounted by the real one's rules.

`REHEARSAL_DRIVE` names the folder; it holds `MyDrive`. `REHEARSAL_MOUNT=refused` has the user
refuse access, `REHEARSAL_MOUNT=timeout` has Drive not answer.
"""

import os
import subprocess

from ._message import MessageError

_mounted: list[str] = []


def mount(mountpoint: str, force_remount: bool = False, timeout_ms: int = 120000) -> None:
    """Mounts the folder, for all processes of this machine to see.

    Raises:
        ValueError: If the mount point will not do, or Drive does not answer.
        MessageError: If access is refused.
    """
    if " " in mountpoint:
        raise ValueError("Mountpoint must not contain a space.")
    mountpoint = os.path.expanduser(mountpoint)
    if os.path.isdir(os.path.join(mountpoint, "MyDrive")):
        if not force_remount:
            print(
                f"Drive already mounted at {mountpoint}; to attempt to forcibly remount, "
                f'call drive.mount("{mountpoint}", force_remount=True).'
            )
            return
        flush_and_unmount()
    _ask()
    _check(mountpoint)
    _answer()
    os.makedirs(mountpoint, exist_ok=True)
    _run("mount", "--bind", os.environ["REHEARSAL_DRIVE"], mountpoint)
    _mounted.append(mountpoint)
    print(f"Mounted at {mountpoint}")


def flush_and_unmount(timeout_ms: int = 24 * 60 * 60 * 1000) -> None:
    """Unmounts the folder, which is refused while a file in it is open.

    Raises:
        ValueError: If it is in use.
    """
    if not _mounted:
        print("Drive not mounted, so nothing to flush and unmount.")
        return
    try:
        _run("umount", _mounted[-1])
    except subprocess.CalledProcessError as error:
        raise ValueError("flush_and_unmount failed") from error
    _mounted.pop()


def _ask() -> None:
    if os.environ.get("REHEARSAL_MOUNT") == "refused":
        raise MessageError("Error: credential propagation was unsuccessful")


def _answer() -> None:
    if os.environ.get("REHEARSAL_MOUNT") == "timeout":
        raise ValueError(
            "mount failed: timeout during initial read of root folder; for more info: "
            "https://research.google.com/colaboratory/faq.html#drive-timeout"
        )


def _check(mountpoint: str) -> None:
    if os.path.islink(mountpoint):
        raise ValueError("Mountpoint must not be a symlink")
    if os.path.isdir(mountpoint) and os.listdir(mountpoint):
        raise ValueError("Mountpoint must not already contain files")
    if os.path.exists(mountpoint) and not os.path.isdir(mountpoint):
        raise ValueError("Mountpoint must either be a directory or not exist")
    if not os.path.exists(os.path.dirname(os.path.normpath(mountpoint)) or "."):
        raise ValueError("Mountpoint must be in a directory that exists")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
