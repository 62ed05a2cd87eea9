"""Age branches, gender and race codes: one convention everywhere.

Gender 0 is Male and 1 is Female; ages are whole years from 1 to 85; age branches are numbered 0 to
4. Each reader of a data set converts its labels to these.
"""

import numpy as np

AGE_BRANCHES = ((1, 13), (14, 23), (24, 39), (40, 55), (56, 85))
BRANCH_NAMES = tuple(f"{low}-{high}" for low, high in AGE_BRANCHES)
GENDERS = ("Male", "Female")
RACES = ("White", "Black", "Asian", "Indian", "Other")
MIN_AGE, MAX_AGE = AGE_BRANCHES[0][0], AGE_BRANCHES[-1][1]


def age_branch(age: int | np.ndarray) -> np.ndarray:
    """Returns the age branch of whole years, 0 to 4, or -1 outside 1 to 85; int64, shaped alike."""
    age = np.asarray(age)
    branch = np.searchsorted([high for _, high in AGE_BRANCHES], age)
    return np.where((age >= MIN_AGE) & (age <= MAX_AGE), branch, -1)
