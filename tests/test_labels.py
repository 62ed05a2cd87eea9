import numpy as np
import pytest

from agelib.labels import AGE_BRANCHES, BRANCH_NAMES, GENDERS, age_branch


def test_gender_codes_are_the_papers():
    assert GENDERS == ("Male", "Female")


@pytest.mark.parametrize(
    ("age", "branch"),
    [
        (-31, -1),
        (0, -1),
        (1, 0),
        (13, 0),
        (14, 1),
        (23, 1),
        (24, 2),
        (39, 2),
        (40, 3),
        (55, 3),
        (56, 4),
        (85, 4),
        (86, -1),
        (2014, -1),
    ],
)
def test_age_branch_edges(age, branch):
    assert age_branch(age) == branch


def test_age_branch_keeps_the_shape():
    ages = np.arange(6).reshape(2, 3) * 20
    assert age_branch(ages).tolist() == [[-1, 1, 3], [4, 4, -1]]


def test_age_branches_cover_1_to_85_once():
    covered = [age for low, high in AGE_BRANCHES for age in range(low, high + 1)]
    assert covered == list(range(1, 86))
    assert BRANCH_NAMES == ("1-13", "14-23", "24-39", "40-55", "56-85")
