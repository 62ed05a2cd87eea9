"""What must last: files copied to Google Drive and back, verified by SHA-256.

On Colab, Drive is a folder once it is mounted; elsewhere any folder stands for it. Each folder
there holds a `SHA256SUMS` file (as `sha256sum -c` reads it) that names what has arrived whole.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from agelib import AgelibError
from agelib.config import on_colab
from agelib.disk_errors import explained, need_space, reading, retrying
from agelib.drive.mounting import check_mounted
from agelib.files import atomic, find_files, remove_partials, sha256

_SUMS = "SHA256SUMS"

# File name -> SHA-256 of what has arrived; while a file is being replaced, of both contents.
Sums = dict[str, set[str]]


def push(
    local: Path, remote: Path, only: Sequence[Path] | None = None, verify: bool = False
) -> list[str]:
    """Copies a file or a folder to Drive, and returns the names of the files it copied.

    Each copy is read back and compared before it gets its name, then noted in `SHA256SUMS`; an
    equal file that the user uploaded is noted and not copied. `remote` is the copy's own path; of a
    folder `only` some files are copied, or all that are not hidden. To `verify` is to read the
    copies too, in place of trusting `SHA256SUMS`. Raises AgelibError if there is nothing to copy,
    no space, or a copy does not arrive whole.
    """
    check_mounted(remote)
    if not local.exists():
        raise AgelibError(f"{local} is missing, so it cannot be copied to {remote}.")
    with explained(f"{local} could not be read", local):
        if local.is_dir():
            folder, paths = remote, find_files(local) if only is None else only
            files = {path.relative_to(local).as_posix(): path for path in paths}
        else:
            folder, files = remote.parent, {remote.name: local}
        digests = {name: sha256(path) for name, path in files.items()}
    with explained(f"{local} could not be copied to {remote}", local, folder):
        sums, missing, uploaded = _read_sums(folder), [], {}
        for name, path in files.items():
            if not _has_arrived(path, folder / name, digests[name], sums.get(name), verify):
                missing.append(name)
            elif name not in sums:
                uploaded[name] = {digests[name]}
        if uploaded:
            sums |= uploaded
            _write_sums(folder, sums)
        _send([(files[name], name, digests[name]) for name in missing], folder, sums)
    return missing


def pull(remote: Path, local: Path) -> list[str]:
    """Copies a file or a folder from Drive, and returns the names of the files it copied.

    What is here already and whole is left out; `local` is the copy's own path. Files of a folder
    that somebody has deleted there are named on standard error and passed over. Raises AgelibError
    if there is nothing to copy, no space, or a copy does not arrive whole.
    """
    check_mounted(remote)
    with explained(f"{remote} could not be copied to {local}", remote, local.parent):
        sums = _read_sums(remote)
        paths = {name: (remote / name, local / name) for name in sums}
        if not sums and remote.name in (beside := _read_sums(remote.parent)):
            sums, paths = {local.name: beside[remote.name]}, {local.name: (remote, local)}
        if not sums:
            raise AgelibError(f"{remote} holds nothing yet: run the notebook that makes it first.")
        stale = [
            name
            for name, (_, target) in paths.items()
            if not target.exists() or sha256(target) not in sums[name]
        ]
        sizes = [_size(paths[name][0]) for name in stale]
        if missing := [name for name, size in zip(stale, sizes, strict=True) if size is None]:
            which = f"{missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}"
            print(f"{remote}: missing on Drive, so not copied: {which}.", file=sys.stderr)
            stale = [name for name in stale if name not in missing]
            sizes = [size for size in sizes if size is not None]
        need_space(local.parent, sum(sizes))
        for i, name in enumerate(_bar(stale, f"pull {remote.name}")):
            _copy(*paths[name], sums[name], sum(sizes[i:]))
    return stale


def remove(remote: Path, folder: str = "") -> None:
    """Removes a pushed folder, or one inside it, and what `SHA256SUMS` says of it."""
    check_mounted(remote)
    with explained(f"{remote / folder} could not be removed", remote):
        sums = _read_sums(remote)
        rest = {name: sums[name] for name in sums if folder and not name.startswith(f"{folder}/")}
        # First: cut off after it, what lies there is not missed by anybody.
        if rest != sums:
            _write_sums(remote, rest)
    shutil.rmtree(remote / folder, ignore_errors=True)


def holds(remote: Path) -> bool:
    """Tells whether Drive holds a file or a folder that was pushed there."""
    check_mounted(remote)
    with reading(remote):
        return bool(_read_sums(remote)) or remote.name in _read_sums(remote.parent)


def is_replaced(remote: Path, local: Path) -> bool:
    """Tells whether a pushed file is another one on Drive now, as its size shows."""
    with reading(remote):
        noted, size = _read_sums(remote.parent).get(remote.name), _size(remote)
    other_size = size not in (None, local.stat().st_size)
    return bool(noted) and other_size and noted == {sha256(local)}


def _has_arrived(path: Path, copy: Path, digest: str, noted: set[str] | None, verify: bool) -> bool:
    """Tells whether a copy is on Drive: as noted there or, unless noted, as its content shows."""
    # A copy of which another content is noted would take as long to read as to replace.
    if noted not in (None, {digest}) or _size(copy) != path.stat().st_size:
        return False
    trusted = noted and not verify
    return trusted or retrying(sha256)(copy) == digest


def _send(files: list[tuple[Path, str, str]], folder: Path, sums: Sums) -> None:
    """Copies files, each with its name there and its SHA-256, and notes each once it is there."""
    sizes = [path.stat().st_size for path, _, _ in files]
    need_space(folder, sum(sizes))
    for i, (path, name, digest) in enumerate(_bar(files, f"push {folder.name}")):
        if name in sums and digest not in sums[name]:
            # Cut off after this, the old copy and the new one can both be pulled.
            sums[name].add(digest)
            _write_sums(folder, sums)
        _copy(path, folder / name, {digest}, sum(sizes[i:]))
        sums[name] = {digest}
        _write_sums(folder, sums)


def _copy(source: Path, target: Path, digests: set[str], size: int) -> None:
    failed = f"{source} could not be copied to {target}"
    with explained(failed, source, target.parent, size=size):
        _copy_verified(source, target, digests)


@retrying
def _copy_verified(source: Path, target: Path, digests: set[str]) -> None:
    remove_partials(target)
    with atomic(target) as partial:
        shutil.copyfile(source, partial)
        if sha256(partial) not in digests:
            raise Differs(
                "the copy differs from what was pushed; if it does so again, delete it there"
            )


def _bar(items: list, text: str) -> tqdm:
    return tqdm(items, desc=text, unit=" files", disable=len(items) < 10)


@retrying
def _size(path: Path) -> int | None:
    """Returns a file's size; unlike `exists`, takes no error but its absence for its absence."""
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


@retrying
def _read_sums(folder: Path) -> Sums:
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


@retrying
def _write_sums(folder: Path, sums: Sums) -> None:
    remove_partials(folder / _SUMS)
    lines = (f"{digest}  {name}\n" for name in sorted(sums) for digest in sorted(sums[name]))
    with atomic(folder / _SUMS) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


class Differs(OSError):
    """The reason why a file could not be copied: it is another than the one that was pushed."""


class Backup:
    """Pushes each epoch or shard of a folder as soon as it is whole; warns once if it cannot.

    What could not be pushed goes with the next; `push_finished` is for the last.
    """

    # To stop would save nothing: Colab keeps a busy machine with its disk, and takes an idle one
    # away within hours. Drive may work again, by itself or because the user read the warning.

    def __init__(self, local: Path, remote: Path):
        self._local, self._remote = local, remote
        self._pending: list[Path] = []
        self._warned = False

    def push(self, files: Sequence[Path] | None = None) -> None:
        """Pushes the folder, or some files of it and what is still pending."""
        self._pending += files or ()
        try:
            push(self._local, self._remote, only=None if files is None else self._pending)
            self._pending.clear()
        except AgelibError as error:
            if not self._warned:
                tqdm.write(
                    f"agelib: not on Drive yet: {error} No need to stop: {self._local} keeps "
                    "everything, and Drive is tried again each time; this is said only once.",
                    file=sys.stderr,
                )
            self._warned = True


def push_finished(product: Path, local: Path, remote: Path, verify: bool = False) -> list[str]:
    """Does what `push` does once work is done; if that fails, the error says where `product` is."""
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
            f"{product} is finished, but lies only on this machine{rescue}. The reason: {error}"
        ) from error
