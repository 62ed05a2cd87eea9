import numpy as np
import pytest

from agelib.model.calibration import (
    age_interval,
    calibration_error,
    fit_temperature,
    median_age,
    reliability,
)


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


@pytest.mark.parametrize(("sure_of", "expected"), [([0.9, 0.1], 0.5), ([0.0, 1.0], 5)])
def test_a_few_faces_do_not_make_a_model_infinitely_sure(sure_of, expected):
    views = np.array([[sure_of] * 10])
    assert fit_temperature(views, np.zeros(10, int)) == pytest.approx(expected, rel=0.01)


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
