"""Scores of groups of people: whom a model serves worse than others."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from agelib.evaluation.bootstrap import FEWEST_PEOPLE
from agelib.evaluation.scores import metrics
from agelib.labels import BRANCH_NAMES, GENDERS

_SCORES = ("age_branch_accuracy", "age_mae", "gender_accuracy")


def breakdown(faces: Any, outputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Scores each age branch and gender, and each race where the data set names them.

    Args:
        faces: As for `agelib.evaluation.scores.metrics`, with `race` as well, of shape (n,), and
            `races`, the names that it numbers.
        outputs: As for `agelib.evaluation.scores.metrics`.

    Returns:
        A dict for each group that has faces: `by` ("age branch and gender" or "race"), `group`,
        `n` faces of so many `people`, and of age branch accuracy, age MAE and gender accuracy the
        score and, under `intervals`, its 95 % interval.
    """
    masks = {
        ("age branch and gender", f"{branch} {gender}"): (faces.age_branch == i)
        & (faces.gender == j)
        for i, branch in enumerate(BRANCH_NAMES)
        for j, gender in enumerate(GENDERS)
    }
    masks |= {("race", race): faces.race == i for i, race in enumerate(faces.races)}
    return [
        {"by": by, "group": group} | _score(faces, outputs, mask)
        for (by, group), mask in masks.items()
        if mask.any()
    ]


def _score(faces: Any, outputs: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    labels = ("age", "age_branch", "gender", "person")
    part = SimpleNamespace(**{name: getattr(faces, name)[mask] for name in labels})
    scores = metrics(part, {name: values[mask] for name, values in outputs.items()})
    intervals = {name: scores["intervals"][name] for name in _SCORES}
    people = {"people": len(np.unique(part.person)), "intervals": intervals}
    return {name: scores[name] for name in ("n", *_SCORES)} | people


def worst_groups(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the group of age branch and gender for which each head is right least often.

    Groups of fewer than ten people are left out: one more or less would make them the worst.

    Args:
        groups: From `breakdown`.

    Returns:
        "age_branch_accuracy" and "gender_accuracy" -> the group; left out where there is no error
        in any, or all are that small.
    """
    cells = [
        group
        for group in groups
        if group["by"] == "age branch and gender" and group["people"] >= FEWEST_PEOPLE
    ]
    worst = {}
    for name in ("age_branch_accuracy", "gender_accuracy"):
        wrong = [cell for cell in cells if cell[name] < 1]
        if wrong:
            worst[name] = min(wrong, key=lambda cell: cell[name])
    return worst
