"""Scores: a model's probabilities against labels, with confidence intervals, and by group."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

from agelib.labels import AGE_BRANCHES, BRANCH_NAMES, GENDERS, age_branch
from agelib.model.inference import age_interval, calibration_error, median_age

YEARS_WITHIN = (1, 3, 5, 10)

LEVEL = 0.95
RESAMPLES = 1000
FEWEST_PEOPLE = 10

_SCORES = ("age_branch_accuracy", "age_range_accuracy", "age_mae", "gender_accuracy")
_MOST_RANGES = 20

Heads = dict[str, tuple[np.ndarray, np.ndarray, int]]  # true and estimated codes, and of how many


def metrics(faces: Any, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compares a model's probabilities with the labels.

    If a label is a range, an estimate inside it is right, and one outside has an error in years to
    the nearer end. Such labels have no coverage of intervals, and no scores of age branches unless
    each range lies within a branch. `faces` has `age`, `age_high`, `age_branch`, `gender` and
    `person`, each of shape (n,), `outputs` `age` (n, 85), `age_branch` (n, 5) and `gender` (n, 2).

    Returns JSON types: `n`; for both heads accuracy, balanced accuracy (mean recall of the classes
    that occur), recall (None for a class that does not occur), confusion (rows are true), expected
    calibration error (`_ece`) and the accuracies of always answering the commonest class;
    `gender_accuracy_children` at ages in the youngest branch; `age_mae` in years, `age_within_N`,
    the share of ages at most N years off, `age_interval_coverage`, the share in the 80 % interval,
    and `age_interval_width`, its mean years; for ranges `age_range_accuracy` and, where no two
    overlap, `age_range_within_one`, the share of estimates in the right range or the next one;
    under `intervals` those of `score_intervals`.
    """
    heads, of_faces = _heads(faces, outputs), _face_scores(faces, outputs)
    scores = {"n": len(faces.age)} | _means(of_faces)
    for head, (true, estimated, count) in heads.items():
        scores |= _classification(head, true, estimated, count)
        scores[f"{head}_ece"] = calibration_error(outputs[head].max(axis=1), true == estimated)
    return scores | {"intervals": score_intervals(faces.person, of_faces, heads)}


def _heads(faces: Any, outputs: dict[str, np.ndarray]) -> Heads:
    heads = {"gender": (faces.gender, outputs["gender"].argmax(axis=1), len(GENDERS))}
    if in_branches(faces):
        branch = outputs["age_branch"].argmax(axis=1)
        heads["age_branch"] = (faces.age_branch, branch, len(BRANCH_NAMES))
    return heads


def in_branches(faces: Any) -> bool:
    """Tells whether every face's age, range or not, lies within one age branch."""
    return bool((age_branch(faces.age) == age_branch(faces.age_high)).all())


def age_ranges(faces: Any) -> np.ndarray | None:
    """Returns the ranges of ages in order, of shape (ranges, 2); None if some overlap."""
    ranges = np.unique(np.column_stack([faces.age, faces.age_high]), axis=0)
    return ranges if (ranges[1:, 0] > ranges[:-1, 1]).all() else None


def years_off(faces: Any, estimated: np.ndarray) -> np.ndarray:
    """Returns the errors of estimates in years, above 0 if too old, 0 within a range."""
    return np.maximum(estimated - faces.age_high, 0) - np.maximum(faces.age - estimated, 0)


def _face_scores(faces: Any, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the scores of each face, NaN for one that does not count; `metrics` has the means."""
    heads = _heads(faces, outputs).items()
    scores = {f"{head}_accuracy": true == estimated for head, (true, estimated, _) in heads}
    children = faces.age_high <= AGE_BRANCHES[0][1]
    if children.any():
        right = scores["gender_accuracy"]
        scores["gender_accuracy_children"] = np.where(children, right, np.nan)
    return scores | _age_scores(faces, outputs["age"])


def _means(scores: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.nanmean(each)) for name, each in scores.items()}


def _age_scores(faces: Any, ages: np.ndarray) -> dict[str, np.ndarray]:
    estimated, (low, high) = median_age(ages), age_interval(ages)
    off = np.abs(years_off(faces, estimated))
    scores = {
        "age_mae": off,
        **{f"age_within_{years}": off <= years for years in YEARS_WITHIN},
        "age_interval_width": high - low,
    }
    if (faces.age == faces.age_high).all():
        return scores | {"age_interval_coverage": (low <= faces.age) & (faces.age <= high)}
    scores["age_range_accuracy"] = off == 0
    ranges = age_ranges(faces)
    if ranges is not None:
        right, years = np.searchsorted(ranges[:, 0], faces.age), estimated[:, None]
        # An estimate may lie in no range: the nearest is meant.
        nearest = np.maximum(ranges[:, 0] - years, years - ranges[:, 1]).argmin(axis=1)
        scores["age_range_within_one"] = np.abs(nearest - right) <= 1
    return scores


def _classification(
    head: str, true: np.ndarray, estimated: np.ndarray, count: int
) -> dict[str, Any]:
    confusion = confusion_matrix(true, estimated, labels=range(count))
    faces = confusion.sum(axis=1)
    recall = confusion.diagonal() / np.maximum(faces, 1)
    return {
        f"{head}_balanced_accuracy": float(recall[faces > 0].mean()),
        f"{head}_recall": [
            float(each) if n else None for each, n in zip(recall, faces, strict=True)
        ],
        f"{head}_confusion": confusion.tolist(),
        f"{head}_commonest_accuracy": float(faces.max() / len(true)),
        f"{head}_commonest_balanced_accuracy": 1 / int((faces > 0).sum()),
    }


def score_intervals(
    person: np.ndarray, of_faces: dict[str, np.ndarray], heads: Heads
) -> dict[str, Any]:
    """Returns 95 % confidence intervals of all scores, by a bootstrap over people.

    The errors on several photos of one person are correlated: Field & Welsh, "Bootstrapping
    clustered data", JRSS B 2007. `person` says whose each of n faces is; `of_faces` has each face's
    score by name, NaN for one that does not count.

    Returns name, as in `metrics`, -> [low, high], percentiles; recalls have one pair a class. None
    for a score of fewer than ten people, one that is the same in every resample, and a balanced
    accuracy that includes a recall of fewer than ten people.
    """
    recalls = {
        f"{head} {code}": np.where(true == code, estimated == code, np.nan)
        for head, (true, estimated, count) in heads.items()
        for code in range(count)
    }
    means = _resampled_means(person, pd.DataFrame({**of_faces, **recalls}, dtype=float))
    intervals: dict[str, Any] = {name: _percentiles(means[name]) for name in of_faces}
    for head, (true, _, count) in heads.items():
        present = means[[f"{head} {code}" for code in np.unique(true)]]
        intervals[f"{head}_balanced_accuracy"] = _percentiles(present.to_numpy().mean(axis=1))
        intervals[f"{head}_recall"] = [_percentiles(means[f"{head} {i}"]) for i in range(count)]
    return intervals


def _resampled_means(person: np.ndarray, scores: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean of each score over each resample of people.

    NaN where no face in it counts, and everywhere if those that count are of too few people.
    """
    faces = scores.notna().groupby(person).sum().to_numpy(float)
    sums = scores.groupby(person).sum().to_numpy()
    enough = np.count_nonzero(faces, axis=0) >= FEWEST_PEOPLE
    random = np.random.default_rng(0)
    means = np.full((RESAMPLES, scores.shape[1]), np.nan)
    for row in means:
        times = np.bincount(random.integers(len(sums), size=len(sums)), minlength=len(sums))
        count = times @ faces
        np.divide(times @ sums, count, out=row, where=(count > 0) & enough)
    return pd.DataFrame(means, columns=scores.columns)


def _percentiles(means: np.ndarray) -> list[float] | None:
    means = means[~np.isnan(means)]
    if not means.size or np.ptp(means) == 0:
        return None
    tail = 100 * (1 - LEVEL) / 2
    return [float(end) for end in np.percentile(means, [tail, 100 - tail])]


def breakdown(faces: Any, outputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Scores each age branch and gender, and each race that the data set names.

    If ages are ranges that cross branches, the groups are ranges instead. Beside what `metrics`
    takes, `faces` has `race` of shape (n,), which numbers the names in `races`.

    Returns a dict for each group that has faces: `by` ("age branch and gender", "age range and
    gender", "gender" where ranges overlap, or "race"), `group`, the numbers of faces, `n`, and
    `people`, the main scores and their `intervals`.
    """
    scores = _face_scores(faces, outputs)
    scores = {name: scores[name] for name in _SCORES if name in scores}
    by, ages = _age_groups(faces)
    masks = {
        (by, f"{age} {gender}".strip()): of_age & (faces.gender == code)
        for age, of_age in ages.items()
        for code, gender in enumerate(GENDERS)
    }
    masks |= {("race", race): faces.race == code for code, race in enumerate(faces.races)}
    return [
        {"by": by, "group": group} | _group_scores(faces.person, scores, mask)
        for (by, group), mask in masks.items()
        if mask.any()
    ]


def _age_groups(faces: Any) -> tuple[str, dict[str, np.ndarray]]:
    """Returns what faces are grouped by, and name -> mask of each group."""
    if in_branches(faces):
        codes = enumerate(BRANCH_NAMES)
        return "age branch and gender", {name: faces.age_branch == code for code, name in codes}
    ranges = age_ranges(faces)
    if ranges is None or len(ranges) > _MOST_RANGES:
        return "gender", {"": np.ones(len(faces.age), bool)}
    return "age range and gender", {f"{low}-{high}": faces.age == low for low, high in ranges}


def _group_scores(
    person: np.ndarray, scores: dict[str, np.ndarray], mask: np.ndarray
) -> dict[str, Any]:
    person, scores = person[mask], {name: each[mask] for name, each in scores.items()}
    intervals = score_intervals(person, scores, {})
    people = {"n": len(person), "people": len(np.unique(person))}
    return people | _means(scores) | {"intervals": intervals}


def worst_groups(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns accuracy -> the group from `breakdown` in which it is lowest, if any has an error.

    Groups of races and those of fewer than ten people, whose scores vary most, are left out.
    """
    groups = [each for each in groups if each["by"] != "race" and each["people"] >= FEWEST_PEOPLE]
    worst = {}
    for name in ("age_branch_accuracy", "age_range_accuracy", "gender_accuracy"):
        if wrong := [group for group in groups if group.get(name, 1) < 1]:
            worst[name] = min(wrong, key=lambda group: group[name])
    return worst
