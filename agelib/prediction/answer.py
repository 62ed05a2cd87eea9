"""What somebody is told of a photo: an annotated picture, a table and a sentence."""

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from agelib.faces.images import Rejected, read_image
from agelib.plots import annotate

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.prediction.estimator import Estimate, Estimator

# Longer, and a page that shows the picture smaller makes its labels hard to read.
_PICTURE_SIDE = 800  # pixels


def answer(estimator: "Estimator", source: Path) -> tuple[np.ndarray | None, pd.DataFrame, str]:
    """Estimates the faces of a photo, and says in a sentence how it went.

    Args:
        estimator: The model.
        source: A file, which may be no photo at all.

    Returns:
        The annotated photo, RGB uint8 of shape (height, width, 3), or None where no face is found;
        a table with a row for each face, from left to right; the sentence.
    """
    try:
        image = read_image(source)
    except Rejected as error:
        # Where an upload lies is nothing that its sender knows.
        why = str(error).replace(str(source), source.name)
        return None, _table([]), f"{why} Try another, such as a JPEG or PNG."
    estimates = estimator.predict(image)
    if not estimates:
        sentence = (
            "No face found: try a photo where one is larger, upright and seen from the front."
        )
        return None, _table([]), sentence
    count = len(estimates)
    sentence = "One face found." if count == 1 else f"{count} faces found, numbered left to right."
    return _draw(image, estimates), _table(estimates), sentence


def as_html(picture: np.ndarray | None, table: pd.DataFrame, sentence: str) -> str:
    """Returns an answer as HTML that needs no other file.

    Args:
        picture: RGB uint8 of shape (height, width, 3), or None.
        table: With a row for each face.
        sentence: Plain text.
    """
    if picture is None:
        return paragraph(sentence)
    return paragraph(sentence) + _image(picture) + table.to_html(index=False, border=0)


def paragraph(text: str) -> str:
    """Returns text as a paragraph that a screen reader reads out."""
    return f'<p role="status">{html.escape(text)}</p>'


def _table(estimates: list["Estimate"]) -> pd.DataFrame:
    rows = [
        {
            "face": number,
            "age": str(estimate.age),
            "80 % between": "{}-{}".format(*estimate.interval),
            "age branch": f"{estimate.branch} ({estimate.branches.max():.0%})",
            "gender": f"{estimate.gender} ({estimate.genders.max():.0%})",
        }
        for number, estimate in enumerate(estimates, 1)
    ]
    return pd.DataFrame(rows)


def _draw(image: np.ndarray, estimates: list["Estimate"]) -> np.ndarray:
    canvas = FigureCanvasAgg(annotate(image, estimates, _PICTURE_SIDE))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _image(picture: np.ndarray) -> str:
    # A file of its own would have to be kept until a browser fetches it.
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="The photo with its faces marked" src="data:image/jpeg;base64,{data}">'
