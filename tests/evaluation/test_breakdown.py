import json

import numpy as np
import pytest
from conftest import sure, truth

from agelib.evaluation.breakdown import breakdown, worst_groups


def test_each_group_is_scored_by_its_own_faces_alone():
    true = truth([5, 5, 30, 30, 30], [0, 0, 1, 1, 1])
    true.race = np.array([0, 1, 1, 1, -1])
    groups = breakdown(true, sure([5, 30, 30, 35, 60], [0, 1, 1, 1, 0]))
    found = {group["group"]: group for group in groups}
    assert list(found) == ["1-13 Male", "24-39 Female", "White", "Black"]
    assert [group["n"] for group in groups] == [2, 3, 1, 3]
    assert found["1-13 Male"]["age_branch_accuracy"] == 0.5
    assert found["1-13 Male"]["age_mae"] == pytest.approx(12.5)
    assert found["24-39 Female"]["gender_accuracy"] == pytest.approx(2 / 3)
    assert found["Black"]["age_branch_accuracy"] == pytest.approx(2 / 3)
    assert {group["by"] for group in groups} == {"age branch and gender", "race"}


def test_groups_have_intervals_and_are_json():
    ages = np.repeat([30, 60], 100)
    said = np.where(np.arange(200) % 4, ages, 5)
    true = truth(ages, np.zeros(200, int))
    groups = breakdown(true, sure(said, np.zeros(200, int)))
    low, high = groups[0]["intervals"]["age_branch_accuracy"]
    assert low < groups[0]["age_branch_accuracy"] == 0.75 < high
    assert groups[0]["intervals"]["gender_accuracy"] is None
    assert json.loads(json.dumps(groups, allow_nan=False)) == groups


def test_the_worst_group_is_not_one_of_a_few_faces():
    ages = [5] * 9 + [18] * 10 + [30] * 10
    said = [30] * 9 + [18] * 4 + [30] * 6 + [30] * 10
    genders = [0] * 29
    worst = worst_groups(breakdown(truth(ages, genders), sure(said, [0] * 20 + [1] * 9)))
    assert worst["age_branch_accuracy"]["group"] == "14-23 Male"
    assert worst["gender_accuracy"]["group"] == "24-39 Male"


def test_too_few_faces_have_no_worst_group():
    assert worst_groups(breakdown(truth([5, 30], [0, 1]), sure([5, 5], [0, 0]))) == {}


def test_where_nothing_is_wrong_nobody_is_worst():
    worst = worst_groups(breakdown(truth([5] * 10, [0] * 10), sure([5] * 9 + [30], [0] * 10)))
    assert set(worst) == {"age_branch_accuracy"}
