"""Near-duplicates: faces that come from one photo.

Data sets hold one photo several times: saved again, in grey, or cut out around another box. The
correlation of their pixels at 10 x 10 rules out most pairs of faces. Of the rest, those are ruled
out in which no small shift, turn or scaling could turn one face into the other. In the others one
face is aligned with the other before their pixels are compared.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from joblib import cpu_count

from agelib.faces.crop import map_ahead
from agelib.faces.shards import FaceSet

# Checked by eye in WIKI, UTKFace, APPA-REAL and All-Age-Faces: pairs above it are one photo; faces
# that only look alike reach 0.984, and are half of the pairs at 0.98.
THRESHOLD = 0.985
SIDE = 40  # pixels of a thumbnail
_COARSE = 10  # pixels that all pairs are compared at
_LEAST_CONTRAST = 2.0  # grey levels: below it a picture is blank but for noise
_ROWS, _COLUMNS = 512, 8192  # correlations at a time, 16 MB
# The correlation from which a pair is compared closely. Unless `_REACHABLE` rules it out, one face
# is shifted, in 25 microseconds, then turned and scaled too, in 90.
_SIMILAR = 0.9
# The correlation with the nearest picture that small changes make of the other, in 1 microsecond.
# It is above 0.96 in all 1,335 pairs in those four sets; other sets need a margin.
_REACHABLE = 0.94
_SHIFT = 3  # pixels, each way
_BORDER = 4  # pixels that need not be on both photos
_STEPS = (cv2.TERM_CRITERIA_COUNT, 2, 0)  # later ones oscillate


def thumbnails(faces: FaceSet | np.ndarray) -> np.ndarray:
    """Returns what `near_duplicates` compares: small grey images, smoothed, uint8 (n, 40, 40).

    `faces` is a face set, or RGB uint8 of shape (n, height, width, 3).
    """
    batches = faces.batches() if isinstance(faces, FaceSet) else [faces]
    each = (_thumbnail(image) for batch in batches for image in batch)
    return np.fromiter(each, np.dtype((np.uint8, (SIDE, SIDE))), count=len(faces))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), 1)


def near_duplicates(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Returns the pairs of thumbnails that show one photo, int64 indices of shape (pairs, 2).

    They are into `a` and `b` or, without `b`, both into `a`, the lower first. A photo and its
    mirror image are no pair: they are rare, and would take the same time again.
    """
    others = a if b is None else b

    def of_one_photo(pairs: np.ndarray) -> np.ndarray:
        same = [_is_one_photo(a[i], others[j]) for i, j in pairs]
        return pairs[np.array(same, bool)]

    with ThreadPoolExecutor(cpu_count()) as pool:  # OpenCV releases the GIL
        blocks = map_ahead(pool, of_one_photo, _similar(a, b), 2 * cpu_count())
        return np.concatenate([np.empty((0, 2), np.int64), *blocks])


def _similar(a: np.ndarray, b: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yields the pairs to compare closely, in blocks: all correlations fill the memory."""
    others = _coarse(a if b is None else b)
    columns, insides = _unit(others), _unit(_inside(others))
    rows = columns if b is None else _unit(_coarse(a))
    for row in range(0, len(rows), _ROWS):
        tangents = _tangents(a[row : row + _ROWS])
        for column in range(row if b is None else 0, len(columns), _COLUMNS):
            block = rows[row : row + _ROWS] @ columns[column : column + _COLUMNS].T
            # Faster than np.nonzero of two dimensions.
            found = np.unravel_index(np.flatnonzero(block > _SIMILAR), block.shape)
            pairs = np.stack(found, axis=1) + np.array([row, column])
            if b is None:
                pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            for start in range(0, len(pairs), _ROWS):
                i, j = pairs[start : start + _ROWS].T
                nearest = np.einsum("np,npk->nk", insides[j], tangents[i - row])
                reachable = np.linalg.norm(nearest, axis=1) > _REACHABLE
                yield pairs[start : start + _ROWS][reachable]


def _coarse(pictures: np.ndarray) -> np.ndarray:
    """Returns pictures of shape (n, 40, 40) at 10 x 10 pixels, float32."""
    step = SIDE // _COARSE
    return pictures.reshape(-1, _COARSE, step, _COARSE, step).mean((2, 4), dtype=np.float32)


def _inside(pictures: np.ndarray) -> np.ndarray:
    """Returns coarse pictures without the border that need not be on both photos."""
    border = _BORDER * _COARSE // SIDE
    return pictures[:, border:-border, border:-border]


def _unit(pictures: np.ndarray) -> np.ndarray:
    """Returns pixels of mean 0 and length 1, shape (n, pixels); zeros of a blank picture."""
    pixels = pictures.reshape(len(pictures), np.prod(pictures.shape[1:]))
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    length = np.linalg.norm(pixels, axis=1, keepdims=True)
    pixels /= np.maximum(length, 1)
    pixels[length[:, 0] < _LEAST_CONTRAST * pixels.shape[1] ** 0.5] = 0
    return pixels


def _tangents(thumbs: np.ndarray) -> np.ndarray:
    """Returns orthonormal bases of the tangent spaces of thumbnails, of shape (n, 64, 7).

    A shift, turn, scaling or shear adds multiples of the slopes, times a place, to a picture.
    Simard et al., "Efficient Pattern Recognition Using a New Transformation Distance", NIPS 1992.
    """
    slopes = [_coarse(slope) for slope in np.gradient(thumbs.astype(np.float32), axis=(1, 2))]
    y, x = np.indices((_COARSE, _COARSE), np.float32) / _COARSE - 0.5
    changes = [_coarse(thumbs), *(slope * place for slope in slopes for place in (1, y, x))]
    inside = np.stack([_inside(change) for change in changes], axis=-1)
    inside = inside.reshape(len(thumbs), -1, len(changes))
    return np.linalg.qr(inside - inside.mean(axis=1, keepdims=True)).Q


def _is_one_photo(one: np.ndarray, other: np.ndarray) -> bool:
    """Tells whether one thumbnail equals the other after it is aligned with it.

    Evangelidis & Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient
    Maximization", PAMI 2008.
    """
    middle = one[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT]
    _, correlation, _, (x, y) = cv2.minMaxLoc(
        cv2.matchTemplate(other, middle, cv2.TM_CCOEFF_NORMED)
    )
    if correlation < _SIMILAR:
        return False
    shift, inside = np.eye(2, 3, dtype=np.float32), np.zeros((SIDE, SIDE), np.uint8)
    shift[:, 2] = x - _SHIFT, y - _SHIFT
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = 1
    try:
        correlation, _ = cv2.findTransformECC(
            one, other, shift, cv2.MOTION_AFFINE, _STEPS, inside, gaussFiltSize=1
        )
    except cv2.error:  # too little contrast, or every step makes it worse
        return False
    return correlation > THRESHOLD


def duplicates_of_held_out(train: FaceSet, *held_out: FaceSet) -> np.ndarray:
    """Returns which train faces show a photo that is held out for validation or test: bool (n,)."""
    duplicate, ours = np.zeros(len(train), bool), thumbnails(train)
    for faces in held_out:
        duplicate[near_duplicates(ours, thumbnails(faces))[:, 0]] = True
    return duplicate


def label_agreement(faces: Any, pairs: np.ndarray) -> dict[str, Any]:
    """Measures how far the labels of near-duplicates agree: the limit of any score on these faces.

    `faces` has `age`, `age_branch` and `gender`, each of shape (n,); `pairs` is from
    `near_duplicates`. Returns the number of `pairs`, the shares with the same `age_branch` and
    `gender`, and the mean `age_difference` in years; each is None if there are no pairs.
    """
    one, other = pairs.T
    agreement = {
        "age_branch": faces.age_branch[one] == faces.age_branch[other],
        "gender": faces.gender[one] == faces.gender[other],
        "age_difference": np.abs(faces.age[one] - faces.age[other]),
    }
    means = {name: float(each.mean()) if len(pairs) else None for name, each in agreement.items()}
    return {"pairs": len(pairs)} | means
