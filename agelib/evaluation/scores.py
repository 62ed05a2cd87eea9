"""Scores: a model's probabilities against the labels of the faces."""

from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from agelib.evaluation.bootstrap import score_intervals
from agelib.labels import BRANCH_NAMES, GENDERS
from agelib.model.calibration import age_interval, calibration_error, median_age

YEARS_WITHIN = (1, 3, 5, 10)


def metrics(faces: Any, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compares a model's probabilities with the labels.

    Args:
        faces: Anything with `age`, `age_branch`, `gender` and `person`, each of shape (n,).
        outputs: `age` (n, 85), `age_branch` (n, 5) and `gender` (n, 2).

    Returns:
        JSON types: `n`; for both heads accuracy, balanced accuracy (mean recall of the classes
        that occur), recall (None for a class that does not occur), confusion (rows are true),
        expected calibration error (`_ece`) and what always answering the commonest class would
        score; `age_mae` in years, `age_within_N` the share of ages at most N years off,
        `age_interval_coverage` the share that lies in its 80 % interval and `age_interval_width`
        its mean years; under `intervals` the 95 % intervals of `agelib.evaluation.bootstrap`.
    """
    heads = {
        "age_branch": (faces.age_branch, outputs["age_branch"].argmax(axis=1), len(BRANCH_NAMES)),
        "gender": (faces.gender, outputs["gender"].argmax(axis=1), len(GENDERS)),
    }
    ages = _age_scores(faces.age, outputs["age"])
    scores = {"n": len(faces.age)} | {name: float(each.mean()) for name, each in ages.items()}
    for head, (true, said, count) in heads.items():
        scores |= _classification(head, true, said, count)
        scores[f"{head}_ece"] = calibration_error(outputs[head].max(axis=1), true == said)
    return scores | {"intervals": score_intervals(faces.person, ages, heads)}


def _age_scores(true: np.ndarray, ages: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the figures of each face whose means are scores."""
    years_off = np.abs(median_age(ages) - true)
    low, high = age_interval(ages)
    return {
        "age_mae": years_off,
        **{f"age_within_{years}": years_off <= years for years in YEARS_WITHIN},
        "age_interval_coverage": (low <= true) & (true <= high),
        "age_interval_width": high - low,
    }


def _classification(head: str, true: np.ndarray, said: np.ndarray, count: int) -> dict[str, Any]:
    classes = np.arange(count)
    recall = recall_score(true, said, labels=classes, average=None, zero_division=np.nan)
    occurs = np.bincount(true, minlength=count)
    recall = [float(value) if n else None for value, n in zip(recall, occurs, strict=True)]
    present = [value for value in recall if value is not None]
    return {
        f"{head}_accuracy": float(accuracy_score(true, said)),
        f"{head}_balanced_accuracy": float(np.mean(present)),
        f"{head}_recall": recall,
        f"{head}_confusion": confusion_matrix(true, said, labels=classes).tolist(),
        f"{head}_commonest_accuracy": float(occurs.max() / len(true)),
        f"{head}_commonest_balanced_accuracy": 1 / len(present),
    }
