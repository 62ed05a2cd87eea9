import re

import pytest
from conftest import sure, truth

from agelib.evaluate import metrics
from agelib.report import recall_table, results_table


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
    assert table.loc["AGE accuracy (5 branches)", "test"] == "66.7 % (0.0-100.0)"
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
