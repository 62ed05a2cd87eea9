"""Settings, the profiles that set them, and where things lie."""

import dataclasses
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, get_args, get_origin

from joblib import cpu_count

from agelib import AgelibError
from agelib.backbones import BACKBONES, DROP_CONNECT_RATE

_REAL: dict[str, Any] = {"keep_near_duplicates": False, "workers": cpu_count()}
_PAPER: dict[str, Any] = {
    **_REAL,
    "backbone": "EfficientNetB4",
    "weights": "imagenet",
    "crop_size": 160,
    "epochs": 35,
    "batch_size": 64,
}
# A few photos are enough to fine-tune a model that knows faces.
_OWN: dict[str, Any] = {
    **_REAL,
    "train_sources": ("own",),
    "test_sources": ("own",),
    "backbone": "EfficientNetLite0",
    "weights": "agelib",
    "crop_size": 128,
    "margin": 0.1,
}

PROFILES: dict[str, dict[str, Any]] = {
    "sample": {},
    "wiki": _PAPER,
    "imdb-wiki": {**_PAPER, "train_sources": ("wiki", "imdb")},
    "own": _OWN,
}
WEIGHTS = ("imagenet", "noisy-student", "agelib")
PRETRAINED_BACKBONE = "EfficientNetLite0"
WEIGHT_FILES = (".keras", ".h5", ".npz")


@dataclass(frozen=True)
class Crop:
    """How a face is cut out of an image."""

    size: int  # pixels per side
    margin: float  # widening of the face's box on each side, in box widths
    align: bool = False  # whether the face is turned so that its eyes are level

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Crop":
        """Returns the crop that a manifest or a model file stores; the first ones had no align."""
        return cls(stored["crop_size"], stored["margin"], stored.get("align", False))

    def to_json(self) -> dict[str, Any]:
        """Returns what manifests and model files store, under the names of `Config`'s fields."""
        return {"crop_size": self.size, "margin": self.margin, "align": self.align}

    def check(self, stored: "Crop", *folders: Path, user: str = "this run") -> None:
        """Raises AgelibError if stored faces were cut out otherwise, as the crop `stored` says.

        `folders` has where they lie, and after that their copies; `user` is who needs them.
        """
        if stored != self:
            raise AgelibError(
                f"{folders[0]} holds crops of {stored}, but {user} needs {self}: use the same "
                f"settings, or delete {' and '.join(map(str, folders))} and clean again."
            )

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.to_json().items())


def on_colab() -> bool:
    """Tells whether this process runs in Google Colab."""
    return "COLAB_RELEASE_TAG" in os.environ


def _default_data() -> Path:
    root = Path(__file__).resolve().parents[1]
    # A checkout has a folder for it; an installed package must not write beside other packages.
    home = root if (root / "pyproject.toml").is_file() else Path.cwd()
    return Path(os.environ.get("AGELIB_DATA") or home / "data")


def _setting(default: Any, text: str) -> Any:
    """Returns a dataclass field whose help text the command line shows."""
    return field(default=default, metadata={"help": text})


# The types of a field with one value, what they take, and what to call that.
_TYPES = {
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "True or False"),
    str: (str, "text"),
    Path: (str | os.PathLike, "the path of a folder"),
}


def _check_type(name: str, value: Any, annotation: Any) -> None:
    [kind] = {annotation, *get_args(annotation)} & set(_TYPES)
    kinds, wanted = _TYPES[kind]
    if value is None and type(None) in get_args(annotation):
        return
    # True is an integer to Python.
    if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
        raise AgelibError(f"{name} is {value!r}, but must be {wanted}.")


def _are_folder_names(values: tuple[str, ...]) -> bool:
    return bool(values) and all(Path(v).name == v not in ("", "..") for v in values)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one project run; make one with `Config.from_profile`.

    The defaults are the `sample` profile's. Every field is an option of the command line.
    """

    profile: str = _setting(
        "sample", "sample (the default), wiki, imdb-wiki or own; gives the other defaults"
    )
    train_sources: tuple[str, ...] = _setting(
        ("wiki",),
        "data sets that give train and val: wiki, imdb, utkface, own, or the name of any folder or "
        "zip file with a labels.csv",
    )
    test_sources: tuple[str, ...] = _setting(("utkface",), "data sets for test, the main one first")
    backbone: str = _setting("EfficientNetB0", f"one of {', '.join(BACKBONES)}")
    weights: str | None = _setting(
        None, "none, imagenet, noisy-student, agelib (pretrained), or a .keras, .h5 or .npz file"
    )
    teachers: tuple[str, ...] = _setting(
        (),
        "models whose answers are learned beside the labels (knowledge distillation): agelib, or "
        ".keras files",
    )
    crop_size: int = _setting(64, "pixels of a stored face, per side")
    image_size: int | None = _setting(None, "pixels the network sees, per side; default: crop_size")
    margin: float = _setting(0.0, "widening of the face box on each side, in box widths")
    align: bool = _setting(False, "turn each face so that its eyes are level")
    keep_near_duplicates: bool = _setting(
        True, "train on near-duplicates of held-out faces too (the sample is one portrait)"
    )
    val_fraction: float = _setting(
        0.15, "share of the people held out for val, and the same for test if a set is for both"
    )
    epochs: int = _setting(12, "passes over the train faces")
    head_epochs: int | None = _setting(
        None, "first epochs, which train the heads only; default: 3 if the weights have no heads"
    )
    batch_size: int = _setting(32, "faces per training step")
    learning_rate: float | None = _setting(
        None,
        "peak learning rate, five times that while only the heads learn; default: 3e-3 from "
        "scratch, 5e-4 from weights, times the root of batch_size / 32",
    )
    drop_connect_rate: float | None = _setting(
        None, "how often the last block is left out; default: 0 from scratch, 0.2 from weights"
    )
    seed: int = _setting(0, "seed of initial weights, shuffling and augmentation")
    run: str = _setting("sample", "name of the run; its folder is runs/<name>")
    workers: int = _setting(1, "processes that clean images side by side")
    own: Path | None = field(
        default=None,
        repr=False,
        metadata={"help": "folder of your images and labels.csv: the data set own"},
    )
    data: Path = field(
        default_factory=_default_data,
        repr=False,
        metadata={
            "help": "folder for all data; default: data/ in the project's folder or, if agelib is "
            "installed, in the working folder"
        },
    )

    def __post_init__(self) -> None:
        """Raises AgelibError if a value is of another type, out of range, or unknown."""
        for f in dataclasses.fields(self):
            value, is_list = getattr(self, f.name), get_origin(f.type) is tuple
            several = is_list and isinstance(value, Iterable) and not isinstance(value, str)
            values = tuple(value) if several else (value,)
            for each in values:
                _check_type(f.name, each, f.type)
            if is_list:
                object.__setattr__(self, f.name, tuple(dict.fromkeys(values)))
        # Absolute, since processes on other machines have other working directories.
        object.__setattr__(self, "data", Path(self.data).expanduser().absolute())
        if self.own is not None:
            object.__setattr__(self, "own", Path(self.own).expanduser().absolute())
        object.__setattr__(self, "weights", None if self.weights == "none" else self.weights)
        for fits, name, wanted in self._checks():
            if not fits:
                raise AgelibError(f"{name} is {getattr(self, name)!r}, but must be {wanted}.")

    @property
    def resolved(self) -> "Config":
        """The same settings, with values for those that follow from others."""
        # The rate's part of the rule in Malladi et al., "On the SDEs and Scaling Rules for
        # Adaptive Gradient Algorithms", NeurIPS 2022.
        rate = (self.batch_size / 32) ** 0.5 * (5e-4 if self.weights else 3e-3)
        derived = {
            "image_size": self.crop_size,
            # A .keras file has trained heads.
            "head_epochs": min(3 if self.new_heads else 0, self.epochs - 1),
            "learning_rate": rate,
            # Few epochs from scratch learn too little, not too much.
            "drop_connect_rate": DROP_CONNECT_RATE if self.weights else 0.0,
        }
        missing = {name: value for name, value in derived.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **missing) if missing else self

    def _checks(self) -> list[tuple[bool, str, str]]:
        """Returns whether each field is valid, its name, and what it must be."""
        named = "names of data sets, without slashes"
        known_weights = (
            self.weights in (None, *WEIGHTS) or Path(self.weights).suffix in WEIGHT_FILES
        )
        fits_pretrained = self.weights != "agelib" or self.backbone == PRETRAINED_BACKBONE
        head_epochs, drop_connect = self.head_epochs or 0, self.drop_connect_rate or 0
        rate = 1 if self.learning_rate is None else self.learning_rate
        return [
            (not self.data.is_file(), "data", "a folder"),
            (self.profile in PROFILES, "profile", f"one of {', '.join(PROFILES)}"),
            (_are_folder_names(self.train_sources), "train_sources", named),
            (_are_folder_names(self.test_sources), "test_sources", named),
            (self.backbone in BACKBONES, "backbone", f"one of {', '.join(BACKBONES)}"),
            (
                known_weights,
                "weights",
                f"none, {', '.join(WEIGHTS)}, or a .keras, .h5 or .npz file",
            ),
            (
                all(name == "agelib" or Path(name).suffix == ".keras" for name in self.teachers),
                "teachers",
                "agelib or .keras files",
            ),
            (fits_pretrained, "backbone", f"{PRETRAINED_BACKBONE} for the weights agelib"),
            (32 <= self.crop_size <= 600, "crop_size", "from 32 to 600 pixels"),
            (32 <= (self.image_size or 32) <= 600, "image_size", "from 32 to 600 pixels"),
            (0 <= self.margin <= 2, "margin", "from 0 to 2 box widths"),
            (0 < self.val_fraction <= 0.5, "val_fraction", "above 0 and up to 0.5"),
            (
                self.val_fraction < 0.5 or not set(self.train_sources) & set(self.test_sources),
                "val_fraction",
                "below 0.5 for a set to train and to test on",
            ),
            (self.epochs >= 1, "epochs", "1 or more"),
            (0 <= head_epochs < self.epochs, "head_epochs", "from 0 to less than epochs"),
            (self.new_heads or not head_epochs, "head_epochs", "0 unless weights are ImageNet's"),
            (self.batch_size >= 2, "batch_size", "2 or more"),
            (0 < rate < math.inf, "learning_rate", "a finite number above 0"),
            (0 <= drop_connect < 1, "drop_connect_rate", "from 0 to less than 1"),
            (0 <= self.seed < 2**32, "seed", "from 0 to 4294967295"),
            (self.workers >= 1, "workers", "1 or more"),
            (_are_folder_names((self.run,)), "run", "a plain name without slashes"),
            (
                self.run != "agelib",
                "run",
                "another name, as this one stands for the pretrained model",
            ),
        ]

    @classmethod
    def from_profile(cls, profile: str = "sample", **overrides: Any) -> "Config":
        """Returns a profile's settings with some of them changed; None keeps the profile's value.

        Raises AgelibError if the profile or a field is unknown, or a value cannot work.
        """
        unknown = set(overrides) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise AgelibError(f"Unknown setting {', '.join(sorted(unknown))}.")
        given = {name: value for name, value in overrides.items() if value is not None}
        preset = PROFILES.get(profile, {})  # the profile is checked with the other settings
        return cls(**{"profile": profile, "run": profile, **preset, **given})

    @property
    def new_heads(self) -> bool:
        """Whether the weights are a backbone's only, such as ImageNet's."""
        return self.weights not in (None, "agelib") and Path(self.weights).suffix != ".keras"

    @property
    def unrelated_to_training(self) -> tuple[str, ...]:
        """Settings that may change while a run goes on: none of them reaches the model."""
        # Train faces that nearly equal a test face are left out.
        return ("profile", "run", *(("test_sources",) if self.keep_near_duplicates else ()))

    @property
    def folder(self) -> Path:
        """The sample has a folder of its own, so that it never mixes with real data."""
        return self.data / "sample" if self.profile == "sample" else self.data

    @property
    def raw(self) -> Path:
        """Archives and what they hold."""
        return self.folder / "raw"

    @property
    def faces(self) -> Path:
        """Shards of face crops, one folder for each data set."""
        return self.folder / "faces"

    @property
    def run_folder(self) -> Path:
        """Everything that belongs to this run."""
        return self.folder / "runs" / self.run

    @property
    def logs(self) -> Path:
        """TensorBoard's files of this run; never on Drive, which stores no growing files."""
        return self.folder / "logs" / self.run

    @property
    def drive(self) -> Path:
        """The folder for what must last: on Google Drive, `AGELIB_DRIVE`, or a plain one."""
        if on_colab():
            home = Path("/content/drive/MyDrive/age_gender")
        elif os.environ.get("AGELIB_DRIVE"):
            home = Path(os.environ["AGELIB_DRIVE"]).expanduser() / "age_gender"
        else:
            return self.folder / "drive"
        return home / "sample" if self.profile == "sample" else home

    @property
    def mirror(self) -> str | None:
        """Folder or URL to take archives from instead of their homes."""
        if self.profile == "sample":
            return str(self.folder / "mirror")
        return os.path.expanduser(os.environ.get("AGELIB_MIRROR", "")) or None

    @property
    def sources(self) -> tuple[str, ...]:
        """Every data set this configuration needs, train sources first."""
        return tuple(dict.fromkeys((*self.train_sources, *self.test_sources)))

    @property
    def crop(self) -> Crop:
        """How faces are cut out."""
        return Crop(self.crop_size, self.margin, self.align)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON types, without those that only concern this machine."""
        here = ("data", "own", "workers")
        settings = {k: v for k, v in dataclasses.asdict(self.resolved).items() if k not in here}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><code>{f.name}</code></td>"
            f"<td>{escape(str(getattr(self.resolved, f.name)))}</td>"
            f"<td style='text-align:left'>{escape(f.metadata['help'])}</td></tr>"
            for f in dataclasses.fields(self)
            if f.repr
        )
        return f"<table><tr><th>setting</th><th>value</th><th>what it is</th></tr>{rows}</table>"


def checkpoint_path(folder: Path) -> Path:
    """Returns where a run keeps its last finished epoch."""
    return folder / "checkpoints" / "last.keras"
