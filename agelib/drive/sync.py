"""What must last: files copied to Google Drive and back, verified by SHA-256.

On Colab, Drive is a folder once it is mounted; elsewhere any folder stands for it. Each folder
there holds a `SHA256SUMS` file (as `sha256sum -c` reads it) that names what has arrived whole.
"""

import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from agelib import AgelibError
from agelib.config import on_colab
from agelib.disk import explained, patient, reading
from agelib.drive.mounting import check_mounted
from agelib.files import atomic, find_files, remove_partials, sha256

_SUMS = "SHA256SUMS"

# File name -> SHA-256 of what has arrived; while a file is being replaced, of both contents.
Sums = dict[str, set[str]]

_sha256 = patient(sha256)


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
    check_mounted(remote)
    if not local.exists():
        raise AgelibError(f"{local} is missing, so it cannot be copied to {remote}.")
    with explained(f"{local} could not be read", local):
        if local.is_dir():
            target, paths = remote, find_files(local) if only is None else only
            files = {path.relative_to(local).as_posix(): path for path in paths}
        else:
            target, files = remote.parent, {remote.name: local}
        digests = {name: sha256(path) for name, path in files.items()}
    failed = f"{local} could not be copied to {remote}"
    with explained(failed, local, target):
        sums = _read_sums(target)
        stale = [
            name
            for name, path in files.items()
            if sums.get(name) != {digests[name]}
            or _size(target / name) != path.stat().st_size
            or (verify and _sha256(target / name) != digests[name])
        ]
        # What is noted there is another content: to read it back would take as long as to copy.
        missing = [n for n in stale if n in sums or not _is_there(files[n], target / n, digests[n])]
        if len(missing) < len(stale):
            sums |= {name: {digests[name]} for name in stale if name not in missing}
            _write_sums(target, sums)
        _send([(files[name], name, digests[name]) for name in missing], target, sums, failed)
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
    check_mounted(remote)
    failed = f"{remote} could not be copied to {local}"
    with explained(failed, remote, local.parent):
        sums = {(remote / name, local / name): d for name, d in _read_sums(remote).items()}
        if not sums and remote.name in (beside := _read_sums(remote.parent)):
            sums = {(remote, local): beside[remote.name]}
        if not sums:
            raise AgelibError(f"{remote} holds nothing yet: run the notebook that makes it first.")
        stale = [
            pair for pair, d in sums.items() if not pair[1].exists() or sha256(pair[1]) not in d
        ]
        to_go = [_size(source) for source, _ in stale]
        if None in to_go:
            source = stale[to_go.index(None)][0]
            raise AgelibError(f"{source} is missing on Drive: push it again.")
        with explained(failed, remote, local.parent, to_go=sum(to_go)):
            _need_space(local.parent, sum(to_go))
        for i, pair in enumerate(_bar(stale, f"pull {remote.name}")):
            _copy(*pair, sums[pair], sum(to_go[i:]))
    return [t.relative_to(local).as_posix() if t != local else local.name for _, t in stale]


def remove(remote: Path, folder: str = "") -> None:
    """Removes a pushed folder, or one inside it, and what `SHA256SUMS` says of it.

    Raises:
        AgelibError: If Drive cannot be used.
    """
    check_mounted(remote)
    with explained(f"{remote / folder} could not be removed", remote):
        sums = _read_sums(remote)
        kept = {name: sums[name] for name in sums if folder and not name.startswith(f"{folder}/")}
        # First: cut off after it, what lies there is not missed by anybody.
        if kept != sums:
            _write_sums(remote, kept)
    shutil.rmtree(remote / folder, ignore_errors=True)


def holds(remote: Path) -> bool:
    """Tells whether Drive holds a file or a folder that was pushed there.

    Raises:
        AgelibError: If Drive cannot be read.
    """
    check_mounted(remote)
    with reading(remote):
        return bool(_read_sums(remote)) or remote.name in _read_sums(remote.parent)


def _is_there(local: Path, remote: Path, digest: str) -> bool:
    """Tells whether a copy has arrived that nothing was noted of: one that the user uploaded."""
    return _size(remote) == local.stat().st_size and _sha256(remote) == digest


def _send(files: list[tuple[Path, str, str]], target: Path, sums: Sums, failed: str) -> None:
    """Copies files, each with its name there and its SHA-256, and notes each once it is there."""
    sizes = [path.stat().st_size for path, _, _ in files]
    with explained(failed, target, to_go=sum(sizes)):
        _need_space(target, sum(sizes))
    for i, (path, name, digest) in enumerate(_bar(files, f"push {target.name}")):
        if name in sums and digest not in sums[name]:
            # Cut off after this, the old copy and the new one can both be pulled.
            sums[name].add(digest)
            _write_sums(target, sums)
        _copy(path, target / name, {digest}, sum(sizes[i:]))
        sums[name] = {digest}
        _write_sums(target, sums)


def _copy(source: Path, target: Path, digests: set[str], to_go: int) -> None:
    failed = f"{source} could not be copied to {target}"
    with explained(failed, source, target.parent, to_go=to_go):
        _copy_whole(source, target, digests)


@patient
def _copy_whole(source: Path, target: Path, digests: set[str]) -> None:
    remove_partials(target)
    with atomic(target) as partial:
        shutil.copyfile(source, partial)
        if sha256(partial) not in digests:
            raise OSError(
                "the copy differs from what was pushed; if it does so again, "
                "delete it there and push it again"
            )


@patient
def _need_space(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _bar(items: list, text: str) -> tqdm:
    return tqdm(items, desc=text, unit=" files", disable=len(items) < 10)


@patient
def _size(path: Path) -> int | None:
    """Returns a file's size; unlike `exists`, takes no error but its absence for its absence."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


@patient
def _read_sums(folder: Path) -> Sums:
    """Returns what a folder on Drive holds."""
    path, sums = folder / _SUMS, {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            digest, name = line.split("  ", 1)
            sums.setdefault(name, set()).add(digest)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise AgelibError(
            f"{path} is damaged ({error}): delete it and push the files again."
        ) from error
    return sums


@patient
def _write_sums(folder: Path, sums: Sums) -> None:
    remove_partials(folder / _SUMS)
    lines = (f"{digest}  {name}\n" for name in sorted(sums) for digest in sorted(sums[name]))
    with atomic(folder / _SUMS) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


class Backup:
    """Pushes each epoch or shard of a folder as soon as it is whole; warns once if it cannot.

    What could not be pushed goes with the next; `push_finished` is for the last.
    """

    # To stop would save nothing: all lies on the disk here, where Colab leaves it for as long as
    # the machine is busy. An idle one is taken away within hours, and takes what is not on Drive
    # along; one that works on may find Drive well again, or made well by a user who read this.

    def __init__(self, local: Path, remote: Path):
        self._local, self._remote = local, remote
        self._owed: list[Path] = []
        self._warned = False

    def push(self, files: Sequence[Path] | None = None) -> None:
        """Pushes the folder, or some files of it and what is still owed."""
        self._owed += files or ()
        try:
            push(self._local, self._remote, only=None if files is None else self._owed)
        except AgelibError as error:
            self._warn(error)
        else:
            self._owed.clear()

    def _warn(self, error: AgelibError) -> None:
        if not self._warned:
            tqdm.write(
                f"agelib: not on Drive yet: {error} No need to stop: work goes on, {self._local} "
                "keeps everything, and Drive is tried again each time; this is said only once.",
                file=sys.stderr,
            )
        self._warned = True


def push_finished(product: Path, local: Path, remote: Path, verify: bool = False) -> list[str]:
    """Pushes a folder once work is done, and says where its product lies if that fails.

    Args:
        product: What one would miss most.
        local: As for `agelib.drive.sync.push`.
        remote: Likewise.
        verify: Likewise.

    Returns:
        The names of the files that were copied.

    Raises:
        AgelibError: If Drive does not get everything.
    """
    try:
        return push(local, remote, verify=verify)
    except AgelibError as error:
        rescue = (
            ", which Colab wipes when it closes: run this cell again to push it, or download it "
            "from the Files pane (the folder on the left)"
            if on_colab()
            else ": run this again to push it"
        )
        raise AgelibError(
            f"{product} is finished, but lies on this machine alone{rescue}. The reason: {error}"
        ) from error
