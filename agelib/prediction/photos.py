"""Photos from wherever they are: files, folders, patterns, addresses, videos, or memory."""

import glob
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlparse

import cv2
import numpy as np
import requests
from PIL import Image

from agelib import AgelibError, __version__
from agelib.faces.images import Rejected, read_image
from agelib.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files

PICTURE_SUFFIX = ".estimates.png"
_SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES
_LARGEST = 100_000_000  # bytes of a download
_LONGEST_NAME = 120  # bytes, as file systems count them
_SECONDS = 30  # of silence, until a download is given up


@dataclass(frozen=True)
class Photo:
    """One photo of many, read or not.

    Attributes:
        name: Where it is from; of a video's frame, with the second.
        image: RGB uint8 of shape (height, width, 3), or None if it cannot be read.
        error: Why it cannot be, in a sentence; empty if it can.
    """

    name: str
    image: np.ndarray | None
    error: str = ""


def read_photo(
    source: str | Path | bytes | bytearray | memoryview | np.ndarray | Image.Image,
) -> np.ndarray:
    """Returns a photo as RGB uint8 of shape (height, width, 3), which an array must be already.

    Args:
        source: A path, an http address, a file's bytes, an array, or a PIL image.

    Raises:
        AgelibError: If it cannot be had or read, or is an array of another form.
    """
    if isinstance(source, np.ndarray):
        return _check(source)
    if not _is_address(source):
        return read_image(source)
    try:
        return read_image(_download(source))
    except Rejected:
        raise AgelibError(f"{source} leads to no image that can be read.") from None


def find_photos(places: Sequence[str | Path]) -> list[str | Path]:
    """Returns the photos and videos that paths, patterns ("holiday/*.jpg") and addresses stand for.

    Folders are read at any depth. Annotated pictures (`*.estimates.png`) in one are no photos.

    Raises:
        AgelibError: If a place does not exist or a folder holds no photo.
    """
    return [photo for place in places for photo in _photos_at(place)]


def _photos_at(place: str | Path) -> list[str | Path]:
    if _is_address(place):
        return [str(place)]
    path = Path(place).expanduser()
    is_folder = path.is_dir()
    if path.exists() and not is_folder:  # a file may have brackets in its name
        return [path]
    found = sorted(filter(_is_photo, find_files(path) if is_folder else _matches(path)))
    if not found:
        why = f"holds no photo ({', '.join(_SUFFIXES)})" if is_folder else "does not exist"
        raise AgelibError(f"{place} {why}.")
    return found


def _matches(pattern: Path) -> Iterator[Path]:
    """Yields what fits a pattern; folders that it begins with may have brackets in their names."""
    start = next(folder for folder in (*pattern.parents, Path()) if folder.exists())
    rest = str(pattern.relative_to(start))
    return (start / name for name in glob.iglob(rest, root_dir=start, recursive=True))


def name_others(places: Iterable[str | Path]) -> str:
    """Returns a sentence that counts, by ending, what `find_photos` leaves out in folders, or "".

    Hidden files and pictures that `predict` drew do not count.
    """
    folders = [Path(place).expanduser() for place in places if not _is_address(place)]
    files = (path for folder in folders if folder.is_dir() for path in find_files(folder))
    others = Counter(
        path.suffix.lower() or "without ending"
        for path in files
        if not (_is_photo(path) or path.name.endswith(PICTURE_SUFFIX))
    )
    if not others:
        return ""
    kinds = ", ".join(f"{count:,} {ending}" for ending, count in others.most_common())
    return f"Neither photo nor video, left out: {kinds}."


def read_photos(places: Iterable[str | Path]) -> Iterator[Photo]:
    """Yields all photos of `find_photos`, read or not; of a video one frame each second."""
    for place in places:
        if is_video(place):
            yield from _frames(Path(place))
            continue
        try:
            yield Photo(str(place), read_photo(place))
        except AgelibError as error:
            yield Photo(str(place), None, str(error))


def name_picture(name: str, taken: set[str]) -> str:
    """Returns a file name for the picture of a photo, and adds it to those that are taken."""
    last = PurePosixPath(unquote(urlparse(name).path)) if _is_address(name) else Path(name)
    own = last.stem if last.suffix.lower() in IMAGE_SUFFIXES else last.name
    # What an address ends in may be no name for a file, or too long for one.
    own = re.sub(r"[^\w .()\[\]-]", "_", own).encode()[:_LONGEST_NAME].decode(errors="ignore")
    own = own or "photo"
    stems = chain([own], (f"{own}-{number}" for number in count(2)))
    # Some file systems take A.png and a.png for one file.
    stem = next(stem for stem in stems if stem.lower() not in taken)
    taken.add(stem.lower())
    return f"{stem}{PICTURE_SUFFIX}"


def _frames(path: Path) -> Iterator[Photo]:
    # FFmpeg takes what stands before a colon for a protocol, but for a full path.
    video = cv2.VideoCapture(str(path.absolute()))
    second = decoded = 0
    try:
        while video.grab():
            # By its own clock: the rate that a video names need not be its rate.
            position = video.get(cv2.CAP_PROP_POS_MSEC)
            if position < second * 1000:
                continue
            second = int(position // 1000)  # which may leave out some
            read, frame = video.retrieve()
            if read:
                decoded += 1
                yield Photo(f"{path} at {second} s", cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            second += 1
    finally:
        video.release()
    if not decoded:
        why = "cannot be read as a video (damaged, or of no common format)"
        yield Photo(str(path), None, f"{path} {why}.")


def _download(address: str) -> bytes:
    try:
        # Wikimedia and others refuse programs that do not name themselves.
        named = {"User-Agent": f"agelib/{__version__}"}
        with requests.get(address, headers=named, stream=True, timeout=_SECONDS) as answer:
            answer.raise_for_status()
            content = bytearray()
            for part in answer.iter_content(2**20):
                content += part
                if len(content) > _LARGEST:
                    raise AgelibError(f"{address} is larger than {_LARGEST // 10**6} MB.")
    except requests.HTTPError as error:
        raise AgelibError(
            f"{address} cannot be fetched (status {error.response.status_code})."
        ) from error
    # urllib3's errors on impossible names are of the second kind.
    except (requests.RequestException, ValueError) as error:
        raise AgelibError(
            f"{address} cannot be fetched: check the address and your connection."
        ) from error
    return bytes(content)


def is_video(place: str | Path) -> bool:
    """Tells whether a place that `find_photos` found is a video."""
    return Path(place).suffix.lower() in VIDEO_SUFFIXES and not _is_address(place)


def _is_address(place: str | Path | bytes) -> bool:
    return isinstance(place, str) and place.lower().startswith(("http://", "https://"))


def _is_photo(path: Path) -> bool:
    right = path.suffix.lower() in _SUFFIXES
    return right and path.is_file() and not path.name.endswith(PICTURE_SUFFIX)


def _check(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise AgelibError(
            f"The photo is {image.dtype} of shape {image.shape}, but must be RGB uint8 of shape "
            "(height, width, 3), as agelib.prediction.photos.read_photo returns it."
        )
    return image
