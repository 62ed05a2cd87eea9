"""Figures of how good a model is. As in `agelib.plots`, every function returns a Figure."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from agelib.labels import BRANCH_NAMES, GENDERS, MAX_AGE, MIN_AGE
from agelib.model.calibration import calibration_error, reliability
from agelib.plots import COLOURS, tidy

_AGE_STEP = 5
_MOST_YEARS = 20


def confusion(report: dict[str, Any]) -> Figure:
    """Shows both confusion matrices as shares of the true class, with counts."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axis, (head, names, title) in zip(
        figure.subplots(1, 2, width_ratios=(5, 3)),
        (("age_branch", BRANCH_NAMES, "age branch"), ("gender", GENDERS, "gender")),
        strict=True,
    ):
        counts = np.array(report[f"{head}_confusion"])
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            axis.text(
                column,
                row,
                f"{share:.0%}\n{counts[row, column]:,}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if share > 0.5 else "black",
            )
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlabel("estimated")
        axis.set_ylabel("true")
        axis.set_title(f"{title}: {report[f'{head}_accuracy']:.1%} right")
    return figure


def age_errors(estimates: pd.DataFrame) -> Figure:
    """Shows how far off ages are: by the true age, and how many faces are within how many years.

    Args:
        estimates: From `agelib.evaluation.tables.estimates_table`.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    by_age, within = figure.subplots(1, 2, width_ratios=(3, 2))
    off = estimates["said_age"] - estimates["age"]
    middle = (estimates["age"] - MIN_AGE) // _AGE_STEP * _AGE_STEP + MIN_AGE + _AGE_STEP // 2
    by_age.bar(*_means(off.abs(), middle), width=0.8 * _AGE_STEP, color=COLOURS[0], alpha=0.5)
    by_age.plot(*_means(off, middle), color=COLOURS[1], marker=".")
    by_age.axhline(0, color="0.4", linewidth=0.8)
    by_age.set_xlim(MIN_AGE - 1, MAX_AGE + 1)
    by_age.set_xlabel("true age")
    by_age.set_ylabel("years")
    by_age.set_title("off by (bars), and older or younger than true (line)", fontsize=10)
    years = np.arange(_MOST_YEARS + 1)
    shares = [(off.abs() <= year).mean() for year in years]
    within.plot(years, shares, color=COLOURS[0])
    within.set_xlim(0, _MOST_YEARS)
    within.set_xticks(range(0, _MOST_YEARS + 1, 5))
    within.set_ylim(0, 1.03)
    within.set_xlabel("at most so many years off")
    within.set_ylabel("share of faces")
    within.set_title("cumulative score", fontsize=10)
    tidy(by_age)
    tidy(within)
    return figure


def _means(values: pd.Series, groups: pd.Series) -> tuple[pd.Index, pd.Series]:
    means = values.groupby(groups).mean()
    return means.index, means


def reliability_diagram(estimates: pd.DataFrame) -> Figure:
    """Shows how often the model is right when it is so and so sure, for both heads.

    Args:
        estimates: From `agelib.evaluation.tables.estimates_table`.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    heads = (("branch", "age_branch", "age branch"), ("gender", "gender", "gender"))
    for axis, (said, true, title) in zip(figure.subplots(1, 2), heads, strict=True):
        confidence = estimates[f"{said}_confidence"].to_numpy()
        right = (estimates[f"said_{said}"] == estimates[true]).to_numpy()
        steps = reliability(confidence, right)
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        sizes = 200 * steps["faces"] / steps["faces"].max()
        axis.plot(steps["confidence"], steps["accuracy"], color=COLOURS[0], linewidth=1)
        axis.scatter(steps["confidence"], steps["accuracy"], sizes, color=COLOURS[0], alpha=0.6)
        axis.set_xlim(0, 1.05)
        axis.set_ylim(0, 1.05)
        axis.set_xlabel("how sure the model is")
        axis.set_ylabel("how often it is right")
        axis.set_title(f"{title}: calibration error {calibration_error(confidence, right):.1%}")
        tidy(axis)
    return figure


def groups(report: dict[str, Any]) -> Figure:
    """Shows the accuracy of both heads for each group of people, with 95 % intervals."""
    rows = report["groups"]
    figure = Figure(figsize=(9, 0.9 + 0.26 * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))
    for axis, (head, title) in zip(
        axes, (("age_branch", "age branch"), ("gender", "gender")), strict=True
    ):
        key = f"{head}_accuracy"
        scores = [row[key] for row in rows]
        ends = np.array([row["intervals"][key] or (row[key],) * 2 for row in rows])
        axis.hlines(places, ends[:, 0], ends[:, 1], color=COLOURS[0], alpha=0.5, linewidth=4)
        axis.plot(scores, places, "o", color=COLOURS[0])
        axis.axvline(report[key], color=COLOURS[1], linewidth=1, linestyle=":")
        axis.set_xlim(0, 1.03)
        axis.set_xlabel("share that is right; dotted: of all faces")
        axis.set_title(title)
        tidy(axis)
    axes[0].set_yticks(places, [f"{row['group']}  ({row['n']:,})" for row in rows])
    axes[0].invert_yaxis()
    return figure
