"""What each profile downloads and stores, and roughly how long its steps take: all estimates."""

import pandas as pd

from agelib.backbones import BACKBONES
from agelib.config import Config

# At 10 MB a second of download, 370 images a second that two cores clean (bench_clean.py), and on a
# T4 0.36 of the images a second that NVIDIA's DeepLearningExamples name for B4 on a V100: an
# EfficientNet is bound by the memory bandwidth, of which a T4 has that share.
_COLUMNS = ("download", "on Drive", "01", "02", "04 on a GPU (T4)", "04 without a GPU")
_COSTS = {
    "sample": ("nothing", "0.1 GB", "1 min", "1 min", "2 min", "2 min"),
    "wiki": ("0.9 GB", "1.6 GB", "2 min", "3 min", "44 min", "4 days"),
    "imdb-wiki": ("7.9 GB", "9.8 GB", "13 min", "11 min", "4 h", "20 days"),
}
# Multiply-adds a second in training on two cores: 85 faces of 64 pixels with B0, and 111 faces of
# 112 pixels with Lite0, whose layers are plainer.
_RATE, _LITE_RATE = 2.7e9, 11e9


def describe_costs() -> pd.DataFrame:
    """Returns what each profile downloads, stores, and takes of time, one row a profile."""
    return pd.DataFrame.from_dict(_COSTS, orient="index", columns=_COLUMNS)


def slow_training(config: Config, faces: int) -> str:
    """Returns how long training takes on two processor cores, and what to do instead.

    It is "" for less than half an hour. `faces` is the number of train faces.
    """
    backbone = BACKBONES[config.backbone]
    work = backbone.multiply_adds * (config.resolved.image_size / backbone.size) ** 2
    rate = _LITE_RATE if backbone.lite else _RATE
    hours = faces * config.epochs * work / rate / 3600
    if hours < 0.5:
        return ""
    time = f"{hours:.0f} hours" if hours < 48 else f"{hours / 24:.0f} days"
    time = "an hour" if hours < 1.5 else time
    return (
        f"There is no GPU here: training would take two cores about {time} from its beginning (an "
        "estimate). On Colab, choose Runtime > Change runtime type > GPU and run this notebook "
        'from the top; to see how it all works in minutes, set profile to "sample".'
    )
