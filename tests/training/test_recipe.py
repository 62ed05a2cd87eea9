from types import SimpleNamespace

import numpy as np
import pytest

from agelib.backend import keras
from agelib.training.recipe import compile_model, learning_rates, sampling_weights

# Whom it sees how often


@pytest.fixture
def shares():
    """Tells which share of what training shows each age branch and gender has."""

    def count(age_branch, gender, source=None, sources=("utkface",)):
        age_branch, gender = np.array(age_branch), np.array(gender)
        source = np.zeros(len(gender), int) if source is None else np.array(source)
        faces = SimpleNamespace(
            age_branch=age_branch, gender=gender, source=source, sources=sources
        )
        weights = sampling_weights(faces)
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


def test_a_set_with_unchecked_labels_is_shown_half_as_often(shares):
    source = np.arange(200) % 2
    found, weights = shares([2] * 200, np.arange(200) // 100, source, ("aaf", "wiki"))
    np.testing.assert_allclose(weights[source == 0], 4 / 3)
    np.testing.assert_allclose(weights[source == 1], 2 / 3)
    np.testing.assert_allclose(found[2], 0.5)


def test_sets_of_the_user_s_own_count_fully(shares):
    _, weights = shares([2] * 100, [0, 1] * 50, [0] * 50 + [1] * 50, ("holidays", "own"))
    np.testing.assert_allclose(weights, 1)


# Rate and average


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


@pytest.mark.parametrize(("steps", "momentum"), [(8, 0.5), (200, 0.9), (10**6, 0.99)])
def test_the_average_is_over_the_last_steps_and_so_are_the_statistics(
    tiny_networks, steps, momentum
):
    model = tiny_networks("EfficientNetB0", 32)
    compile_model(model, steps)
    assert model.optimizer.ema_momentum == pytest.approx(momentum)
    assert model.get_layer("backbone").get_layer("norm").momentum == pytest.approx(momentum)


def test_each_step_takes_a_share_of_the_weights_away(tiny_networks):
    model = tiny_networks("EfficientNetB0", 32)
    compile_model(model, 10)
    before = model.get_layer("age_logits").get_weights()[0]
    model.optimizer.learning_rate = 0.001
    model.optimizer.apply(
        [keras.ops.zeros_like(each) for each in model.trainable_variables],
        model.trainable_variables,
    )
    after = model.get_layer("age_logits").get_weights()[0]
    np.testing.assert_allclose(after, before * (1 - 0.3 * 0.001), rtol=1e-6)


def test_what_is_minimised_is_the_age_and_the_gender(tiny_networks):
    model = tiny_networks("EfficientNetB0", 32)
    compile_model(model, 10)
    images = np.zeros((4, 32, 32, 3))
    targets = {
        "age": np.array([[3, 9], [30, 30], [10, 19], [85, 85]]),
        "age_branch": np.array([0, 2, -1, 4]),
        "gender": np.array([0, 1, 0, 1]),
    }
    found = model.evaluate(images, targets, verbose=0, return_dict=True)
    assert set(found) == {
        *("loss", "age_loss", "gender_loss", "age_mae", "age_branch_accuracy", "gender_accuracy"),
    }
    assert found["loss"] == pytest.approx(found["age_loss"] + found["gender_loss"], rel=1e-5)
