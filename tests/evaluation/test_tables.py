import re

import numpy as np
import pytest
from conftest import sure, truth

from agelib.evaluation.scores import breakdown, metrics
from agelib.evaluation.tables import (
    calibration_table,
    compare_table,
    duplicates_sentence,
    estimates_table,
    groups_table,
    name_worst,
    recall_table,
    results_table,
)
from agelib.faces.near_duplicates import label_agreement


@pytest.fixture
def scores():
    ages = [30] * 60 + [60] * 40
    return metrics(truth(ages, [0, 1] * 50), sure([30] * 75 + [60] * 25, [0] * 60 + [1] * 40))


def test_the_results_table_has_a_column_for_each_split(scores):
    table = results_table({**scores, "splits": {"train": scores, "val": scores, "test": scores}})
    assert table.columns.tolist() == ["train", "val", "test"]
    low, high = (100 * end for end in scores["intervals"]["age_branch_accuracy"])
    expected = f"85.0 % ({low:.1f}-{high:.1f})"
    assert table.loc["AGE accuracy (5 branches)"].tolist() == [expected] * 3
    assert re.fullmatch(
        r"4\.5 \(\d\.\d-\d\.\d\)", table.loc["AGE mean absolute error, years", "val"]
    )
    assert table.loc["faces", "test"] == "100"


def test_a_report_without_splits_has_one_column():
    scores = metrics(truth([5, 30, 30], [0, 1, 1]), sure([5, 30, 60], [0, 1, 1]))
    table = results_table(scores)
    assert table.columns.tolist() == ["test"]
    assert table.loc["AGE accuracy (5 branches)", "test"] == "66.7 %"
    assert table.loc["AGE balanced accuracy", "test"] == "75.0 %"
    assert table.loc["GENDER accuracy", "test"] == "100.0 %"
    assert table.loc["GENDER, always the commonest", "test"] == "66.7 %"


def test_the_recall_table_counts_true_faces_and_marks_missing_classes():
    scores = metrics(truth([5, 30, 30], [0, 1, 1]), sure([5, 30, 60], [0, 0, 1]))
    table = recall_table(scores)
    assert table.index.tolist() == ["1-13", "14-23", "24-39", "40-55", "56-85", "Male", "Female"]
    assert table["faces"].tolist() == [1, 0, 2, 0, 0, 1, 2]
    assert table["recall"].tolist() == ["100.0 %", "-", "50.0 %", "-", "-", "100.0 %", "50.0 %"]


def test_the_recall_table_has_intervals(scores):
    table = recall_table(scores)
    assert table["recall"]["24-39"] == "100.0 %"  # no drawn set differs
    assert re.fullmatch(r"62\.5 % \([45]\d\.\d-7\d\.\d\)", table["recall"]["56-85"])
    assert table["recall"]["1-13"] == "-"


def test_the_calibration_table_tells_how_far_off_ages_are(scores):
    table = calibration_table(scores)
    assert table.loc["AGE at most 5 years off", "test"].startswith("85.0 % (")
    assert table.loc["GENDER calibration error (ECE)", "test"] == "50.0 %"
    assert table.loc["AGE, width of that interval, years", "test"] == "0.0"


def test_runs_are_compared_side_by_side(scores):
    other = metrics(truth([30] * 4, [0] * 4), sure([30] * 4, [0, 0, 0, 1]))
    table = compare_table({"long": scores, "short": other})
    assert table.columns.tolist() == ["long", "short"]
    assert table.loc["AGE accuracy (5 branches)", "short"] == "100.0 %"
    assert table.loc["GENDER accuracy", "short"].startswith("75.0 %")
    assert "AGE at most 5 years off" in table.index
    assert table.loc["faces"].tolist() == ["100", "4"]


@pytest.fixture
def grouped():
    true = truth([18] * 12 + [60] * 12, [0] * 24)
    return {"groups": breakdown(true, sure([18] * 3 + [60] * 21, [0] * 18 + [1] * 6))}


def test_the_groups_table_has_a_row_for_each_group(grouped):
    table = groups_table(grouped)
    assert ("age branch and gender", "14-23 Male") in table.index
    assert ("race", "Indian") in table.index
    row = table.loc[("age branch and gender", "14-23 Male")]
    assert row["faces"] == 12
    assert re.fullmatch(r"25\.0 % \(\d+\.\d-\d+\.\d\)", row["AGE accuracy"])
    assert row["AGE error, years"].startswith("31.5 (")


def test_the_worst_groups_are_named_with_their_figures(grouped):
    assert name_worst(grouped) == (
        "Worst age branch, 14-23 Male: 25.0 % of 12 faces right; "
        "worst gender, 56-85 Male: 50.0 % of 12 faces right."
    )
    assert name_worst({"groups": []}) == "No group of ten or more people has an error."


def test_near_duplicates_limit_what_a_score_can_mean():
    labels = truth([20, 26, 30, 5], [0, 0, 1, 1])
    pairs = np.array([[0, 1], [2, 3], [1, 2], [0, 0]])
    assert duplicates_sentence(label_agreement(labels, pairs)) == (
        "Near-duplicates among these faces: 4 pairs, whose labels agree on the age branch in 50 % "
        "and on the gender in 75 %, and differ by 8.8 years on average. Where the labels of one "
        "photo differ, some are wrong, and no model can be right on all of them."
    )
    none = label_agreement(labels, np.empty((0, 2), int))
    assert duplicates_sentence(none) == "No two of these faces are near-duplicates."


def test_estimates_are_listed_face_by_face():
    true = truth([30, 5], [1, 0])
    true.paths, true.race = ["a.jpg", "b,c.jpg"], np.array([-1, 2])
    outputs = sure([28, 5], [0, 0])
    outputs["age_branch"] = np.array([[0, 0, 0.6, 0.4, 0], [0.9, 0.1, 0, 0, 0]])
    table = estimates_table(true, outputs)
    assert table.iloc[0].to_dict() == {
        "path": "a.jpg",
        "age": 30,
        "age_branch": "24-39",
        "gender": "Female",
        "race": "",
        "estimated_age": 28,
        "years_off": -2,
        "age_low": 28,
        "age_high": 28,
        "estimated_branch": "24-39",
        "branch_confidence": 0.6,
        "estimated_gender": "Male",
        "gender_confidence": 1.0,
    }
    assert table["race"].tolist() == ["", "Asian"]


def test_tables_of_ranges_have_what_there_is():
    true = truth([3, 10], [0, 1], [9, 39])
    true.paths = ["a.jpg", "b.jpg"]
    outputs = sure([5, 50], [0, 1])
    ranges = metrics(true, outputs) | {"groups": breakdown(true, outputs)}
    table = results_table(ranges)
    assert table.loc["AGE in its range", "test"] == "50.0 %"
    assert "AGE accuracy (5 branches)" not in table.index
    assert "AGE in its 80 % interval" not in calibration_table(ranges).index
    assert recall_table(ranges).index.tolist() == ["Male", "Female"]
    assert groups_table(ranges).columns.tolist()[1] == "AGE in its range"
    listed = estimates_table(true, outputs)
    assert listed[["age", "age_to", "years_off"]].to_numpy().tolist() == [[3, 9, 0], [10, 39, 11]]
    assert "age_branch" not in listed
    exact = metrics(truth([30], [0]), sure([30], [0]))
    both = compare_table({"exact": exact, "ranges": ranges})
    assert both.loc["AGE accuracy (5 branches)"].tolist() == ["100.0 %", "-"]
    assert both.loc["AGE in its range"].tolist() == ["-", "50.0 %"]


def test_other_test_sets_have_columns_of_their_own(scores):
    parts = {"train": scores, "val": scores, "test": scores}
    report = scores | {"splits": parts, "tests": {"utkface": scores, "aaf": scores}}
    assert results_table(report).columns.tolist() == ["train", "val", "test", "test on aaf"]
