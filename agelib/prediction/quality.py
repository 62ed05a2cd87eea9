"""Marks of faces whose estimate is doubtful: small, dark, blurred, turned.

The limits were measured with the pretrained model on 1,119 faces of APPA-REAL's test split, UTKFace
and All-Age-Faces: 3 % of them have a mark as they are. Scaled down, darkened, blurred and turned,
those with a mark are estimated 8.5 (small), 6.8 (dark), 10.0 (blurred) and 7.2 years (turned) off,
on average, those without one 6.0. The interval of 80 % still holds the ages of 81, 83, 76 and 84 %
of them, so it is as wide as any other.
"""

import cv2
import numpy as np

from agelib.faces.crop import Face
from agelib.prediction.detection import Found

# Pixels of the photo. At 18 an age in nine moves by more than ten years, at 24 one in nineteen.
_SMALL = 24
# Of 255, reached by a twentieth of the crop, which tells dark photos from dark skin.
_DARK = 70
# Standard deviation of the Laplacian in those of the grey values.
_BLURRED = 0.17
# The nose's distance from the middle of the eyes, along the line through them, in their distance.
_TURNED_AWAY = 0.55
_TILTED = 20  # degrees


def marks(crop: np.ndarray, found: Found) -> tuple[str, ...]:
    """Returns what makes an estimate doubtful, of "small", "dark", "blurred" and "turned".

    Args:
        crop: The face as the model sees it, RGB uint8 of shape (size, size, 3).
        found: Where it is in the photo.
    """
    grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float32)
    turned = found.sideways or abs(found.face.tilt) > _TILTED or _away(found.face) > _TURNED_AWAY
    all_marks = {
        "small": found.face.size < _SMALL,
        "dark": np.quantile(grey, 0.95) < _DARK,
        "blurred": _sharpness(grey) < _BLURRED,
        "turned": turned,
    }
    return tuple(name for name, holds in all_marks.items() if holds)


def _sharpness(grey: np.ndarray) -> float:
    border = len(grey) // 6  # where the photo's frame may be repeated
    face = grey[border:-border, border:-border]
    return float(cv2.Laplacian(face, cv2.CV_32F).std() / (face.std() + 1))


def _away(face: Face) -> float:
    left_eye, right_eye, nose = face.landmarks[:3]
    line = right_eye - left_eye
    across = np.dot(nose - (left_eye + right_eye) / 2, line)
    return float(abs(across) / max(np.dot(line, line), 1e-9))
