"""The profiles: settings that belong together, by name."""

from typing import Any

from joblib import cpu_count

_PAPER: dict[str, Any] = {
    "backbone": "EfficientNetB4",
    "weights": "imagenet",
    "crop_size": 160,
    "epochs": 35,
    "batch_size": 64,
    "workers": cpu_count(),
}

# Few photos suffice to go on from a model that knows faces.
_OWN: dict[str, Any] = {
    "train_sources": ("own",),
    "test_sources": ("own",),
    "weights": "agelib",
    "workers": cpu_count(),
}

PROFILES: dict[str, dict[str, Any]] = {
    "sample": {},
    "wiki": _PAPER,
    "imdb-wiki": {**_PAPER, "train_sources": ("wiki", "imdb")},
    "own": _OWN,
}
