"""Drawn faces, on which age and gender can be seen.

Every face is a variation of one public-domain portrait (NASA's photo of the astronaut Eileen
Collins, which scikit-image carries): hair and skin lose their colour and gain lines with age,
children's faces are rounder and softer, men wear a beard.
"""

import functools

import cv2
import numpy as np
from skimage import data

_FACE_CENTRE = (164, 118)  # in the cut-out portrait, pixels
_FACE_HEIGHT = 107


def draw_portrait(
    age: int, gender: int, rng: np.random.Generator, size: int = 200, face_share: float = 0.6
) -> np.ndarray:
    """Draws a face that looks its age and gender, in a slightly random pose and light.

    Args:
        age: Years, 1 to 85.
        gender: 0 Male, 1 Female.
        rng: Source of pose and light.
        size: Pixels per side.
        face_share: Height of the face in image heights.

    Returns:
        RGB uint8 of shape (size, size, 3).
    """
    portrait = _portrait()
    if gender == 0:
        portrait = _add_beard(portrait)
    portrait = _show_age(portrait, age)
    scale = size * face_share / _FACE_HEIGHT * rng.uniform(0.92, 1.08)
    turn = cv2.getRotationMatrix2D(_FACE_CENTRE, rng.uniform(-8, 8), scale)
    turn[:, 2] += size / 2 - np.array(_FACE_CENTRE) + rng.uniform(-0.03, 0.03, 2) * size
    roundness = 1 + 0.18 * max(0, 14 - age) / 13
    turn[0] = turn[0] * roundness - [0, 0, (roundness - 1) * size / 2]
    image = cv2.warpAffine(
        portrait, turn, (size, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT
    )
    if rng.random() < 0.5:
        image = image[:, ::-1]
    image = image * rng.uniform(0.85, 1.1) + rng.normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


@functools.cache
def _portrait() -> np.ndarray:
    return data.astronaut()[:320, 60:400].astype(np.float32)


def _add_beard(portrait: np.ndarray) -> np.ndarray:
    """Darkens cheeks, chin and upper lip, around a mouth that stays free."""
    x, y = _FACE_CENTRE
    shade = np.zeros(portrait.shape[:2], np.float32)
    cv2.ellipse(shade, (x, y + 28), (36, 30), 0, -20, 200, 1, -1)
    cv2.ellipse(shade, (x, y + 13), (19, 5), 0, 0, 360, 1, -1)
    cv2.ellipse(shade, (x, y + 22), (17, 7), 0, 0, 360, 0, -1)
    shade = cv2.GaussianBlur(shade, (0, 0), 2)[..., None] * 0.8
    return portrait * (1 - shade) + np.float32([70, 45, 30]) * shade


def _show_age(portrait: np.ndarray, age: int) -> np.ndarray:
    """Softens the young and greys and lines the old."""
    if age < 24:
        portrait = cv2.GaussianBlur(portrait, (0, 0), 0.3 + (24 - age) / 16)
        warmth = np.float32([22, -4, -12]) * (24 - age) / 23
        return portrait + warmth
    years = (age - 24) / 61
    grey = portrait.mean(axis=2, keepdims=True) * (1 - 0.15 * years) + 40 * years
    lines = np.zeros(portrait.shape[:2], np.float32)
    x, y = _FACE_CENTRE
    for row in (-36, -30, -24):
        cv2.ellipse(lines, (x, y + row + 20), (26, 20), 0, 235, 305, 1, 1, cv2.LINE_AA)
    for side in (-1, 1):
        cv2.line(lines, (x + side * 15, y + 14), (x + side * 26, y + 30), 1, 2, cv2.LINE_AA)
        cv2.line(lines, (x + side * 31, y - 8), (x + side * 37, y - 4), 1, 2, cv2.LINE_AA)
    lines = cv2.GaussianBlur(lines, (0, 0), 0.8)[..., None]
    return portrait * (1 - years) + grey * years - 90 * years * lines
