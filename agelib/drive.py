"""What must last: files copied to Google Drive and back, verified by SHA-256.

On Colab, Drive is a folder once it is mounted; elsewhere any folder stands for it. Each folder
there holds a `SHA256SUMS` file (as `sha256sum -c` reads it) that names what has arrived whole.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from agelib import AgelibError
from agelib.config import Config, on_colab
from agelib.files import atomic, need_space, remove_partials, sha256

_SUMS = "SHA256SUMS"
_MOUNT_POINT = "/content/drive"


def mount(config: Config) -> Path:
    """Makes the lasting folder available: mounts Google Drive on Colab, makes a folder elsewhere.

    Returns:
        The folder.

    Raises:
        AgelibError: If Drive cannot be mounted or the folder cannot be made.
    """
    try:
        if on_colab():
            from google.colab import drive

            drive.mount(_MOUNT_POINT)
        config.drive.mkdir(parents=True, exist_ok=True)
    # Colab raises ValueError, RuntimeError or MessageError, depending on what went wrong.
    except Exception as error:
        way_out = (
            "allow access to Google Drive when asked and run this cell again"
            if on_colab()
            else "name another folder in AGELIB_DRIVE"
        )
        raise AgelibError(f"{config.drive} cannot be used ({error}): {way_out}.") from error
    return config.drive


def flush() -> None:
    """Waits until Google Drive has everything; does nothing outside Colab."""
    if on_colab():
        from google.colab import drive

        drive.flush_and_unmount()


def push(
    local: Path, remote: Path, only: Sequence[Path] | None = None, verify: bool = False
) -> list[str]:
    """Copies a file or a folder to Drive, leaving out what is there already.

    Each copy is read back and compared before it gets its name, then noted in `SHA256SUMS`; so is
    an equal file that the user uploaded, which is not copied.

    Args:
        local: What to copy; hidden files stay behind.
        remote: Where to: the copy's own path, not its parent's.
        only: If given, the files of the folder to copy.
        verify: Whether to read what is there already too, in place of trusting `SHA256SUMS`.

    Returns:
        The names of the files that were copied or noted.

    Raises:
        AgelibError: If there is nothing to copy, no space, or a copy does not arrive whole.
    """
    _check_mounted(remote)
    if not local.exists():
        raise AgelibError(f"{local} is missing, so it cannot be copied to {remote}.")
    if local.is_dir():
        target = remote
        paths = _visible_files(local) if only is None else only
        files = {path.relative_to(local).as_posix(): path for path in paths}
    else:
        target, files = remote.parent, {remote.name: local}
    sums = _read_sums(target)
    digests = {name: sha256(path) for name, path in files.items()}
    stale = [
        name
        for name, path in files.items()
        if sums.get(name) != digests[name]
        or not _same_size(path, target / name)
        or (verify and sha256(target / name) != digests[name])
    ]
    missing = [
        name
        for name in stale
        if not _same_size(files[name], target / name) or sha256(target / name) != digests[name]
    ]
    need_space(target, sum(files[name].stat().st_size for name in missing))
    for name in tqdm(stale, desc=f"push {local.name}", unit=" files", disable=len(stale) < 10):
        if name in missing:
            _copy(files[name], target / name, digests[name])
        sums[name] = digests[name]
        _write_sums(target, sums)
    return stale


def pull(remote: Path, local: Path) -> list[str]:
    """Copies a file or a folder from Drive, leaving out what is here already and whole.

    Args:
        remote: What to copy.
        local: Where to: the copy's own path.

    Returns:
        The names of the files that were copied.

    Raises:
        AgelibError: If there is nothing to copy, no space, or a copy does not arrive whole.
    """
    _check_mounted(remote)
    sums = {(remote / name, local / name): d for name, d in _read_sums(remote).items()}
    if not sums and remote.name in _read_sums(remote.parent):
        sums = {(remote, local): _read_sums(remote.parent)[remote.name]}
    if not sums:
        raise AgelibError(f"{remote} holds nothing yet: run the notebook that makes it first.")
    for source, _ in sums:
        if not source.exists():
            raise AgelibError(f"{source} is missing on Drive: push it again.")
    stale = [
        pair for pair, digest in sums.items() if not pair[1].exists() or sha256(pair[1]) != digest
    ]
    need_space(local.parent, sum(source.stat().st_size for source, _ in stale))
    for pair in tqdm(stale, desc=f"pull {remote.name}", unit=" files", disable=len(stale) < 10):
        _copy(*pair, sums[pair])
    return [t.relative_to(local).as_posix() if t != local else local.name for _, t in stale]


def remove(remote: Path, folder: str) -> None:
    """Removes a folder inside a pushed folder, and what `SHA256SUMS` says of it."""
    _check_mounted(remote)
    shutil.rmtree(remote / folder, ignore_errors=True)
    sums = _read_sums(remote)
    kept = {name: sums[name] for name in sums if not name.startswith(f"{folder}/")}
    if kept != sums:
        _write_sums(remote, kept)


def holds(remote: Path) -> bool:
    """Tells whether Drive holds a file or a folder that was pushed there."""
    _check_mounted(remote)
    return bool(_read_sums(remote)) or remote.name in _read_sums(remote.parent)


def _check_mounted(remote: Path) -> None:
    """Refuses the plain folder that Colab loses when it lies where Google Drive should be."""
    if on_colab() and remote.is_relative_to(_MOUNT_POINT) and not os.path.ismount(_MOUNT_POINT):
        raise AgelibError(
            f"Google Drive is not mounted at {_MOUNT_POINT}, so {remote} would not last: run the "
            "notebook's cell with drive.mount(config) first, since the command line on Colab "
            "cannot mount Drive by itself."
        )


def _copy(source: Path, target: Path, digest: str) -> None:
    try:
        remove_partials(target)
        with atomic(target) as partial:
            shutil.copyfile(source, partial)
            if sha256(partial) != digest:
                raise OSError(
                    "the copy differs from what was pushed; if it does so again, "
                    "delete it there and push it again"
                )
    except OSError as error:
        raise AgelibError(
            f"{source} could not be copied to {target} ({error}): what was copied before is safe; "
            "make sure there is space and run this again."
        ) from error


def _visible_files(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(
        path
        for path in paths
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _same_size(one: Path, other: Path) -> bool:
    return other.exists() and one.stat().st_size == other.stat().st_size


def _read_sums(folder: Path) -> dict[str, str]:
    """Returns file name -> SHA-256 of what a folder on Drive holds."""
    path = folder / _SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except ValueError as error:
        raise AgelibError(
            f"{path} is damaged ({error}): delete it and push the files again."
        ) from error


def _write_sums(folder: Path, sums: dict[str, str]) -> None:
    remove_partials(folder / _SUMS)
    with atomic(folder / _SUMS) as partial:
        partial.write_text(
            "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8"
        )
