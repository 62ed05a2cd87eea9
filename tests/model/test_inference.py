import numpy as np
import pytest

from agelib.backend import keras, tf
from agelib.faces.shards import FaceSet
from agelib.model import inference
from agelib.model.inference import estimate, inference_graph, probabilities
from agelib.model.network import scale_logits


@pytest.fixture
def model(tiny_networks):
    """One whose BatchNorm does something, as it does after training."""
    keras.utils.set_random_seed(3)
    model = tiny_networks("EfficientNetB0", 64)
    random = np.random.default_rng(3)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(random.uniform(0.7, 1.4, variable.shape))
        elif variable.name in ("beta", "moving_mean"):
            variable.assign(random.uniform(-0.3, 0.3, variable.shape))
    return model


@pytest.mark.parametrize("at_a_time", [1, 7, 140, 1000])
def test_estimates_do_not_depend_on_the_batch(sample_faces, model, at_a_time, monkeypatch):
    faces = FaceSet([sample_faces.faces / "utkface"], "test")
    graph = inference_graph(model)
    monkeypatch.setattr(inference, "_AT_A_TIME", at_a_time)
    outputs = estimate(model, faces)
    monkeypatch.undo()
    expected = probabilities(graph, np.stack([faces.image(i) for i in range(len(faces))]))
    for name in ("age", "age_branch", "gender"):
        np.testing.assert_allclose(outputs[name], expected[name], atol=1e-5)


def test_large_faces_run_fewer_at_a_time():
    seen = []

    def graph(crops):
        seen.append(len(crops))
        return {"gender": tf.fill((len(crops), 2), 0.5)}

    small, large = (np.zeros((200, side, side, 3), np.uint8) for side in (64, 480))
    assert probabilities(graph, small)["gender"].shape == (200, 2)
    assert seen == [2 * 128, 2 * 72]
    seen.clear()
    assert probabilities(graph, large[:30])["gender"].shape == (30, 2)
    assert seen == [2 * 14, 2 * 14, 2 * 2]


def test_a_face_and_its_mirror_image_are_one_face(sample_faces, model):
    faces = FaceSet([sample_faces.faces / "utkface"], "test")
    crops = np.stack([faces.image(i) for i in range(8)])
    graph = inference_graph(model)
    found, mirrored = probabilities(graph, crops), probabilities(graph, crops[:, :, ::-1])
    plain, other = model.predict_on_batch(crops), model.predict_on_batch(crops[:, :, ::-1])
    for name in ("age", "age_branch", "gender"):
        np.testing.assert_allclose(found[name], mirrored[name], atol=1e-6)
        np.testing.assert_allclose(found[name], (plain[name] + other[name]) / 2, atol=1e-6)
        assert np.abs(plain[name] - other[name]).max() > 1e-6


def test_a_graph_stays_as_it_was_when_its_model_learns_on(sample_faces, model):
    crops = np.stack([FaceSet([sample_faces.faces / "utkface"], "test").image(i) for i in range(8)])
    graph = inference_graph(model)
    before = probabilities(graph, crops)["gender"]
    scale_logits(model, "gender", 1e6)
    np.testing.assert_array_equal(probabilities(graph, crops)["gender"], before)
    np.testing.assert_allclose(model.predict_on_batch(crops)["gender"], 0.5, atol=1e-5)


def test_a_model_that_has_learned_on_is_judged_as_it_is_now(sample_faces, model):
    faces = FaceSet([sample_faces.faces / "utkface"], "test")
    before = estimate(model, faces)["gender"]
    scale_logits(model, "gender", 1e6)
    assert np.abs(before - 0.5).max() > 1e-3
    np.testing.assert_allclose(estimate(model, faces)["gender"], 0.5, atol=1e-5)
