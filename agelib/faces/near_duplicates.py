"""Near-duplicates: faces that are one photo, whatever their labels and file names say.

Two faces are compared by the correlation of their pixels, in grey and very small: resizing and
JPEG change it little, another photo of the same person changes it much.
"""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np

from agelib.faces.shards import FaceSet

SIDE = 20  # pixels of a thumbnail
# Measured on WIKI, UTKFace, APPA-REAL and All-Age-Faces: all pairs looked at from 0.965 to 0.985
# were one photo; portraits of two persons before the same backdrop reach 0.9635.
THRESHOLD = 0.965
_LEAST_CONTRAST = 2.0  # grey levels: below it a picture is blank but for noise
_ROWS, _COLUMNS = 2048, 8192  # of a block of correlations, 64 MB


def thumbnails(faces: FaceSet | np.ndarray) -> np.ndarray:
    """Returns what `near_duplicates` compares.

    Args:
        faces: A face set, or RGB uint8 of shape (n, height, width, 3).

    Returns:
        float32 of shape (n, 400): grey crops of 20 x 20 pixels, each with mean 0 and length 1; all
        zeros where the image is blank.
    """
    batches = faces.batches() if isinstance(faces, FaceSet) else [faces]
    each = (_thumbnail(image) for batch in batches for image in batch)
    return np.fromiter(each, np.dtype((np.float32, SIDE**2)), count=len(faces))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).ravel().astype(np.float32)
    small -= small.mean()
    if small.std() < _LEAST_CONTRAST:
        return np.zeros_like(small)
    return small / np.linalg.norm(small)


def near_duplicates(
    a: np.ndarray, b: np.ndarray | None = None, threshold: float = THRESHOLD
) -> np.ndarray:
    """Finds all pairs of thumbnails whose correlation is above the threshold.

    Args:
        a: As `thumbnails` returns them.
        b: Others to compare `a` with; without them `a` is compared with itself, each pair once.
        threshold: Correlation, up to 1.

    Returns:
        Indices, int64 of shape (pairs, 2): into `a` and `b`, or both into `a`, the lower first.
    """
    return np.concatenate([np.empty((0, 2), np.int64), *_pairs(a, b, threshold)])


def _pairs(a: np.ndarray, b: np.ndarray | None, threshold: float) -> Iterator[np.ndarray]:
    """Yields what `near_duplicates` returns block by block, as all correlations fit no memory."""
    others = a if b is None else b
    for row in range(0, len(a), _ROWS):
        for column in range(row if b is None else 0, len(others), _COLUMNS):
            block = a[row : row + _ROWS] @ others[column : column + _COLUMNS].T
            # Faster than np.nonzero of two dimensions.
            found = np.unravel_index(np.flatnonzero(block > threshold), block.shape)
            pairs = np.stack(found, axis=1) + np.array([row, column])
            yield pairs if b is not None else pairs[pairs[:, 0] < pairs[:, 1]]


def duplicates_of_held_out(train: FaceSet, *held_out: FaceSet) -> np.ndarray:
    """Tells which train faces nearly equal a face that the model is validated or tested with.

    Args:
        train: The train faces of all sets.
        *held_out: Validation and test faces, of whichever sets.

    Returns:
        bool of shape (n,), in the order of `train`.
    """
    duplicate = np.zeros(len(train), bool)
    ours = thumbnails(train)
    for faces in held_out:
        for pairs in _pairs(ours, thumbnails(faces), THRESHOLD):
            duplicate[pairs[:, 0]] = True
    return duplicate


def label_agreement(faces: Any, pairs: np.ndarray) -> dict[str, Any]:
    """Measures how far the labels of near-duplicates agree: the limit of any score.

    Args:
        faces: Anything with `age`, `age_branch` and `gender`, each of shape (n,).
        pairs: As `near_duplicates` returns them for these faces.

    Returns:
        JSON types: the number of `pairs`; the shares whose `age_branch` and `gender` are the same;
        and the mean `age_difference` in years. None in place of each if there are no pairs.
    """
    one, other = pairs.T
    agreement = {
        "age_branch": faces.age_branch[one] == faces.age_branch[other],
        "gender": faces.gender[one] == faces.gender[other],
        "age_difference": np.abs(faces.age[one] - faces.age[other]),
    }
    means = {name: float(each.mean()) if len(pairs) else None for name, each in agreement.items()}
    return {"pairs": len(pairs)} | means
