"""Archives that the user put there by hand, under the names that browsers and Kaggle give them."""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from agelib import files
from agelib.datasets import archives, unpack
from agelib.datasets.archives import Archive
from agelib.files import Checksum, atomic, is_full, need_space

_ENDINGS = (".tar.gz", ".tgz", ".tar", ".zip")


def good_names(archive: Archive) -> list[str]:
    """Returns the names to recommend, the official one first."""
    names = [archive.file, f"{archive.folder}.zip"]
    if archive.kaggle:
        names += [f"{Path(archive.kaggle).name}.zip", "archive.zip"]
    return list(dict.fromkeys(names))


def take(archive: Archive, folders: Sequence[Path], target: Path, checksum: Checksum) -> bool:
    """Makes the archive out of what the user put into some folders, if that is there.

    A file of the official kind must have the checksum, where one is known; any other is read from
    end to end and packed anew. The user's file stays as it is. What cannot be used is named on
    standard error and passed over.

    Args:
        archive: What to look for.
        folders: Where.
        target: What to write.
        checksum: The archive's own.

    Returns:
        Whether the archive is there now.

    Raises:
        AgelibError: If there is no space for it.
        OSError: If the disk fills up.
    """
    for path in _candidates(archive, folders, target):
        try:
            _take_over(path, archive, target, checksum)
        except (OSError, ValueError) as error:
            if is_full(error):
                raise
            print(f"{path} is not used for {archive.file}: {error}.", file=sys.stderr)
        else:
            print(f"{archive.file} comes from {path}.", file=sys.stderr)
            return True
    return False


def _candidates(archive: Archive, folders: Sequence[Path], target: Path) -> Iterator[Path]:
    stems = {Path(name).stem for name in good_names(archive) if name.endswith(".zip")}
    endings = (".zip",) if archive.file.endswith(".zip") else _ENDINGS
    wanted = {f"{stem}{ending}".lower() for stem in stems for ending in endings}
    for folder in folders:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        for path in sorted(paths, key=lambda path: path.name != archive.file):
            if path != target and path.is_file() and _plain_name(path) in wanted:
                yield path


def _plain_name(path: Path) -> str:
    """Returns a file's name without the number that browsers and Drive give a second copy."""
    return re.sub(r" ?\(\d+\)", "", path.name.lower())


def _take_over(path: Path, archive: Archive, target: Path, checksum: Checksum) -> None:
    ending = "".join(Path(archive.file).suffixes)
    official = _plain_name(path).endswith(ending)
    if not (official and (checksum or ending == ".zip" or unpack.has_layout(path, archive))):
        unpack.pack(path, archive, target)
        return
    need_space(target.parent, path.stat().st_size)
    files.remove_partials(target)
    with atomic(target) as partial:
        shutil.copyfile(path, partial)
        archives.verify(partial, checksum)
