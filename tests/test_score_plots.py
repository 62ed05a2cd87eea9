import numpy as np
import pandas as pd
import pytest
from conftest import can_be_saved, sure, truth

from agelib import score_plots
from agelib.evaluation.evaluate import scores
from agelib.labels import BRANCH_NAMES


def report():
    genders = ([0, 1, 0, 1, 1], [0, 1, 1, 1, 1])
    return scores(truth([5, 20, 30, 30, 60], genders[0]), sure([5, 30, 30, 30, 45], genders[1]))


def estimates(ages=(5, 20, 30, 60), said=(8, 25, 26, 60)):
    right = np.array(ages) % 20 == 0
    return pd.DataFrame(
        {
            "age": ages,
            "said_age": said,
            "age_branch": "24-39",
            "said_branch": np.where(right, "24-39", "40-55"),
            "branch_confidence": 0.6,
            "gender": "Male",
            "said_gender": "Male",
            "gender_confidence": 0.9,
        }
    )


FIGURES = {
    "confusion": lambda: score_plots.confusion(report()),
    "age errors": lambda: score_plots.age_errors(estimates()),
    "age errors of one face": lambda: score_plots.age_errors(estimates([85], [1])),
    "reliability": lambda: score_plots.reliability_diagram(estimates()),
    "reliability of one face": lambda: score_plots.reliability_diagram(estimates([20], [20])),
    "groups": lambda: score_plots.groups(report()),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_returned_that_can_be_saved_and_pyplot_knows_nothing_of_it(name, tmp_path):
    assert can_be_saved(FIGURES[name](), tmp_path / "figure.png")


def test_age_errors_are_means_over_five_years_of_true_age():
    by_age, _ = score_plots.age_errors(estimates([1, 5, 6, 85], [3, 1, 12, 80])).axes
    bars = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in by_age.patches}
    assert bars == {3: 3, 8: 6, 83: 5}
    x, y = by_age.lines[0].get_data()
    assert (list(x), list(y)) == ([3, 8, 83], [-1, 6, -5])


def test_the_cumulative_score_counts_faces_within_so_many_years():
    _, within = score_plots.age_errors(estimates()).axes
    shares = dict(zip(*within.lines[0].get_data(), strict=True))
    assert [shares[years] for years in (0, 2, 3, 4, 5, 20)] == [0.25, 0.25, 0.5, 0.75, 1, 1]


def test_reliability_sets_sureness_against_what_is_right():
    branch, gender = score_plots.reliability_diagram(estimates()).axes
    assert branch.get_title() == "age branch: calibration error 10.0%"  # 0.6 sure, 0.5 right
    assert gender.get_title() == "gender: calibration error 10.0%"
    assert branch.lines[1].get_xydata().tolist() == [[pytest.approx(0.6), 0.5]]
    assert gender.lines[1].get_xydata().tolist() == [[pytest.approx(0.9), 1.0]]


def test_every_group_has_a_row_with_its_number_of_faces():
    figure = score_plots.groups(report())
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[:2] == ["1-13 Male  (1)", "14-23 Female  (1)"]
    assert len(names) == len(report()["groups"]) == len(figure.axes[1].lines[0].get_xdata())


def test_confusions_show_counts_and_shares_of_the_true_class():
    figure = score_plots.confusion(report())
    branches, genders = figure.axes
    assert branches.get_title() == "age branch: 60.0% right"
    assert genders.get_title() == "gender: 80.0% right"
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in branches.texts}
    assert cells[2, 2] == "100%\n2"
    assert cells[2, 1] == "100%\n1"
    assert cells[1, 1] == "0%\n0"
    assert (branches.get_xlabel(), branches.get_ylabel()) == ("estimated", "true")
    assert [label.get_text() for label in branches.get_yticklabels()] == list(BRANCH_NAMES)


def test_a_class_that_does_not_occur_leaves_its_row_empty():
    branches = score_plots.confusion(report()).axes[0]
    row = [text.get_text() for text in branches.texts if text.get_position()[1] == 3]
    assert row == ["0%\n0"] * 5
