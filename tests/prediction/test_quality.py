import json

import cv2
import numpy as np
import pytest
from skimage import data

from agelib.config import Crop
from agelib.faces.crop import crop_face
from agelib.faces.detector import FaceDetector
from agelib.faces.images import resize
from agelib.labels import AGE_BRANCHES
from agelib.model.inference import age_interval, inference_graph, probabilities
from agelib.model.saved import PRETRAINED
from agelib.plots import annotate
from agelib.prediction.detection import find_faces
from agelib.prediction.estimator import Estimator
from agelib.prediction.quality import marks, soften
from agelib.prediction.results import Result

PORTRAIT = data.astronaut()[:320, 60:380]


@pytest.fixture(scope="module")
def estimator():
    return Estimator(PRETRAINED)


def tilted(image, degrees):
    size = image.shape[1::-1]
    turn = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), degrees, 1)
    return cv2.warpAffine(image, turn, size, borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.parametrize(
    ("photo", "mark"),
    [
        (cv2.resize(PORTRAIT, (60, 60), interpolation=cv2.INTER_AREA), "small"),
        (PORTRAIT // 5, "dark"),
        (cv2.GaussianBlur(PORTRAIT, (0, 0), 6), "blurred"),
        (tilted(PORTRAIT, 30), "turned"),
    ],
    ids=["small", "dark", "blurred", "turned"],
)
def test_a_face_that_is_hard_to_see_is_marked_wherever_it_is_shown(estimator, photo, mark):
    [estimate] = estimator.predict(photo)
    assert mark in estimate.quality
    assert f", doubtful: {' and '.join(estimate.quality)}" in str(estimate)
    assert estimate.to_row()["quality"] == " ".join(estimate.quality)
    assert json.loads(json.dumps(estimate.to_dict()))["quality"] == list(estimate.quality)
    assert mark in str(Result("photo", [estimate]))
    labels = [text.get_text() for text in annotate(photo, [estimate]).axes[0].texts]
    assert mark in labels[0]


def test_a_clear_face_has_no_mark(estimator):
    [estimate] = estimator.predict(PORTRAIT)
    assert estimate.quality == ()
    assert "doubtful" not in str(estimate)


def test_soften_draws_probabilities_together_and_keeps_their_order():
    softer = soften(np.float32([0.64, 0.32, 0.04, 0]))
    roots = [0.64**0.625, 0.32**0.625, 0.04**0.625, 0]
    np.testing.assert_allclose(softer, np.divide(roots, sum(roots)), rtol=1e-5)
    assert softer.sum() == pytest.approx(1)


@pytest.mark.parametrize(("sigma", "blurred"), [(0, False), (6, True)])
def test_only_a_blurred_face_has_softer_probabilities_and_a_wider_interval(
    estimator, sigma, blurred
):
    photo = cv2.GaussianBlur(PORTRAIT, (0, 0), sigma) if sigma else PORTRAIT
    [estimate] = estimator.predict(photo)
    plain = probabilities(inference_graph(estimator.model), estimate.crop[None])
    for found, [given] in ((estimate.ages, plain["age"]), (estimate.genders, plain["gender"])):
        expected = soften(given) if blurred else given
        np.testing.assert_allclose(found, expected, atol=1e-5)
    sums = [estimate.ages[low - 1 : high].sum() for low, high in AGE_BRANCHES]
    np.testing.assert_allclose(estimate.branches, sums, atol=1e-6)
    (low,), (high,) = age_interval(plain["age"])
    width = estimate.interval[1] - estimate.interval[0]
    assert (width > high - low) == blurred


@pytest.mark.parametrize("crop", [Crop(64, 0.3), Crop(112, 0.1), Crop(160, 0.0)], ids=str)
@pytest.mark.parametrize(("sigma", "marks_of_it"), [(0, ()), (1, ()), (6, ("blurred",))])
def test_blur_is_of_the_face_whatever_the_crop(crop, sigma, marks_of_it):
    photo = cv2.GaussianBlur(PORTRAIT, (0, 0), sigma) if sigma else PORTRAIT
    [[found]] = find_faces(FaceDetector(), [photo])
    face = resize(crop_face(photo, found.face, crop), (crop.size, crop.size))
    assert marks(face, found, crop.margin) == marks_of_it


def test_dark_skin_in_a_bright_photo_is_not_dark(estimator):
    # Half the light from the face, and all of it from what is around.
    photo = PORTRAIT.copy()
    face = photo[50:190, 110:220]
    photo[50:190, 110:220] = face // 2
    [estimate] = estimator.predict(photo)
    assert "dark" not in estimate.quality


def test_what_is_turned_by_a_quarter_is_turned_back_and_not_marked(estimator):
    [estimate] = estimator.predict(np.rot90(PORTRAIT))
    assert estimate.rotated == 90
    assert "turned" not in estimate.quality
