import json

import numpy as np
import pytest
from conftest import sure, truth

from agelib.evaluation.scores import metrics


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
