import numpy as np
import pytest

from agelib.backend import keras, tf
from agelib.faces.shards import FaceSet
from agelib.model import inference
from agelib.model.inference import (
    age_interval,
    calibration_error,
    estimate,
    fit_temperature,
    inference_graph,
    median_age,
    probabilities,
    reliability,
)
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
    monkeypatch.setattr(inference, "BATCH", at_a_time)
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


def softmax(logits):
    scaled = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return scaled / scaled.sum(axis=-1, keepdims=True)


@pytest.fixture
def honest(rng):
    """Logits of a model whose probabilities come true, and what came true."""
    logits = 2 * rng.normal(size=(20_000, 3))
    drawn = rng.random((20_000, 1)) < softmax(logits).cumsum(axis=1)
    return logits, drawn.argmax(axis=1)


@pytest.mark.parametrize("factor", [0.6, 1, 3])
def test_the_temperature_undoes_what_made_a_model_too_sure_or_not_sure_enough(honest, factor):
    logits, true = honest
    assert fit_temperature(softmax(factor * logits)[None], true) == pytest.approx(factor, rel=0.05)


def test_the_mean_over_views_is_what_must_come_true(honest, rng):
    logits, true = honest
    views = softmax(logits + 3 * rng.normal(size=(2, *logits.shape)))
    temperature = fit_temperature(views, true)
    mean = softmax(np.log(views) / temperature).mean(axis=0)
    right = mean.argmax(axis=1) == true
    assert calibration_error(mean.max(axis=1), right) < 0.02
    alone = fit_temperature(views[:1], true)
    assert alone > 1.1 * temperature  # one view alone is worth less trust than the mean of two


def likeliest(views, true):
    """Returns the temperature at which the labels are likeliest, whatever is expected of it."""
    temperatures = np.geomspace(0.5, 5, 500)
    logits = np.log(views[0])[np.newaxis] / temperatures[:, np.newaxis, np.newaxis]
    likelihoods = softmax(logits)[:, np.arange(len(true)), true]
    return temperatures[np.log(likelihoods).sum(axis=1).argmax()]


def drawn(rng, count, factor):
    """Returns probabilities of ages that are too sure by a factor, and ages that come true."""
    logits = -((np.arange(85) - rng.uniform(5, 80, (count, 1))) ** 2) / 50
    true = (rng.random((count, 1)) < softmax(logits).cumsum(axis=1)).argmax(axis=1)
    return softmax(factor * logits)[np.newaxis], true


@pytest.mark.parametrize("sure_of", [[0.9, 0.1], [0.3, 0.7]])
def test_seven_faces_that_are_all_right_or_all_wrong_say_little(sure_of):
    views = np.array([[sure_of] * 7])
    assert fit_temperature(views, np.zeros(7, int)) == pytest.approx(1, abs=0.16)


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_few_faces_leave_a_model_as_it_is_and_many_decide(rng, factor):
    few = [fit_temperature(*drawn(rng, 7, factor)) for _ in range(20)]
    assert min(few) > 0.75
    assert max(few) < 1.3
    many = drawn(rng, 1000, factor)
    assert fit_temperature(*many) == pytest.approx(likeliest(*many), rel=0.02)


def test_a_thousand_faces_on_which_all_is_wrong_make_a_model_as_unsure_as_allowed():
    views = np.array([[[0.02, 0.98]] * 1000])
    assert fit_temperature(views, np.zeros(1000, int)) == pytest.approx(5, rel=0.01)


def test_of_a_range_its_probability_must_come_true(rng):
    views, true = drawn(rng, 5000, 2)
    low, high = true // 10 * 10, true // 10 * 10 + 9
    assert fit_temperature(views, low, high) == pytest.approx(2, rel=0.1)
    assert fit_temperature(views, true, true) == fit_temperature(views, true)


def test_without_faces_a_model_stays_as_it_is():
    assert fit_temperature(np.empty((2, 0, 85)), np.empty(0, int)) == pytest.approx(1, abs=1e-3)


def test_reliability_counts_by_steps_of_sureness():
    table = reliability(np.array([0.51, 0.52, 0.9, 1.0, 1.0]), np.array([1, 0, 1, 1, 0], bool))
    assert table["faces"].tolist() == [2, 1, 2]
    assert table["confidence"].tolist() == pytest.approx([0.515, 0.9, 1.0])
    assert table["accuracy"].tolist() == pytest.approx([0.5, 1, 0.5])


def test_the_calibration_error_weighs_steps_by_their_faces():
    confidence = np.array([0.75] * 8 + [0.95] * 2)
    right = np.array([True] * 6 + [False] * 2 + [True, False])
    assert calibration_error(confidence, right) == pytest.approx(0.2 * 0.45)


def test_the_interval_leaves_out_as_much_below_as_above():
    ages = np.zeros((3, 85))
    ages[0, 9] = 1
    ages[1] = 1 / 85
    ages[2, [0, 39, 84]] = 0.09, 0.82, 0.09
    low, high = age_interval(ages)
    assert low.tolist() == [10, 9, 40]
    assert high.tolist() == [10, 77, 40]


def test_the_age_is_the_median_of_the_distribution():
    ages = np.zeros((4, 85))
    ages[0, 0] = ages[1, 84] = 1
    ages[2, [19, 29]] = 0.25, 0.75
    ages[3, [1, 2, 79]] = 0.3, 0.3, 0.4  # whose mean is 33.5, between what nobody claims
    assert median_age(ages).tolist() == [1, 85, 30, 3]


def test_no_other_age_is_off_by_less_than_the_median(rng):
    ages = rng.dirichlet(np.full(85, 0.2), 20)
    years = np.arange(1, 86)
    off = np.abs(years[:, None] - years) @ ages.T  # of each answer, on each face
    chosen = off[median_age(ages) - 1, np.arange(20)]
    np.testing.assert_allclose(chosen, off.min(axis=0))


def test_the_median_lies_in_the_interval(rng):
    ages = rng.dirichlet(np.full(85, 0.02), 200)
    low, high = age_interval(ages)
    assert ((low <= median_age(ages)) & (median_age(ages) <= high)).all()


def test_sums_that_miss_one_still_end_within_the_ages():
    ages = np.full((1, 85), 0.98 / 85, np.float32)
    low, high = age_interval(ages)
    assert (low[0], high[0]) == (9, 77)
