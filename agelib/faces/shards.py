"""Shards: many faces in two .npy files that load without pickle and map into memory.

`<name>.images.npy` holds JPEG files end to end, uint8; `<name>.index.npy` says, face by face, where
each one lies and who it shows. `manifest.json` lists every shard with its size and SHA-256.
"""

import copy
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agelib import AgelibError
from agelib.config import Crop
from agelib.files import atomic, read_json, remove_partials, sha256
from agelib.labels import age_branch

FORMAT = 2
JPEG_QUALITY = 90
MANIFEST = "manifest.json"


def index_type(path_bytes: int) -> np.dtype:
    """Returns the type of an index entry with paths of at most `path_bytes`."""
    return np.dtype(
        [
            ("offset", "<i8"),
            ("length", "<i4"),
            ("age", "<i2"),  # the lowest year of a range
            ("age_high", "<i2"),  # the highest year of a range, else equal to age
            ("gender", "i1"),
            ("race", "i1"),  # numbers the manifest's races; -1 where unknown
            ("person", "<u8"),
            ("path", f"S{path_bytes}"),
        ]
    )


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encodes RGB uint8 of shape (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def decode_jpeg(content: bytes) -> np.ndarray:
    """Decodes to RGB uint8 of shape (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(content)))


def write_shard(folder: Path, name: str, jpegs: Sequence[bytes], rows: Sequence[dict]) -> dict:
    """Writes a shard's two files, each completely or not at all.

    `name` is for example "train-00000"; of each face `jpegs` has the JPEG file, and `rows` age,
    age_high, gender, race, person (a hash) and path. Returns file name -> {"size", "sha256"}.
    """
    paths = [os.fsencode(row["path"]) for row in rows]
    index = np.zeros(len(rows), index_type(max(map(len, paths), default=1)))
    index["length"] = [len(jpeg) for jpeg in jpegs]
    index["offset"] = np.cumsum(index["length"], dtype=np.int64) - index["length"]
    index["path"] = paths
    for field in ("age", "age_high", "gender", "race", "person"):
        index[field] = [row[field] for row in rows]
    images = np.frombuffer(b"".join(jpegs), np.uint8)
    files = {}
    for kind, array in (("images", images), ("index", index)):
        path = folder / f"{name}.{kind}.npy"
        remove_partials(path)
        with atomic(path) as partial, open(partial, "wb") as file:
            np.save(file, array, allow_pickle=False)
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    return files


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns a face set's manifest; AgelibError if it is missing or of another format."""
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise AgelibError(f"{path} is missing: run the clean step (notebook 02 or 07) first.")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise AgelibError(f"{path} is no manifest: delete {folder} and clean again.")
    if manifest["format"] != FORMAT:
        raise AgelibError(
            f"{path} has format {manifest['format']}, but this version of agelib reads format "
            f"{FORMAT}: delete {folder} (and its copy on Drive) and clean again."
        )
    return manifest


def read_crop(folder: Path) -> Crop:
    """Returns how the faces of a set were cut out; raises like `read_manifest`."""
    return Crop.from_json(read_manifest(folder)["crop"])


def damaged_shards(folder: Path) -> list[str]:
    """Returns the shards of a face set whose size or SHA-256 differs from the manifest's."""
    shards = read_manifest(folder)["shards"].items()
    return [name for name, shard in shards if not is_intact(folder, shard, hashes=True)]


def is_intact(folder: Path, shard: dict, *, hashes: bool) -> bool:
    """Tells whether a shard's files have the recorded sizes and, if asked, the recorded hashes."""
    for name, expected in shard["files"].items():
        path = Path(folder) / name
        if not path.exists() or path.stat().st_size != expected["size"]:
            return False
        if hashes and sha256(path) != expected["sha256"]:
            return False
    return True


def fingerprint(folder: Path) -> str:
    """Returns a checksum of all faces of a set; it does not depend on versions of libraries."""
    files = [shard["files"] for shard in read_manifest(folder)["shards"].values()]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


class FaceSet:
    """The faces of one split of one or several data sets, decoded on demand.

    `folders` are face sets, such as `data/faces/wiki`; `split` is "train", "val" or "test". Raises
    AgelibError if there are no such faces, or a shard cannot be read.

    Attributes:
        crop_size: Pixels per side of each face.
        index: The shards' entries, see `index_type`.
        age: Whole years, the lowest of a range, int64 of shape (n,).
        age_high: The highest year of a range, equal to an exact `age`, int64 of shape (n,).
        gender: 0 Male, 1 Female, int64 of shape (n,).
        race: Indices of the names in `races`, -1 where unknown, int64 of shape (n,).
        source: Indices of the data sets in `sources`, int64 of shape (n,).
        person: Hashes that say whose face it is, uint64 of shape (n,).
    """

    def __init__(self, folders: Sequence[Path], split: str):
        manifests = [read_manifest(folder) for folder in folders]
        crop = Crop.from_json(manifests[0]["crop"])
        self.split, self.crop_size = split, crop.size
        self.sources = tuple(manifest["dataset"] for manifest in manifests)
        self._images: list[np.ndarray] = []
        parts, codes = [], {}
        for source, (folder, manifest) in enumerate(zip(folders, manifests, strict=True)):
            crop.check(Crop.from_json(manifest["crop"]), folder, user=f"{folders[0]} beside it")
            # Two sets may number the same races otherwise; -1 takes the last.
            races = [*(codes.setdefault(race, len(codes)) for race in manifest["races"]), -1]
            for name in manifest["shards"]:
                if name.startswith(f"{split}-"):
                    index = _load(Path(folder) / f"{name}.index.npy")
                    race = np.array(races, np.int64)[index["race"]]
                    shard = np.full(len(index), len(self._images))
                    parts.append((index, race, shard, np.full(len(index), source)))
                    self._images.append(_load(Path(folder) / f"{name}.images.npy"))
        if not any(len(index) for index, *_ in parts):
            places = ", ".join(map(str, folders))
            raise AgelibError(
                f"{places} holds no {split} faces: run the clean step (notebook 02 or 07)."
            )
        self.races = tuple(codes)
        self._set_faces(*map(np.concatenate, zip(*parts, strict=True)))

    def _set_faces(
        self, index: np.ndarray, race: np.ndarray, shard: np.ndarray, source: np.ndarray
    ) -> None:
        self.index, self.race, self._shard, self.source = index, race, shard, source
        self.age, self.age_high = index["age"].astype(np.int64), index["age_high"].astype(np.int64)
        self.gender, self.person = index["gender"].astype(np.int64), index["person"]

    def select(self, chosen: np.ndarray) -> "FaceSet":
        """Returns some of the faces: those of a mask, or of numbers."""
        part, fields = copy.copy(self), (self.index, self.race, self._shard, self.source)
        part._set_faces(*(field[chosen] for field in fields))
        return part

    def __len__(self) -> int:
        return len(self.index)

    @property
    def age_branch(self) -> np.ndarray:
        """0 to 4, that of the middle year of a range, int64 of shape (n,)."""
        return age_branch((self.age + self.age_high) // 2)

    @property
    def paths(self) -> list[str]:
        """Where each face comes from, relative to its data set's folder."""
        return [os.fsdecode(path) for path in self.index["path"]]

    def jpeg(self, i: int) -> bytes:
        """Returns the JPEG file of face `i`."""
        start, length = self.index["offset"][i], self.index["length"][i]
        return self._images[self._shard[i]][start : start + length].tobytes()

    def image(self, i: int) -> np.ndarray:
        """Returns face `i`, RGB uint8 of shape (crop_size, crop_size, 3)."""
        return decode_jpeg(self.jpeg(i))

    def batches(self, batch_size: int = 256) -> Iterator[np.ndarray]:
        """Yields all faces in order, uint8 of shape (up to batch_size, crop_size, crop_size, 3)."""
        for start in range(0, len(self), batch_size):
            stop = min(start + batch_size, len(self))
            yield np.stack([self.image(i) for i in range(start, stop)])


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise AgelibError(
            f"{path} is missing or damaged ({error}): run the clean step again, it rebuilds only "
            "this shard."
        ) from error
