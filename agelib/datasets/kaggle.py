"""The way round by Kaggle, which has some data sets in a layout of its own."""

import os
import zipfile
from pathlib import Path

from agelib import first_line
from agelib.datasets import transfer, unpack
from agelib.datasets.archives import Archive
from agelib.files import need_space

_API = "https://www.kaggle.com/api/v1/datasets/download"
# What kagglehub keeps for a while of the one data set that is asked for: its zip file and the
# images, which are there twice.
_CACHE_BYTES = 800_000_000


def page(archive: Archive) -> str:
    """Returns the address of a data set's page, to download it by hand."""
    return f"https://www.kaggle.com/datasets/{archive.kaggle}"


def fetch(archive: Archive, target: Path) -> None:
    """Fetches a public data set, which takes no account, and packs it as its authors do.

    Colab has kagglehub, which may have the data at hand; elsewhere the zip file is downloaded.

    Args:
        archive: What to make.
        target: Where to.

    Raises:
        AgelibError: If there is no space.
        OSError: If it cannot be had.
        ValueError: If it holds something else.
    """
    try:
        import kagglehub
    except ImportError:
        source = target.with_name(f"{Path(archive.kaggle).name}.zip")
        transfer.download(f"{_API}/{archive.kaggle}", source, _check_zip)
        unpack.pack(source, archive, target)
        source.unlink()
        return
    cache = Path(os.environ.get("KAGGLEHUB_CACHE") or Path.home() / ".cache" / "kagglehub")
    if not (cache / "datasets" / archive.kaggle).exists():
        need_space(cache, _CACHE_BYTES)
    try:
        folder = Path(kagglehub.dataset_download(archive.kaggle))
    except OSError:
        raise  # requests' errors are among them
    # kagglehub speaks of other errors in exceptions of its own, all of them Exception.
    except Exception as error:
        raise OSError(first_line(error)) from error
    unpack.pack(folder, archive, target)


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        raise OSError("what Kaggle sent is no zip file, or not all of it")
