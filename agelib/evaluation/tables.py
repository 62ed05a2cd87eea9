"""Tables and sentences that present scores."""

from typing import Any

import numpy as np
import pandas as pd

from agelib.evaluation.scores import YEARS_WITHIN, in_branches, worst_groups, years_off
from agelib.labels import BRANCH_NAMES, GENDERS
from agelib.model.inference import age_interval, median_age

# Title -> score, as in `metrics`.
_RESULTS = {
    "AGE accuracy (5 branches)": "age_branch_accuracy",
    "AGE balanced accuracy": "age_branch_balanced_accuracy",
    "AGE, always the commonest branch": "age_branch_commonest_accuracy",
    "AGE in its range": "age_range_accuracy",
    "AGE in its range or one beside it": "age_range_within_one",
    "AGE mean absolute error, years": "age_mae",
    "GENDER accuracy": "gender_accuracy",
    "GENDER balanced accuracy": "gender_balanced_accuracy",
    f"GENDER accuracy at ages {BRANCH_NAMES[0]}": "gender_accuracy_children",
    "GENDER, always the commonest": "gender_commonest_accuracy",
}
_CALIBRATION = {
    **{f"AGE at most {n} year{'s' * (n > 1)} off": f"age_within_{n}" for n in YEARS_WITHIN},
    "AGE in its 80 % interval": "age_interval_coverage",
    "AGE, width of that interval, years": "age_interval_width",
    "AGE calibration error (ECE)": "age_branch_ece",
    "GENDER calibration error (ECE)": "gender_ece",
}
_GROUPS = {
    "AGE accuracy": "age_branch_accuracy",
    "AGE in its range": "age_range_accuracy",
    "AGE error, years": "age_mae",
    "GENDER accuracy": "gender_accuracy",
}
_IN_YEARS = ("age_mae", "age_interval_width")  # the other scores are shares


def results_table(report: dict[str, Any]) -> pd.DataFrame:
    """Returns a row for each score, with its 95 % interval, and a column for each split.

    A score that a split does not have is "-"; one that no split has, has no row.
    """
    return _table(_by_split(report), _RESULTS)


def calibration_table(report: dict[str, Any]) -> pd.DataFrame:
    """Returns the errors of ages and the calibration, in the form of `results_table`."""
    return _table(_by_split(report), _CALIBRATION)


def compare_table(reports: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Returns a row for each score on the test faces, and a column for each run's report.

    A column is named "RUN, trained on SET" if the model has seen some of the faces in training.
    """
    return _table(reports, _RESULTS | _CALIBRATION)


def _by_split(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = report.get("splits") or {"test": report}
    columns = {split: found[split] for split in ("train", "val", "test") if split in found}
    others = list(report.get("tests", {}).items())[1:]
    return columns | {f"test on {name}": scores for name, scores in others}


def _table(columns: dict[str, dict[str, Any]], rows: dict[str, str]) -> pd.DataFrame:
    rows = {row: key for row, key in rows.items() if any(key in s for s in columns.values())}
    table = {
        _title(name, scores): [
            _text(key, scores.get(key), scores["intervals"].get(key)) for key in rows.values()
        ]
        for name, scores in columns.items()
    }
    table = pd.DataFrame(table, index=list(rows))
    table.loc["faces"] = [f"{scores['n']:,}" for scores in columns.values()]
    return table


def _title(column: str, scores: dict[str, Any]) -> str:
    seen = scores.get("also_trained_on")
    return f"{column}, trained on {seen}" if seen else column


def _text(key: str, value: float | None, ends: list[float] | None) -> str:
    if value is None:
        return "-"
    scale, unit = (1, "") if key in _IN_YEARS else (100, " %")
    interval = f" ({scale * ends[0]:.1f}-{scale * ends[1]:.1f})" if ends else ""
    return f"{scale * value:.1f}{unit}{interval}"


def recall_table(report: dict[str, Any]) -> pd.DataFrame:
    """Returns the number of test faces of each class, and its recall."""
    rows = []
    for head, names in (("age_branch", BRANCH_NAMES), ("gender", GENDERS)):
        key = f"{head}_recall"
        if key in report:
            counts = np.sum(report[f"{head}_confusion"], axis=1)
            scores = zip(names, counts, report[key], report["intervals"][key], strict=True)
            rows += [(name, n, _text(key, recall, ends)) for name, n, recall, ends in scores]
    return pd.DataFrame(rows, columns=["class", "faces", "recall"]).set_index("class")


def groups_table(report: dict[str, Any]) -> pd.DataFrame:
    """Returns the scores of each group of test faces, with 95 % intervals."""
    rows = [
        {"by": group["by"], "group": group["group"], "faces": group["n"]}
        | {
            title: _text(key, group[key], group["intervals"][key])
            for title, key in _GROUPS.items()
            if key in group
        }
        for group in report["groups"]
    ]
    return pd.DataFrame(rows).set_index(["by", "group"])


def name_worst(report: dict[str, Any]) -> str:
    """Returns a sentence that names the groups with the lowest accuracies."""
    found = [
        f"{score.removesuffix('_accuracy').replace('_', ' ')}, {each['group']}: "
        f"{100 * each[score]:.1f} % of {each['n']:,} faces right"
        for score, each in worst_groups(report["groups"]).items()
    ]
    if not found:
        return "No group of ten or more people has an error."
    return f"Worst {'; worst '.join(found)}."


def duplicates_sentence(agreement: dict[str, Any]) -> str:
    """Returns a sentence about the `label_agreement` of a test set's near-duplicates."""
    if not agreement["pairs"]:
        return "No two of these faces are near-duplicates."
    branch, gender = (f"{100 * agreement[label]:.0f} %" for label in ("age_branch", "gender"))
    pairs = "1 pair" if agreement["pairs"] == 1 else f"{agreement['pairs']:,} pairs"
    return (
        f"Near-duplicates among these faces: {pairs}, whose labels agree on the age branch in "
        f"{branch} and on the gender in {gender}, and differ by "
        f"{agreement['age_difference']:.1f} years on average. Where the labels of one photo "
        "differ, some are wrong, and no model can be right on all of them."
    )


def estimates_table(faces: Any, outputs: dict[str, np.ndarray]) -> pd.DataFrame:
    """Returns a table with a row for each face: its labels, estimates and probabilities.

    The columns are `path`, true `age` (the lowest of a range, with `age_to`, the highest),
    `age_branch` (not for ranges that cross branches), `gender` and `race` (empty where unknown),
    `estimated_age`, `years_off` (above 0 if too old), `age_low` and `age_high`, the ends of its
    80 % interval, `estimated_branch`, `branch_confidence`, `estimated_gender` and
    `gender_confidence`.
    """
    low, high = age_interval(outputs["age"])
    branch, gender = outputs["age_branch"], outputs["gender"]
    age = median_age(outputs["age"])
    ranges = {} if (faces.age == faces.age_high).all() else {"age_to": faces.age_high}
    branches = {"age_branch": np.take(BRANCH_NAMES, faces.age_branch)} if in_branches(faces) else {}
    return pd.DataFrame(
        {
            "path": faces.paths,
            "age": faces.age,
            **ranges,
            **branches,
            "gender": np.take(GENDERS, faces.gender),
            "race": np.take((*faces.races, ""), faces.race),
            "estimated_age": age,
            "years_off": years_off(faces, age),
            "age_low": low,
            "age_high": high,
            "estimated_branch": np.take(BRANCH_NAMES, branch.argmax(axis=1)),
            "branch_confidence": branch.max(axis=1).round(4),
            "estimated_gender": np.take(GENDERS, gender.argmax(axis=1)),
            "gender_confidence": gender.max(axis=1).round(4),
        }
    )
