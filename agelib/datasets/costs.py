"""What a profile downloads and stores, and roughly how long its steps take: estimates all.

Times are work divided by a rate, given below with where it comes from: measured on a machine with
two cores and no GPU, reckoned from published figures, or guessed.
"""

import pandas as pd

from agelib.config import BACKBONES, Config
from agelib.datasets.tables import find

# Images that pass the metadata rules, and bytes of a stored crop of 160 pixels for each of them.
_USABLE = {"wiki": 38_000, "imdb": 172_000, "utkface": 23_500}
_BYTES_A_PIXEL = 0.26
_DOWNLOAD = 10e6  # bytes a second; a guess
_CLEAN = 370  # images a second, two cores, of images of 64 to 200 pixels: bench_clean.py
_RUN = 0.3e9  # bytes of a run: model, optimizer's state; reckoned for B4's 18 million weights

# Multiply-adds a second of images that are trained on.
_CPU = 2.7e9  # 85 images a second of 64 pixels with B0, two cores
# NVIDIA's DeepLearningExamples name 211 images a second for B4 at 380 pixels on a V100 in mixed
# precision; a T4 has 0.36 of its memory bandwidth, which is what bounds EfficientNets.
_GPU = 211 * 0.36 * 4.2e9
_READ = 1500  # images a second that two cores decode and hand on at most; a guess

_SAMPLE = {
    "download": "nothing",
    "on Drive": "0.1 GB",
    "01": "1 min",
    "02": "1 min",
    "04 on a GPU (T4)": "2 min",
    "04 without a GPU": "2 min",
}


def training_hours(config: Config, faces: int, gpu: bool) -> float:
    """Estimates how long training takes.

    Args:
        config: Gives backbone, image size and epochs.
        faces: Train faces.
        gpu: Whether on a GPU such as Colab's T4, or on two processor cores.

    Returns:
        Hours.
    """
    backbone = BACKBONES[config.backbone]
    work = backbone.multiply_adds * (config.resolved.image_size / backbone.size) ** 2
    rate = (_GPU if gpu else _CPU) / work
    return faces * config.epochs / min(rate, _READ) / 3600


def slow_training(config: Config, faces: int) -> str:
    """Says how long training takes without a GPU, and what to do instead; "" if it is no matter.

    Args:
        config: As for `training_hours`.
        faces: Train faces.
    """
    hours = training_hours(config, faces, gpu=False)
    if hours < 0.5:
        return ""
    return (
        f"There is no GPU here: training would take two cores about {about(hours)} from its "
        "beginning (an estimate). On Colab, "
        "choose Runtime > Change runtime type > GPU and run this notebook from the top; to see how "
        'it all works in minutes, set profile to "sample".'
    )


def describe_costs() -> pd.DataFrame:
    """Returns what each profile downloads, stores, and takes of time, one row a profile."""
    profiles = ("wiki", "imdb-wiki")
    costs = {name: _costs(Config.from_profile(name)) for name in profiles}
    return pd.DataFrame({"sample": _SAMPLE, **costs}).T


def _costs(config: Config) -> dict[str, str]:
    archives = sum(find(name).archive.size or 0 for name in config.sources)
    images = sum(_USABLE[name] for name in config.sources)
    train = sum(_USABLE[name] for name in config.train_sources) * (1 - config.val_fraction)
    crops = images * config.crop_size**2 * _BYTES_A_PIXEL
    return {
        "download": f"{archives / 1e9:.1f} GB",
        "on Drive": f"{(archives + crops + _RUN) / 1e9:.1f} GB",
        "01": about(archives / _DOWNLOAD / 3600),
        "02": about(images / _CLEAN / 3600),
        "04 on a GPU (T4)": about(training_hours(config, int(train), gpu=True)),
        "04 without a GPU": about(training_hours(config, int(train), gpu=False)),
    }


def about(hours: float) -> str:
    """Returns a time as people say it, for example "25 min" or "3 days"."""
    if hours < 1.5:
        return f"{max(1, hours * 60):.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"
