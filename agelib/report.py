"""The tables in which people read scores."""

from typing import Any

import numpy as np
import pandas as pd

from agelib.labels import BRANCH_NAMES, GENDERS


def results_table(report: dict[str, Any]) -> pd.DataFrame:
    """Returns a row for each score, with its 95 % interval, and a column for each split."""
    found = report.get("splits") or {"test": report}
    splits = {split: found[split] for split in ("train", "val", "test") if split in found}
    rows = {
        "AGE accuracy (5 branches)": ("age_branch_accuracy", 100),
        "AGE balanced accuracy": ("age_branch_balanced_accuracy", 100),
        "AGE, always the commonest branch": ("age_branch_commonest_accuracy", 100),
        "AGE mean absolute error, years": ("age_mae", 1),
        "GENDER accuracy": ("gender_accuracy", 100),
        "GENDER balanced accuracy": ("gender_balanced_accuracy", 100),
        "GENDER, always the commonest": ("gender_commonest_accuracy", 100),
    }
    table = pd.DataFrame(
        {
            split: [_figure(scores, key, scale) for key, scale in rows.values()]
            for split, scores in splits.items()
        },
        index=list(rows),
    )
    table.loc["faces"] = [f"{scores['n']:,}" for scores in splits.values()]
    return table


def _figure(scores: dict[str, Any], key: str, scale: int) -> str:
    text = f"{scores[key] * scale:.1f}{' %' if scale == 100 else ''}"
    return text + _brackets(scores["intervals"].get(key), scale)


def _brackets(ends: list[float] | None, scale: int) -> str:
    return f" ({scale * ends[0]:.1f}-{scale * ends[1]:.1f})" if ends else ""


def recall_table(report: dict[str, Any]) -> pd.DataFrame:
    """Returns how many test faces each class has, and the share that is recognised."""
    rows = []
    for head, names in (("age_branch", BRANCH_NAMES), ("gender", GENDERS)):
        counts = np.sum(report[f"{head}_confusion"], axis=1)
        recalls, intervals = report[f"{head}_recall"], report["intervals"][f"{head}_recall"]
        for name, n, recall, ends in zip(names, counts, recalls, intervals, strict=True):
            share = "-" if recall is None else f"{100 * recall:.1f} %"
            rows.append({"class": name, "faces": int(n), "recall": share + _brackets(ends, 100)})
    return pd.DataFrame(rows).set_index("class")
