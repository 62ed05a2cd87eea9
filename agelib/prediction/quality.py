"""Marks of faces whose estimate is doubtful: small, dark, blurred, turned.

Measured with the pretrained model on 891 held-out faces of APPA-REAL, UTKFace and All-Age-Faces:
3 % of them have a mark as they are, and the others are estimated 5.2 years off on average. Scaled
down, darkened or turned, those with that mark are 6.1, 5.3 and 6.4 years off (the dark ones are
hardly worse), and the interval of 80 % holds the ages of 83 % in each case. Blurred ones are 11.1
years off; it holds 81 % of the ages, without `soften` 66 %.
"""

import cv2
import numpy as np

from agelib.faces.crop import Face
from agelib.faces.images import resize
from agelib.prediction.detection import Found

_SMALL = 24  # pixels of the photo
# Of 255, reached by a twentieth of the crop, which tells dark photos from dark skin.
_DARK = 70
# Standard deviation of the Laplacian in those of the grey values, of the face at this many pixels.
_BLURRED, _FACE_PIXELS = 0.17, 64
# The nose's distance from the middle of the eyes, along the line through them, in their distance.
_TURNED_AWAY = 0.55
_TILTED = 20  # degrees
# Divides the logarithms of a blurred face's probabilities. Fitted on 1,449 validation faces of the
# same sets, blurred by 2 to 8 % of their size. On as many held-out faces the interval holds 82 % of
# the ages instead of 68 %, and the calibration error of the age branch falls from 11 to 3 points;
# that of gender rises from 4 to 5.
_TEMPERATURE = 1.6


def marks(crop: np.ndarray, found: Found, margin: float) -> tuple[str, ...]:
    """Returns what makes an estimate doubtful, of "small", "dark", "blurred" and "turned".

    Args:
        crop: The face as the model sees it, RGB uint8 of shape (size, size, 3).
        found: Where it is in the photo.
        margin: Of the crop, in box widths.
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    turned = found.sideways or abs(found.face.tilt) > _TILTED or _away(found.face) > _TURNED_AWAY
    all_marks = {
        "small": found.face.size < _SMALL,
        "dark": np.quantile(grey, 0.95) < _DARK,
        "blurred": _sharpness(grey, margin) < _BLURRED,
        "turned": turned,
    }
    return tuple(name for name, holds in all_marks.items() if holds)


def soften(probabilities: np.ndarray) -> np.ndarray:
    """Returns a face's probabilities made more equal, as a blurred face needs: p^(1 / T) / sum."""
    softer = probabilities ** (1 / _TEMPERATURE)
    return softer / softer.sum()


def _sharpness(grey: np.ndarray, margin: float) -> float:
    # Without the margin, where the photo's frame may be repeated.
    border = round(len(grey) * margin / (1 + 2 * margin))
    face = resize(
        grey[border : len(grey) - border, border : len(grey) - border], (_FACE_PIXELS,) * 2
    )
    return float(cv2.Laplacian(face, cv2.CV_32F).std() / (face.std() + 1))


def _away(face: Face) -> float:
    left_eye, right_eye, nose = face.landmarks[:3]
    line = right_eye - left_eye
    across = np.dot(nose - (left_eye + right_eye) / 2, line)
    return float(abs(across) / max(np.dot(line, line), 1e-9))
