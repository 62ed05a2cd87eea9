"""Estimates of many photos, drawn and written one photo after the other."""

import csv
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from agelib import AgelibError, first_line
from agelib.files import atomic, read_json, sha256, write_json
from agelib.plots import annotate
from agelib.prediction.estimator import Estimate, Estimator
from agelib.prediction.photos import PICTURE_SUFFIX, Photo, name_picture, read_photos

COLUMNS = (
    *("photo", "face", "left", "top", "right", "bottom", "confidence", "age", "age_low"),
    *("age_high", "age_branch", "age_branch_probability", "gender", "gender_probability"),
    *("quality", "rotated", "picture", "note"),
)


@dataclass(frozen=True)
class Result:
    """What is known of one photo.

    Attributes:
        photo: Its name, as `Photo` has it.
        estimates: One a face, from left to right.
        error: Why the photo could not be read, or "".
        picture: Where the annotated picture is, or "".
        picture_error: Why it could not be written, or "".
    """

    photo: str
    estimates: Sequence[Estimate] = ()
    error: str = ""
    picture: str = ""
    picture_error: str = ""

    def __str__(self) -> str:
        """The photo and its faces, a line each."""
        if self.error:
            return self.error
        count = len(self.estimates)
        lines = [f"{self.photo}: {count or 'no'} face{'s' * (count > 1)}"]
        lines += [f"  {each}, at {tuple(each.box)}" for each in self.estimates]
        if self.picture:
            lines.append(f"  drawn in {self.picture}")
        return "\n".join([*lines, *filter(None, [self.picture_error])])

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON types; of the last three attributes those that are not empty."""
        faces = [estimate.to_dict() for estimate in self.estimates]
        others = {name: getattr(self, name) for name in ("error", "picture", "picture_error")}
        return {"photo": self.photo, "faces": faces} | {k: v for k, v in others.items() if v}

    def to_rows(self) -> list[dict[str, Any]]:
        """Returns a row of `COLUMNS` for each face, or one that says why there is none."""
        note = self.error or self.picture_error or ("" if self.estimates else "no face")
        photo = {"photo": self.photo, "picture": self.picture, "note": note}
        faces = enumerate(self.estimates, 1)
        return [photo | {"face": i} | each.to_row() for i, each in faces] or [photo]


def predict_photos(
    estimator: Estimator,
    places: Sequence[str | Path],
    pictures: Path | None = None,
    table: Path | None = None,
) -> Iterator[Result]:
    """Estimates photos one after the other; what has been yielded is drawn and written.

    Args:
        estimator: The model.
        places: From `agelib.prediction.photos.find_photos`.
        pictures: A folder for annotated pictures.
        table: A CSV file for the rows of all photos. Where a call is stopped, the next one with the
            same model goes on after the last photo in it.

    Yields:
        What is known of each photo that the table does not hold yet.

    Raises:
        AgelibError: If no folder can be made, or no row written.
    """
    pictures, table = (place and Path(place) for place in (pictures, table))
    _prepare(pictures, table)
    if not table:
        yield from _results(estimator, places, pictures, [])
        return
    try:
        with _table(table, sha256(estimator.path), places) as (known, write):
            for result in _results(estimator, places, pictures, known):
                write(result.to_rows())
                yield result
    except OSError as error:
        raise AgelibError(
            f"{table} cannot be written ({first_line(error)}): make room, or name another --csv. "
            "The photos before are in it, and the same command goes on from there."
        ) from error


def _prepare(pictures: Path | None, table: Path | None) -> None:
    if pictures and pictures.is_file():
        raise AgelibError(f"{pictures} is a file: name a folder as --output.")
    if table and (table.is_dir() or not table.absolute().parent.is_dir()):
        raise AgelibError(f"{table} cannot be written: name a file, in a folder that exists.")
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)


def _results(
    estimator: Estimator,
    places: Sequence[str | Path],
    pictures: Path | None,
    known: Sequence[dict[str, str]],
) -> Iterator[Result]:
    names = {row["photo"] for row in known}
    taken = {Path(row["picture"]).name.removesuffix(PICTURE_SUFFIX).lower() for row in known}
    photos = read_photos(place for place in places if str(place) not in names)
    to_do = (photo for photo in photos if photo.name not in names)
    for photo, estimates in estimator.predict_all(to_do):
        result = Result(photo.name, estimates, photo.error)
        yield _draw(result, photo, pictures, taken) if pictures and not photo.error else result


def _draw(result: Result, photo: Photo, folder: Path, taken: set[str]) -> Result:
    path = folder / name_picture(photo.name, taken)
    try:
        with atomic(path) as partial:
            annotate(photo.image, result.estimates).savefig(partial, format="png")
    except OSError as error:
        why = f"{path} could not be written ({first_line(error)}): make room there."
        return replace(result, picture_error=why)
    return replace(result, picture=str(path))


@contextmanager
def _table(
    path: Path, model: str, places: Sequence[str | Path]
) -> Iterator[tuple[list[dict[str, str]], Callable]]:
    """Opens a CSV file that grows photo by photo; a mark beside it says that it is unfinished.

    Yields:
        The rows of `places` that a call which was stopped has left, and what adds a photo's.
    """
    mark = path.with_name(f".{path.name}.unfinished.json")
    # A pipe or a device keeps nothing to go on from.
    regular = path.is_file() or not path.exists()
    known = _known_rows(path, mark, model, places) if regular else []
    if regular:
        write_json(mark, {"model": model})
        with atomic(path) as partial, _open(partial, "w") as file:
            file.write("\ufeff")  # by which Excel knows UTF-8
            _write(file, known, header=True)
    with _open(path, "a" if regular else "w") as file:
        _write(file, [], header=not regular)
        yield known, functools.partial(_write, file)
        if regular:
            os.fsync(file.fileno())
    mark.unlink(missing_ok=True)


def _known_rows(
    path: Path, mark: Path, model: str, places: Sequence[str | Path]
) -> list[dict[str, str]]:
    if not (path.exists() and mark.exists() and read_json(mark) == {"model": model}):
        return []
    with _open(path, "r") as file:
        file.read(1)
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    # The rows of the last photo may be cut off, and a call with other photos may have written them.
    rows = [row for row in rows if row["photo"] != rows[-1]["photo"]]
    asked = set(map(str, places))  # the name of a video's image is "VIDEO at N s"
    return [row for row in rows if asked & {row["photo"], row["photo"].rpartition(" at ")[0]}]


def _open(path: Path, mode: str) -> IO[str]:
    return open(path, mode, newline="", encoding="utf-8", errors="surrogateescape")


def _write(file: IO[str], rows: Iterable[dict[str, Any]], header: bool = False) -> None:
    """Writes rows; they are in the file when this returns."""
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    file.flush()
