"""Age and gender estimation from face photos, from raw archives to a model one can use.

The six notebooks tell the story and these modules do the work:

`config` settings, `profiles` of them, their `costs` · `labels` tables · `archives`, `transfer`,
`repack`, `byhand`, `kaggle`, `download` · `sample` made on the spot, of drawn faces (`portrait`) ·
`faces` one image and its face · `detector` MTCNN · `shards` the .npy format · `crops` many images
at a time · `datasets`, `own` photos · `clean` a data set to shards · `mounting`, `drive`,
`drive_errors`, `backup`, `kept` Google Drive · `pipeline` tf.data · `augment` varied images ·
`hardware` GPUs and precision · `backbone` EfficientNet · `model` with two heads · `recipe`,
`callbacks`, `train` · `inference`, `evaluate` · `metrics`, `bootstrap`, `calibration`, `breakdown`
scores · `report`, `score_plots`, `plots` to look at · `photos`, `predict` · `answer`, `serve` a
page for it · `formats`, `export` for other runtimes · `ship` the model that comes along · `steps`
all of it in order, which is what the notebooks and `python -m agelib` (`commands`) call.

Importing the package loads no TensorFlow; the modules that need it do that themselves.
"""

import os

__version__ = "0.5.0"

# Must be set before TensorFlow loads, whichever module gets there first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ["KERAS_BACKEND"] = "tensorflow"


class AgelibError(Exception):
    """Something the user can mend; its text says in a sentence what, where and what to do."""

    def _render_traceback_(self) -> list[str]:
        """Shows the sentence alone in a notebook; IPython looks this method up by name."""
        return [f"agelib: {self}"]


def first_line(error: Exception) -> str:
    """Returns what an error says, without the pages that some append."""
    return str(error).strip().split("\n")[0]
