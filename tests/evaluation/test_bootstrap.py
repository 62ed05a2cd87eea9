import numpy as np
import pytest
from scipy.stats import binom

from agelib.evaluation.bootstrap import score_intervals


def intervals(right, person=None, true=None, years_off=None):
    """Intervals of one head of two classes, right or wrong as said."""
    right = np.asarray(right)
    true = np.zeros(len(right), int) if true is None else np.asarray(true)
    person = np.arange(len(right)) if person is None else person
    years_off = np.zeros(len(right)) if years_off is None else years_off
    heads = {"gender": (true, np.where(right, true, 1 - true), 2)}
    return score_intervals(person, {"age_mae": years_off}, heads)


def width(ends):
    return ends[1] - ends[0]


def test_an_accuracy_has_the_interval_of_counting_heads():
    right = np.arange(400) % 5 > 0
    low, high = intervals(right)["gender_accuracy"]
    expected = binom.ppf([0.025, 0.975], 400, 0.8) / 400
    np.testing.assert_allclose([low, high], expected, atol=0.006)


def test_an_error_has_the_interval_of_its_mean(rng):
    years_off = rng.exponential(6, 900)
    low, high = intervals(np.ones(900, bool), years_off=years_off)["age_mae"]
    half = 1.96 * years_off.std() / 30
    np.testing.assert_allclose(
        [low, high], [years_off.mean() - half, years_off.mean() + half], 0.02
    )


def test_many_faces_of_few_people_leave_more_doubt():
    right = np.repeat(np.arange(40) % 5 > 0, 10)
    alone = intervals(right)["gender_accuracy"]
    together = intervals(right, person=np.repeat(np.arange(40), 10))["gender_accuracy"]
    assert width(together) == pytest.approx(width(alone) * 10**0.5, rel=0.15)


def test_balanced_accuracy_and_recall_follow_the_classes():
    true = np.repeat([0, 1], [900, 100])
    right = np.concatenate([np.arange(900) % 10 > 0, np.arange(100) % 2 > 0])
    found = intervals(right, true=true)
    np.testing.assert_allclose(found["gender_recall"][0], [0.88, 0.92], atol=0.01)
    np.testing.assert_allclose(found["gender_recall"][1], [0.4, 0.6], atol=0.03)
    np.testing.assert_allclose(found["gender_balanced_accuracy"], [0.65, 0.75], atol=0.015)


@pytest.mark.parametrize("people", [1, 9, 10])
def test_a_class_of_too_few_people_leaves_the_balanced_accuracy_without_an_interval(people):
    faces = 30  # of that class, by so many people
    person = np.concatenate([np.arange(faces) % people, 100 + np.arange(200)])
    true = np.repeat([1, 0], [faces, 200])
    found = intervals(np.arange(faces + 200) % 4 > 0, person, true)
    has_any = people == 10
    assert bool(found["gender_recall"][1]) == has_any
    assert bool(found["gender_balanced_accuracy"]) == has_any
    assert found["gender_recall"][0]
    assert found["gender_accuracy"]


def test_a_class_that_does_not_occur_takes_nothing_from_the_others():
    found = intervals(np.arange(50) % 2 > 0)
    assert found["gender_recall"][1] is None
    assert found["gender_balanced_accuracy"] == found["gender_recall"][0]


@pytest.mark.parametrize("count", [1, 50])
def test_where_all_is_right_drawing_tells_nothing(count):
    found = intervals(np.ones(count, bool))
    assert found["gender_accuracy"] is None
    assert found["gender_balanced_accuracy"] is None


def test_the_same_faces_have_the_same_intervals(rng):
    right, person = rng.random(60) > 0.3, rng.integers(0, 20, 60)
    hashes = person.astype(np.uint64) + np.uint64(2**64 - 30)
    assert intervals(right, person) == intervals(right, hashes)
