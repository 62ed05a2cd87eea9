"""Scores: a model's probabilities against labels, with confidence intervals, and by group."""

from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from agelib.labels import AGE_BRANCHES, BRANCH_NAMES, GENDERS, age_branch
from agelib.model.inference import age_interval, calibration_error, median_age

YEARS_WITHIN = (1, 3, 5, 10)

LEVEL = 0.95
RESAMPLES = 1000
FEWEST_PEOPLE = 10

_SCORES = ("age_branch_accuracy", "age_range_accuracy", "age_mae", "gender_accuracy")
_MOST_RANGES = 20


def metrics(faces: Any, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Compares a model's probabilities with the labels.

    If a label is a range, an estimate inside it is right, and one outside has an error in years to
    the nearer end. Such labels have no coverage of intervals, and no scores of age branches unless
    each range lies within a branch.

    Args:
        faces: Anything with `age`, `age_high`, `age_branch`, `gender` and `person`, each of shape
            (n,).
        outputs: `age` (n, 85), `age_branch` (n, 5) and `gender` (n, 2).

    Returns:
        JSON types: `n`; for both heads accuracy, balanced accuracy (mean recall of the classes
        that occur), recall (None for a class that does not occur), confusion (rows are true),
        expected calibration error (`_ece`) and the accuracies of always answering the commonest
        class; `gender_accuracy_children` at ages in the youngest branch; `age_mae` in years,
        `age_within_N`, the share of ages at most N years off, `age_interval_coverage`, the share in
        the 80 % interval, and `age_interval_width`, its mean years; for ranges `age_range_accuracy`
        and, where no two overlap, `age_range_within_one`, the share of estimates in the right range
        or the next one; under `intervals` those of `score_intervals`.
    """
    heads = {"gender": (faces.gender, outputs["gender"].argmax(axis=1), len(GENDERS))}
    if in_branches(faces):
        branch = outputs["age_branch"].argmax(axis=1)
        heads["age_branch"] = (faces.age_branch, branch, len(BRANCH_NAMES))
    of_faces = face_scores(faces, outputs)
    scores = {"n": len(faces.age)} | _means(of_faces)
    for head, (true, estimated, count) in heads.items():
        scores |= _classification(head, true, estimated, count)
        scores[f"{head}_ece"] = calibration_error(outputs[head].max(axis=1), true == estimated)
    return scores | {"intervals": score_intervals(faces.person, of_faces, heads)}


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


def face_scores(faces: Any, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the scores of each face, whose means over any faces are those in `metrics`.

    Returns:
        Name, as in `metrics`, -> values of shape (n,), NaN for a face that does not count.
    """
    right = faces.gender == outputs["gender"].argmax(axis=1)
    scores = {"gender_accuracy": right}
    children = faces.age_high <= AGE_BRANCHES[0][1]
    if children.any():
        scores["gender_accuracy_children"] = np.where(children, right, np.nan)
    if in_branches(faces):
        branch = outputs["age_branch"].argmax(axis=1)
        scores["age_branch_accuracy"] = faces.age_branch == branch
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
        right = np.searchsorted(ranges[:, 0], faces.age)
        scores["age_range_within_one"] = np.abs(_nearest(ranges, estimated) - right) <= 1
    return scores


def _nearest(ranges: np.ndarray, years: np.ndarray) -> np.ndarray:
    """Returns the index of the range that each year lies in or is nearest to."""
    beyond = np.maximum(ranges[:, 0] - years[:, None], years[:, None] - ranges[:, 1])
    return beyond.argmin(axis=1)


def _classification(
    head: str, true: np.ndarray, estimated: np.ndarray, count: int
) -> dict[str, Any]:
    confusion = confusion_matrix(true, estimated, labels=range(count))
    faces = confusion.sum(axis=1)
    recall = [
        float(right / n) if n else None
        for right, n in zip(confusion.diagonal(), faces, strict=True)
    ]
    present = [value for value in recall if value is not None]
    return {
        f"{head}_balanced_accuracy": float(np.mean(present)),
        f"{head}_recall": recall,
        f"{head}_confusion": confusion.tolist(),
        f"{head}_commonest_accuracy": float(faces.max() / len(true)),
        f"{head}_commonest_balanced_accuracy": 1 / len(present),
    }


def score_intervals(
    person: np.ndarray,
    of_faces: dict[str, np.ndarray],
    heads: dict[str, tuple[np.ndarray, np.ndarray, int]],
) -> dict[str, Any]:
    """Returns 95 % confidence intervals of all scores, by a bootstrap over people.

    The errors on several photos of one person are correlated: Field & Welsh, "Bootstrapping
    clustered data", JRSS B 2007. Ends are percentiles.

    Args:
        person: Whose face it is; of shape (n,).
        of_faces: From `face_scores`.
        heads: Name -> true and estimated codes, each of shape (n,), and the number of classes.

    Returns:
        Name, as in `metrics`, -> [low, high]; recalls have one pair a class. None for a score of
        fewer than ten people, one that is the same in every resample, and a balanced accuracy that
        includes a recall of fewer than ten people.
    """
    recalls = {
        (head, code): np.where(true == code, estimated == code, np.nan)
        for head, (true, estimated, count) in heads.items()
        for code in range(count)
    }
    means = _resampled_means(person, {**of_faces, **recalls})
    intervals: dict[str, Any] = {name: _percentiles(means[name]) for name in of_faces}
    for head, (true, _, count) in heads.items():
        present = np.array([means[head, code] for code in np.unique(true)])
        intervals[f"{head}_balanced_accuracy"] = _percentiles(present.mean(axis=0))
        intervals[f"{head}_recall"] = [_percentiles(means[head, code]) for code in range(count)]
    return intervals


def _resampled_means(person: np.ndarray, of_faces: dict[Any, np.ndarray]) -> dict[Any, np.ndarray]:
    """Returns the mean of each score over each resample of people.

    NaN where no face in it counts, and everywhere if those that count are of too few people.
    """
    _, whose = np.unique(person, return_inverse=True)
    counts = [~np.isnan(each) for each in of_faces.values()]
    columns = [*counts, *(np.nan_to_num(each) for each in of_faces.values())]
    by_person = np.stack([np.bincount(whose, weights=column) for column in columns])
    people = by_person.shape[1]
    random = np.random.default_rng(0)
    sums = np.empty((len(columns), RESAMPLES))
    for i in range(RESAMPLES):
        sums[:, i] = by_person @ np.bincount(random.integers(people, size=people), minlength=people)
    faces, totals = np.split(sums, 2)
    enough = np.count_nonzero(by_person[: len(counts)], axis=1)[:, None] >= FEWEST_PEOPLE
    means = np.full_like(totals, np.nan)
    np.divide(totals, faces, out=means, where=(faces > 0) & enough)
    return dict(zip(of_faces, means, strict=True))


def _percentiles(means: np.ndarray) -> list[float] | None:
    means = means[~np.isnan(means)]
    if not means.size or np.ptp(means) == 0:
        return None
    tail = 100 * (1 - LEVEL) / 2
    return [float(end) for end in np.percentile(means, [tail, 100 - tail])]


def breakdown(faces: Any, outputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Scores each age branch and gender, and each race that the data set names.

    If ages are ranges that cross branches, the groups are ranges instead.

    Args:
        faces: As for `metrics`, with `race` of shape (n,), which numbers the names in `races`.
        outputs: As for `metrics`.

    Returns:
        A dict for each group that has faces: `by` ("age branch and gender", "age range and
        gender", "gender" where ranges overlap, or "race"), `group`, the numbers of faces, `n`, and
        `people`, the main scores and their `intervals`.
    """
    scores = face_scores(faces, outputs)
    scores = {name: scores[name] for name in _SCORES if name in scores}
    by, ages = _age_groups(faces)
    masks = {
        (by, f"{age} {gender}".strip()): of_age & (faces.gender == code)
        for age, of_age in ages.items()
        for code, gender in enumerate(GENDERS)
    }
    masks |= {("race", race): faces.race == code for code, race in enumerate(faces.races)}
    return [
        {"by": by, "group": group} | _score(faces.person[mask], scores, mask)
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


def _score(person: np.ndarray, scores: dict[str, np.ndarray], mask: np.ndarray) -> dict[str, Any]:
    part = {name: each[mask] for name, each in scores.items()}
    people = {"people": len(np.unique(person)), "intervals": score_intervals(person, part, {})}
    return {"n": len(person), **_means(part), **people}


def worst_groups(groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the group from `breakdown` with the lowest accuracy of each head.

    Groups of races and those of fewer than ten people, whose scores vary most, are left out.

    Returns:
        "age_branch_accuracy" (or "age_range_accuracy") and "gender_accuracy" -> the group; a score
        without errors in any group is left out.
    """
    groups = [each for each in groups if each["by"] != "race" and each["people"] >= FEWEST_PEOPLE]
    worst = {}
    for name in ("age_branch_accuracy", "age_range_accuracy", "gender_accuracy"):
        if wrong := [group for group in groups if group.get(name, 1) < 1]:
            worst[name] = min(wrong, key=lambda group: group[name])
    return worst


def score_faces(faces: Any, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the `metrics` of all faces, and under `groups` the `breakdown`."""
    return metrics(faces, outputs) | {"groups": breakdown(faces, outputs)}
