"""Age and gender estimation from face photos, from raw archives to a model one can use.

The rooms follow the notebooks, and a room knows only those before it: `datasets` and `drive`,
`faces`, `model`, `training` and `evaluation`, `prediction`. Below them are `labels`, `backbones`,
`config`, `files`, `disk_errors` and `backend`. `plots`, which draws the figures, lies between
`evaluation` and `prediction`. Above all of them are `steps`, `release` and `commands`.

Importing the package loads no TensorFlow; the modules that need it do that themselves.
"""

import importlib
import os
from typing import Any

__version__ = "0.6.0"

# Must be set before TensorFlow loads, whichever module gets there first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ["KERAS_BACKEND"] = "tensorflow"


class AgelibError(Exception):
    """Something the user can mend; its text says in a sentence what, where and what to do."""

    def _render_traceback_(self) -> list[str]:
        """Shows only the sentence in a notebook; IPython looks this method up by name."""
        return [f"agelib: {self}"]


def first_line(error: Exception) -> str:
    """Returns what an error says: the system's words, or the text without the pages some append."""
    said = getattr(error, "strerror", None) or str(error)
    return said.strip().split("\n")[0]


def missing_package(error: ModuleNotFoundError) -> str:
    """Returns a sentence about a package that is not installed, and how to install it.

    Raises the error itself if a module of agelib is missing, which no installation would mend.
    """
    if error.name and error.name.split(".")[0] == __name__:
        raise error
    missing = f"The package {error.name} is not installed" if error.name else first_line(error)
    return (
        f"{missing}: run python -m pip install -r requirements.txt in the project's folder (if you "
        "have a virtual environment, activate it first)."
    )


# What a notebook imports. Written out, as lazy_loader too may be missing.
_CLASSES = {"Config": "config", "Estimator": "prediction.estimator", "FaceSet": "faces.shards"}
__all__ = [*_CLASSES, "drive", "plots", "steps"]


def __getattr__(name: str) -> Any:
    """Loads a name when it is first used; raises AgelibError if a package for it is missing."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__name__}.{_CLASSES.get(name, name)}")
    except ModuleNotFoundError as error:
        raise AgelibError(missing_package(error)) from error
    return getattr(module, name) if name in _CLASSES else module


def __dir__() -> list[str]:
    return __all__
