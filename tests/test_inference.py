import numpy as np
import pytest

from agelib.backend import keras
from agelib.inference import estimate, probabilities
from agelib.shards import FaceSet


@pytest.fixture
def model(tiny_networks):
    keras.utils.set_random_seed(3)
    return tiny_networks("EfficientNetB0", 64)


@pytest.mark.parametrize("batch_size", [1, 7, 140, 1000])
def test_estimates_do_not_depend_on_the_batch(sample_faces, model, batch_size):
    faces = FaceSet([sample_faces.faces / "utkface"], "test")
    outputs = estimate(model, faces, batch_size)
    expected = probabilities(model, np.stack([faces.image(i) for i in range(len(faces))]))
    for name in ("age", "age_branch", "gender"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5)


def test_a_face_and_its_mirror_image_are_one_face(sample_faces, model):
    faces = FaceSet([sample_faces.faces / "utkface"], "test")
    crops = np.stack([faces.image(i) for i in range(8)])
    found, mirrored = probabilities(model, crops), probabilities(model, crops[:, :, ::-1])
    plain, other = model.predict_on_batch(crops), model.predict_on_batch(crops[:, :, ::-1])
    for name in ("age", "age_branch", "gender"):
        np.testing.assert_allclose(found[name], mirrored[name], atol=1e-6)
        np.testing.assert_allclose(found[name], (plain[name] + other[name]) / 2, atol=1e-6)
        assert np.abs(plain[name] - other[name]).max() > 1e-6
