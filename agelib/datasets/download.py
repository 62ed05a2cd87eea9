"""The archives, fetched, verified and extracted.

One comes from a folder where the user put it, from a mirror, from its home, or from Kaggle.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agelib import AgelibError
from agelib.config import Config
from agelib.datasets import transfer, unpack
from agelib.datasets.archives import (
    LABELS,
    Archive,
    metadata_path,
    read_metadata,
    read_origin,
    write_metadata,
)
from agelib.datasets.registry import DATASETS, DataSet, find_dataset
from agelib.disk_errors import explain, explained, is_full

_KAGGLE = "https://www.kaggle.com/api/v1/datasets/download"

# `unpack.verify` for one archive.
_Check = Callable[..., None]


def fetch(name: str, config: Config) -> Path:
    """Returns a data set's archive in `data/raw`, fetched if need be, and verified once.

    It must have the checksum that its mirror or its authors name or, where there is none, be
    readable from end to end; later calls look only at its size. What the user put into `data/raw`
    or into `archives` on Drive comes first, as the official file or as another zip or tar file
    of the same images; then a mirror (`AGELIB_MIRROR`), then the official home, then Kaggle; the
    sample has only its own mirror. One that has changed since it was verified is fetched anew,
    unless it can only be put there by hand. Raises AgelibError if none can be had.
    """
    dataset = find_dataset(name)
    archive, lacking = dataset.archive, ""
    if verified := _verified(archive, config):
        return verified
    mirror, sample = config.mirror and config.mirror.rstrip("/"), _is_sample(archive, config)
    if dataset.home and not sample:
        print(f"{archive.file}: {dataset.licence} ({dataset.home})", file=sys.stderr)
    try:
        unreachable = None
        try:
            if mirror and not sample and not transfer.exists(f"{mirror}/{archive.file}"):
                lacking, mirror = f" is not in {mirror} and", None
            checksum = _checksum(archive, mirror)
        except (OSError, ValueError) as error:  # which matters if nothing lies in the folders
            unreachable, checksum = error, None
        check = partial(unpack.verify, archive=archive, checksum=checksum)
        path = _take_from_folders(archive, config, check)
        if path is None and unreachable:
            raise unreachable
        if path is None and not (archive.url or mirror):
            raise _not_there(name, config)
        if path is None and lacking:
            print(f"{archive.file}{lacking} comes from {_home(archive)}.", file=sys.stderr)
        path = path or _fetch_remote(archive, config.raw / archive.file, mirror, check)
    except (OSError, ValueError) as error:
        if is_full(error):
            raise explain(error, f"{archive.file} could not be stored", config.raw) from error
        raise AgelibError(
            f"{archive.file}{lacking} could not be fetched from {mirror or _home(archive)} "
            f"({transfer.reason(error)}): {_alternatives(dataset, config)}"
        ) from error
    write_metadata(path)
    return path


def extract(name: str, config: Config) -> Path:
    """Unpacks a data set's archive, once, and returns the folder with the images.

    Without the archive its folder will do. Raises AgelibError if both are missing, the folder is
    another one, the archive is damaged or unsafe, or the disk is full.
    """
    archive = find_dataset(name).archive
    source, target = _verified(archive, config), config.raw / archive.folder
    source = source or config.raw / archive.file
    if not source.exists():
        if target.is_dir():
            return target
        raise AgelibError(f"{source} is missing: run the download step (notebook 01) first.")
    origin, unpacked = read_metadata(source) or write_metadata(source), read_origin(target)
    if target.is_dir() and unpacked is None:
        raise AgelibError(
            f"{target} is there already, but nothing shows that it comes from {source.name}: move "
            "it to another folder, or delete it, and run this again."
        )
    if target.is_dir() and unpacked == origin:
        return target
    try:
        with explained(f"{source} could not be unpacked", source, target.parent):
            unpack.unpack(source, archive, target, origin)
    except ValueError as error:
        metadata_path(source).unlink()  # whoever mends the archive wants it verified anew
        raise AgelibError(
            f"{source} cannot be unpacked ({error}): delete it and run the download step again."
        ) from error
    return target


def find_sha256(file: str, sums: str) -> unpack.Checksum:
    """Returns a file's checksum if it is among the lines that `sha256sum` wrote."""
    for line in sums.splitlines():
        digest, _, name = line.strip().partition(" ")
        if name.strip().removeprefix("*").removeprefix("./") == file:
            return "sha256", digest
    return None


def _is_sample(archive: Archive, config: Config) -> bool:
    """Tells whether an archive is one of the sample's, whose namesakes are other images."""
    return config.profile == "sample" and archive.url is not None


def _verified(archive: Archive, config: Config) -> Path | None:
    official = _is_sample(archive, config)
    paths = [config.raw / archive.file] if official else archive.find_in(config.raw)
    return next((path for path in paths if read_metadata(path)), None)


def _home(archive: Archive) -> str:
    return (archive.url or "").partition("?")[0]  # without what only a machine reads


def _kaggle_page(archive: Archive) -> str:
    return f"https://www.kaggle.com/datasets/{archive.kaggle}"


def _folders(config: Config) -> list[Path]:
    return [config.raw, config.drive / "archives"]


def _not_there(name: str, config: Config) -> AgelibError:
    archive, home = find_dataset(name).archive, find_dataset(name).home
    fetched = [name for name, dataset in DATASETS.items() if dataset.archive.url]
    return AgelibError(
        f"There are no images of {name}: put {archive.file} into "
        f"{' or '.join(map(str, _folders(config)))}, or a folder {config.raw / archive.folder}, "
        f"either with a {LABELS}{f' ({home}; data/README.md says how)' if home else ''}. Only "
        f"{', '.join(fetched)} are downloaded."
    )


def _alternatives(dataset: DataSet, config: Config) -> str:
    archive = dataset.archive
    if config.profile == "sample":
        return f"delete {config.mirror} and run the download step again."
    pages = [dataset.home, *([_kaggle_page(archive)] if archive.kaggle else [])]
    raw, drive = _folders(config)
    mirror = f"name a folder or an address that has {archive.file} in AGELIB_MIRROR"
    if config.mirror:
        mirror = "make AGELIB_MIRROR empty, to do without it, or name another in it"
    return (
        "try again later, or\n"
        f"- get it with your browser from {' or '.join(pages)} and put the file, as it is, into\n"
        f"  {drive} (make that folder if it is missing) or\n"
        f"  {raw};\n"
        f"  these names are recognised: {', '.join(archive.names)}; or\n"
        f"- {mirror};\n"
        "then run the download step again."
    )


def _take_from_folders(archive: Archive, config: Config, check: _Check) -> Path | None:
    """Returns the archive that the user put into a folder, copied to `data/raw` from another one.

    A copy of the official file must have its checksum, where one is known; any other file must be
    readable from end to end. What cannot be used is named on standard error and passed over, but
    for a wrong file in the archive's own place, which is an AgelibError.
    """
    official = config.raw / archive.file
    if official.exists() and not (archive.url and metadata_path(official).exists()):
        try:
            check(official)
        except (OSError, ValueError) as error:
            raise AgelibError(
                f"{official} is not the right archive ({error}): complete it, or delete it, and "
                "run the download step again."
            ) from error
        return official
    if _is_sample(archive, config):
        return None
    for path in [path for folder in _folders(config) for path in archive.find_in(folder)]:
        target = config.raw / path.name
        # What has changed since it was verified is fetched anew; other files are not written over.
        if path == official or (target.exists() and target not in (path, official)):
            continue
        verify = check if archive.is_official(path) else partial(check, checksum=None)
        try:
            if path == target:
                verify(path)
            else:
                transfer.download(str(path), target, verify)
        except (OSError, ValueError) as error:
            if is_full(error):
                raise
            print(f"{path} is not used for {archive.file}: {error}.", file=sys.stderr)
        else:
            print(f"{archive.file} comes from {path}.", file=sys.stderr)
            return target
    return None


def _fetch_remote(archive: Archive, target: Path, mirror: str | None, check: _Check) -> Path:
    try:
        address = f"{mirror}/{archive.file}" if mirror else archive.url
        return transfer.download(address, target, check)
    except (OSError, ValueError) as error:
        if mirror or not archive.kaggle or is_full(error):
            raise
        why = transfer.reason(error)
    print(
        f"{archive.file} is fetched from Kaggle ({_kaggle_page(archive)}), since it could not be "
        f"fetched from {_home(archive)} ({why}).",
        file=sys.stderr,
    )
    try:  # a public data set takes no account
        zip_file = target.with_name(f"{Path(archive.kaggle).name}.zip")
        check = partial(check, checksum=None)
        return transfer.download(f"{_KAGGLE}/{archive.kaggle}", zip_file, check)
    except (OSError, ValueError) as error:
        if is_full(error):
            raise
        raise OSError(f"{why}; from Kaggle: {transfer.reason(error)}") from error


def _checksum(archive: Archive, mirror: str | None) -> unpack.Checksum:
    """Returns the checksum that a mirror gives, if any, or without a mirror the official one."""
    if mirror is None:
        return archive.md5 and ("md5", archive.md5)
    return find_sha256(archive.file, transfer.read_text(f"{mirror}/SHA256SUMS"))
