"""How far scores may be off by the chance of which people were tested."""

from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000
FEWEST_PEOPLE = 10


def score_intervals(
    person: np.ndarray,
    means: dict[str, np.ndarray],
    heads: dict[str, tuple[np.ndarray, np.ndarray, int]],
) -> dict[str, Any]:
    """Returns 95 % intervals of all scores, from test sets drawn anew out of the same people.

    People are drawn, not faces: of one person's many photos the model gets most right or most
    wrong. Field & Welsh, "Bootstrapping clustered data", JRSS B 2007; ends are percentiles.

    Args:
        person: Whose face it is; of shape (n,).
        means: Name -> figures of each face, of shape (n,), whose mean is a score.
        heads: Name -> true and estimated codes, each of shape (n,), and how many classes there are.

    Returns:
        Name -> [low, high], under the names of `agelib.evaluation.scores.metrics`; recalls have one
        pair a class. None stands for what drawing tells nothing of: a score that is the same in
        every drawn set, the recall of a class of fewer than ten people, and a balanced accuracy
        that such a recall is part of.
    """
    columns = {"faces": np.ones(len(person)), **means}
    for head, (true, said, count) in heads.items():
        columns[f"{head}_accuracy"] = true == said
        for code in range(count):
            columns[f"{head}_{code}"] = true == code
            columns[f"{head}_{code}_right"] = (true == code) & (said == code)
    drawn = dict(zip(columns, _sums(person, columns), strict=True))
    intervals: dict[str, Any] = {name: _ends(drawn[name] / drawn["faces"]) for name in means}
    for head, (true, _, count) in heads.items():
        people = [len(np.unique(person[true == code])) for code in range(count)]
        recalls = {
            code: drawn[f"{head}_{code}_right"] / np.maximum(1, drawn[f"{head}_{code}"])
            for code in range(count)
            if people[code] >= FEWEST_PEOPLE
        }
        balanced = np.mean(list(recalls.values()), axis=0) if recalls else np.zeros(1)
        intervals[f"{head}_accuracy"] = _ends(drawn[f"{head}_accuracy"] / drawn["faces"])
        intervals[f"{head}_balanced_accuracy"] = (
            _ends(balanced) if len(recalls) == np.count_nonzero(people) else None
        )
        intervals[f"{head}_recall"] = [
            _ends(recalls[code]) if code in recalls else None for code in range(count)
        ]
    return intervals


def _sums(person: np.ndarray, columns: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the sum of each column over each drawn set, of shape (columns, drawn sets)."""
    _, whose = np.unique(person, return_inverse=True)
    by_person = np.stack([np.bincount(whose, weights=column) for column in columns.values()])
    people = by_person.shape[1]
    random = np.random.default_rng(0)
    sums = np.empty((len(columns), RESAMPLES))
    for i in range(RESAMPLES):
        sums[:, i] = by_person @ np.bincount(random.integers(people, size=people), minlength=people)
    return sums


def _ends(values: np.ndarray) -> list[float] | None:
    if np.ptp(values) == 0:
        return None
    tail = 100 * (1 - LEVEL) / 2
    return [float(end) for end in np.percentile(values, [tail, 100 - tail])]
