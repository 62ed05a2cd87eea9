import json

import numpy as np
import pytest
from conftest import sure, truth
from scipy.stats import binom

from agelib.evaluation.scores import breakdown, metrics, score_intervals, worst_groups, years_off

# Ages that are ranges

LOW, HIGH = [1, 3, 10, 20, 70], [2, 9, 19, 29, 85]


def test_metrics_of_a_case_counted_by_hand():
    true = truth([5, 8, 30, 30, 30, 60], [0, 1, 0, 0, 1, 1])
    said = sure([5, 20, 30, 35, 45, 70], [0, 1, 1, 0, 1, 1])
    scores = metrics(true, said)
    assert scores["n"] == 6
    assert scores["age_branch_accuracy"] == pytest.approx(4 / 6)
    assert scores["age_branch_recall"] == [0.5, None, pytest.approx(2 / 3), None, 1.0]
    assert scores["age_branch_balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)
    assert scores["age_branch_confusion"] == [
        [1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 2, 1, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
    ]
    assert scores["age_mae"] == pytest.approx((0 + 12 + 0 + 5 + 15 + 10) / 6)
    assert scores["gender_accuracy"] == pytest.approx(5 / 6)
    assert scores["gender_recall"] == [pytest.approx(2 / 3), 1.0]
    assert scores["gender_balanced_accuracy"] == pytest.approx(5 / 6)
    assert scores["gender_confusion"] == [[2, 1], [0, 3]]


def test_every_interval_lies_around_its_score():
    rng = np.random.default_rng(4)
    true, genders = rng.integers(1, 86, 500), rng.integers(0, 2, 500)
    guesses = (true + rng.integers(-20, 21, 500)).clip(1, 85)
    scores = metrics(truth(true, genders), sure(guesses, np.where(true % 7, genders, 1 - genders)))
    intervals = scores["intervals"]
    for key in ("age_mae", "age_branch_accuracy", "gender_balanced_accuracy"):
        low, high = intervals[key]
        assert low < scores[key] < high
    for head in ("age_branch", "gender"):
        ends = intervals[f"{head}_recall"]
        for recall, (low, high) in zip(scores[f"{head}_recall"], ends, strict=True):
            assert low <= recall <= high


def test_the_gender_of_children_is_a_score_of_its_own():
    said = [0] * 15 + [1] * 15
    scores = metrics(truth([13] * 20 + [14] * 10, [0] * 20 + [1] * 10), sure([5] * 30, said))
    assert scores["gender_accuracy_children"] == pytest.approx(15 / 20)
    low, high = scores["intervals"]["gender_accuracy_children"]
    assert low < 15 / 20 < high
    assert "gender_accuracy_children" not in metrics(truth([14], [0]), sure([5], [0]))
    ranges = metrics(truth([10, 10], [0, 1], [13, 19]), sure([5, 5], [0, 0]))
    assert ranges["gender_accuracy_children"] == 1


def test_a_drawn_set_without_a_class_says_nothing_of_its_recall():
    # Of two hundred classes of ten people, some drawn sets lack some.
    true = np.repeat(np.arange(200), 10)
    found = score_intervals(np.arange(2000), {}, {"gender": (true, true, 200)})
    assert found["gender_recall"] == [None] * 200


@pytest.mark.parametrize("count", [9, 10])
def test_fewer_than_ten_people_have_no_interval(count):
    right, years = np.arange(count) % 2 > 0, np.arange(count)
    found = intervals(right, years_off=years)
    assert (found["gender_accuracy"] is not None) == (found["age_mae"] is not None) == (count > 9)


def test_the_commonest_class_says_what_no_model_at_all_would_score():
    scores = metrics(truth([30] * 7 + [5, 5, 60], [0] * 9 + [1]), sure([5] * 10, [0] * 10))
    assert scores["age_branch_commonest_accuracy"] == pytest.approx(0.7)
    assert scores["age_branch_commonest_balanced_accuracy"] == pytest.approx(1 / 3)
    assert scores["gender_commonest_accuracy"] == pytest.approx(0.9)
    assert scores["gender_commonest_balanced_accuracy"] == pytest.approx(1 / 2)


def test_a_single_face_of_one_class_has_metrics():
    scores = metrics(truth([85], [1]), sure([85], [1]))
    assert scores["age_branch_recall"] == [None, None, None, None, 1.0]
    assert scores["gender_balanced_accuracy"] == 1.0
    assert scores["age_mae"] == pytest.approx(0)


def test_metrics_are_json():
    scores = metrics(truth([5, 30], [0, 0]), sure([5, 60], [1, 0]))
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_cumulative_scores_count_ages_at_most_so_far_off():
    scores = metrics(truth([30] * 5, [0] * 5), sure([30, 31, 33, 36, 45], [0] * 5))
    shares = [scores[f"age_within_{years}"] for years in (1, 3, 5, 10)]
    assert shares == pytest.approx([0.4, 0.6, 0.6, 0.8])


def test_coverage_counts_the_ages_that_lie_in_their_interval():
    ages = np.full((4, 85), 0.0)
    ages[:, 19:29] = 0.1  # 20 to 29, of which the interval is 20 to 28
    outputs = sure([24] * 4, [0] * 4) | {"age": ages}
    scores = metrics(truth([19, 20, 28, 30], [0] * 4), outputs)
    assert scores["age_interval_coverage"] == pytest.approx(0.5)
    assert scores["age_interval_width"] == pytest.approx(8)


def test_a_model_that_doubts_nothing_is_as_badly_calibrated_as_it_errs():
    scores = metrics(truth([30] * 10, [0] * 10), sure([30] * 7 + [5] * 3, [0] * 9 + [1]))
    assert scores["age_branch_ece"] == pytest.approx(0.3)
    assert scores["gender_ece"] == pytest.approx(0.1)


def of_ranges(said):
    return metrics(truth(LOW, [0, 1, 0, 1, 1], HIGH), sure(said, [0] * 5))


def test_an_estimate_inside_a_range_is_right():
    scores = of_ranges([1, 9, 20, 45, 85])
    assert scores["age_range_accuracy"] == pytest.approx(3 / 5)
    assert scores["age_mae"] == pytest.approx((1 + 16) / 5)
    assert scores["age_within_1"] == pytest.approx(4 / 5)
    # 20 lies in the next range, 45 in none, nearer to 29 than to 70.
    assert scores["age_range_within_one"] == 1
    assert of_ranges([1, 9, 20, 50, 85])["age_range_within_one"] == 1
    assert of_ranges([20, 9, 20, 50, 20])["age_range_within_one"] == pytest.approx(4 / 5)


def test_scores_that_need_exact_ages_are_left_out_where_there_are_ranges():
    scores = of_ranges([1, 9, 20, 45, 85])
    assert not [name for name in scores if "branch" in name or "coverage" in name]
    assert set(scores["intervals"]) == {
        *("age_mae", "age_within_1", "age_within_3", "age_within_5", "age_within_10"),
        *("age_interval_width", "age_range_accuracy", "age_range_within_one"),
        *("gender_accuracy", "gender_accuracy_children"),
        *("gender_balanced_accuracy", "gender_recall"),
    }
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_ranges_that_each_lie_in_a_branch_have_scores_of_branches():
    true = truth([1, 3, 24], [0, 1, 0], [2, 13, 39])
    scores = metrics(true, sure([13, 2, 50], [0, 1, 0]))
    assert scores["age_branch_accuracy"] == pytest.approx(2 / 3)
    assert scores["age_range_accuracy"] == pytest.approx(0)
    assert "age_interval_coverage" not in scores


def test_ranges_that_overlap_are_no_bins():
    scores = metrics(truth([1, 3, 27], [0, 1, 0], [4, 40, 32]), sure([2, 2, 33], [0, 1, 0]))
    assert scores["age_range_accuracy"] == pytest.approx(1 / 3)
    assert "age_range_within_one" not in scores


def test_exact_ages_have_no_scores_of_ranges():
    assert not [n for n in metrics(truth([5], [0]), sure([5], [0])) if "age_range" in n]


def test_years_off_tell_older_from_younger():
    true = truth([10, 10, 10], [0] * 3, [19, 19, 10])
    assert years_off(true, np.array([25, 8, 12])).tolist() == [6, -2, 2]


def intervals(right, person=None, true=None, years_off=None):
    """Intervals of one head of two classes, right or wrong as said."""
    right = np.asarray(right)
    true = np.zeros(len(right), int) if true is None else np.asarray(true)
    person = np.arange(len(right)) if person is None else person
    years_off = np.zeros(len(right)) if years_off is None else years_off
    heads = {"gender": (true, np.where(right, true, 1 - true), 2)}
    return score_intervals(person, {"age_mae": years_off, "gender_accuracy": right}, heads)


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


def test_ranges_take_the_place_of_branches_that_they_cross():
    true = truth([3, 3, 10, 60], [0, 1, 1, 0], [9, 9, 19, 85])
    groups = breakdown(true, sure([5, 20, 19, 59], [0] * 4))
    names = [group["group"] for group in groups if group["by"] == "age range and gender"]
    assert names == ["3-9 Male", "3-9 Female", "10-19 Female", "60-85 Male"]
    assert [group["age_range_accuracy"] for group in groups[:4]] == [1, 0, 1, 0]
    assert groups[1]["age_mae"] == 11
    assert "age_branch_accuracy" not in groups[0]


def test_ranges_that_overlap_leave_the_genders():
    groups = breakdown(truth([3, 3], [0, 1], [9, 20]), sure([5, 20], [0, 1]))
    assert [group["group"] for group in groups if group["by"] == "gender"] == ["Male", "Female"]


def test_races_are_those_of_the_set():
    true = truth([30, 30], [0, 1])
    true.race, true.races = np.array([1, -1]), ("Latino_Hispanic", "East Asian")
    groups = breakdown(true, sure([30, 30], [0, 1]))
    assert [group["group"] for group in groups if group["by"] == "race"] == ["East Asian"]


def test_the_worst_range_is_named():
    true = truth([3] * 10 + [10] * 10, [0] * 20, [9] * 10 + [19] * 10)
    worst = worst_groups(breakdown(true, sure([5] * 9 + [20] * 11, [0] * 20)))
    assert worst["age_range_accuracy"]["group"] == "10-19 Male"
