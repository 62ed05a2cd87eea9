"""How far scores may be off by the chance of which people were tested."""

from typing import Any

import numpy as np

LEVEL = 0.95


def score_intervals(
    person: np.ndarray,
    years_off: np.ndarray,
    heads: dict[str, tuple[np.ndarray, np.ndarray, int]],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns 95 % intervals of all scores, from test sets drawn anew out of the same people.

    People are drawn, not faces: of one person's many photos the model gets most right or most
    wrong. Field & Welsh, "Bootstrapping clustered data", JRSS B 2007; ends are percentiles.

    Args:
        person: Whose face it is; of shape (n,).
        years_off: Absolute errors of the age; of shape (n,).
        heads: Name -> true and estimated codes, each of shape (n,), and how many classes there are.
        resamples: How many test sets are drawn.
        seed: Of the draws.

    Returns:
        Name -> [low, high], under the names of `agelib.evaluate.metrics`; recalls have one pair a
        class, None for one that a drawn set may be without.
    """
    columns = {"faces": np.ones(len(person)), "age_mae": years_off}
    for head, (true, said, count) in heads.items():
        columns[f"{head}_accuracy"] = true == said
        for code in range(count):
            columns[f"{head}_{code}"] = true == code
            columns[f"{head}_{code}_right"] = (true == code) & (said == code)
    drawn = dict(zip(columns, _sums(person, columns, resamples, seed), strict=True))
    intervals: dict[str, Any] = {"age_mae": _ends(drawn["age_mae"] / drawn["faces"])}
    for head, (_, _, count) in heads.items():
        intervals[f"{head}_accuracy"] = _ends(drawn[f"{head}_accuracy"] / drawn["faces"])
        recalls = []
        for code in range(count):
            there = drawn[f"{head}_{code}"]
            missing = np.full(resamples, np.nan)
            recalls.append(
                np.divide(drawn[f"{head}_{code}_right"], there, missing, where=there > 0)
            )
        intervals[f"{head}_balanced_accuracy"] = _ends(np.nanmean(recalls, axis=0))
        intervals[f"{head}_recall"] = [
            None if np.isnan(recall).any() else _ends(recall) for recall in recalls
        ]
    return intervals


def _sums(
    person: np.ndarray, columns: dict[str, np.ndarray], resamples: int, seed: int
) -> np.ndarray:
    """Returns the sum of each column over each drawn set, of shape (columns, resamples)."""
    _, whose = np.unique(person, return_inverse=True)
    by_person = np.stack([np.bincount(whose, weights=column) for column in columns.values()])
    people = by_person.shape[1]
    random = np.random.default_rng(seed)
    sums = np.empty((len(columns), resamples))
    for i in range(resamples):
        sums[:, i] = by_person @ np.bincount(random.integers(people, size=people), minlength=people)
    return sums


def _ends(values: np.ndarray) -> list[float]:
    tail = 100 * (1 - LEVEL) / 2
    return [float(end) for end in np.percentile(values, [tail, 100 - tail])]
