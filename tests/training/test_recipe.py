import numpy as np
import pytest

from agelib.backend import keras
from agelib.training.batches import age_distributions
from agelib.training.recipe import YearsOff, face_weights, learning_rates

# Whom it sees how often


@pytest.fixture
def shares():
    """Tells which share of what training shows each age branch and gender has."""

    def count(age_branch, gender):
        age_branch, gender = np.array(age_branch), np.array(gender)
        weights = face_weights(age_branch, gender)
        assert weights.shape == age_branch.shape
        assert (weights > 0).all()
        found = np.zeros((5, 2))
        np.add.at(found, (age_branch, gender), weights)
        return found / found.sum(), weights

    return count


def test_a_branch_is_shown_as_the_root_of_its_faces(shares):
    branches = np.repeat([0, 1, 2, 3], [4, 16, 100, 400])
    found, _ = shares(branches, np.arange(520) % 2)
    np.testing.assert_allclose(found.sum(axis=1) * (2 + 4 + 10 + 20), [2, 4, 10, 20, 0])


def test_women_and_men_of_a_branch_are_shown_equally_often(shares):
    found, _ = shares([2] * 100 + [3] * 100, [0] * 90 + [1] * 10 + [0] * 30 + [1] * 70)
    np.testing.assert_allclose(found[2:4], 0.25)


def test_a_branch_of_one_gender_loses_nothing(shares):
    found, _ = shares([1] * 100 + [2] * 100, [0] * 100 + [0, 1] * 50)
    np.testing.assert_allclose(found.sum(axis=1)[1:3], 0.5)


def test_no_face_is_learned_by_heart(shares):
    _, weights = shares([2] * 5000, [1] + [0] * 4999)
    assert weights.max() == pytest.approx(20 * weights.min())
    assert weights.mean() == pytest.approx(1)


# Rate and metric


def test_the_rate_warms_up_to_its_peak_and_falls_to_nothing():
    rate = learning_rates(0.004, steps=200)
    rates = np.array([float(rate(step)) for step in range(201)])
    assert rates.max() == pytest.approx(0.004)
    assert rates.argmax() == 20
    assert rates[0] == pytest.approx(0.004 / 21)
    assert rates[10] == pytest.approx(0.004 * 11 / 21)
    assert (np.diff(rates[:21]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()
    assert rates[-1] == pytest.approx(0, abs=1e-7)


def test_years_off_is_the_mean_distance_of_the_median():
    one_hot = np.eye(85, dtype=np.float32)
    metric = YearsOff()
    metric.update_state(one_hot[[29, 9]], one_hot[[36, 4]])
    assert float(metric.result()) == pytest.approx((7 + 5) / 2)
    torn = np.zeros((1, 85), np.float32)
    torn[0, [19, 29, 79]] = 0.3, 0.3, 0.4  # its median is 30, its mean 47
    metric.update_state(one_hot[[29]], torn)
    assert float(metric.result()) == pytest.approx((7 + 5 + 0) / 3)


def test_years_off_knows_the_age_at_both_ends():
    metric = YearsOff()
    metric.update_state(age_distributions()[[0, 84]], np.eye(85, dtype=np.float32)[[0, 84]])
    assert float(metric.result()) == 0


def test_years_off_is_restored_from_a_checkpoint():
    metric = YearsOff(name="off")
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert isinstance(restored, YearsOff)
    assert restored.name == "off"
