"""Age and gender estimation from face photos, from raw archives to a model one can use.

The rooms follow the notebooks, and a room knows only those before it: `datasets` and `drive`,
`faces`, `model`, `training` and `evaluation`, `prediction`. Below them are `labels`,
`backbones`, `config`, `files`, `disk` and `backend`, above them `plots`, `steps` and `commands`:
the story in order, as the notebooks and `python -m agelib` tell it.

Importing the package loads no TensorFlow; the modules that need it do that themselves.
"""

import os

import lazy_loader

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


__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["drive", "plots", "steps"],
    submod_attrs={
        "config": ["Config"],
        "faces.shards": ["FaceSet"],
        "prediction.estimator": ["Estimator"],
    },
)
