"""Figures. Every function returns a Figure and shows nothing: a notebook shows it.

All but annotated photos are at most 7.5 inches wide, so that a phone shows their words.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from agelib.faces.images import resize
from agelib.labels import AGE_BRANCHES, BRANCH_NAMES, GENDERS, MAX_AGE, MIN_AGE
from agelib.model.inference import calibration_error, reliability

if TYPE_CHECKING:  # loading it would load TensorFlow
    from agelib.prediction.estimator import Estimate

_COLOURS = ("#3b6fb6", "#d1603d")
_HIGHLIGHT = "#ffd166"

_MONTAGE_COLUMNS = 4
_AGE_STEP = 5
_MOST_YEARS = 20


def _diagrams(width: float, height: float, count: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Returns a figure of this size in inches, and its diagrams side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False, **options)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def montage(images: Sequence[np.ndarray], titles: Sequence[str] | None = None) -> Figure:
    """Shows images, RGB uint8 of any sizes, side by side, four in a row."""
    columns = max(1, min(_MONTAGE_COLUMNS, len(images)))
    rows = max(1, -(-len(images) // columns))
    height = 1.25 if titles is None else 1.55
    figure = Figure(figsize=(1.25 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, image in zip(axes, images, strict=False):
        axis.imshow(image)
    for axis, title in zip(axes[: len(images)], titles or [""] * len(images), strict=True):
        axis.set_title(title, fontsize=8)
    return figure


def reasons(counts: dict[str, int]) -> Figure:
    """Shows how many images were kept, and why the others were not, on a logarithmic scale."""
    counts = dict(sorted(counts.items(), key=lambda item: (item[0] != "kept", -item[1])))
    figure, [axis] = _diagrams(7, 0.8 + 0.32 * len(counts))
    colours = [_COLOURS[name != "kept"] for name in counts]
    bars = axis.barh(list(counts), list(counts.values()), color=colours)
    axis.bar_label(bars, fmt="{:,.0f}", padding=3)
    axis.invert_yaxis()
    axis.set(xscale="symlog", xlabel="images (logarithmic scale)")
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.margins(x=0.15)
    return figure


def age_histogram(ages: np.ndarray, genders: np.ndarray) -> Figure:
    """Shows ages, whole years, by gender, 0 Male or 1 Female, over the age branches."""
    figure, [axis] = _diagrams(7.5, 3)
    groups = [ages[genders == code] for code in range(2)]
    bins = np.arange(MIN_AGE, MAX_AGE + 2) - 0.5
    axis.hist(groups, bins=bins, stacked=True, label=GENDERS, color=_COLOURS)
    counts = [int(((ages >= low) & (ages <= high)).sum()) for low, high in AGE_BRANCHES]
    _name_branches(axis, [f"\n{count:,}" for count in counts])
    for _, high in AGE_BRANCHES:
        axis.axvline(high + 0.5, color="0.6", linewidth=0.8, linestyle=":")
    axis.set(xlim=(MIN_AGE - 1, MAX_AGE + 1), xlabel="age", ylabel="faces")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Shows loss, age branch accuracy and gender accuracy by epoch, train and validation.

    A dotted line marks the best epoch, whose model is kept.
    """
    names = ("loss", "age_branch_accuracy", "gender_accuracy")
    figure, axes = _diagrams(7.5, 3, len(names))
    for axis, name in zip(axes, names, strict=True):
        for prefix, label, colour in (("", "train", _COLOURS[0]), ("val_", "val", _COLOURS[1])):
            values = history[prefix + name]
            axis.plot(history["epoch"], values, label=label, color=colour, marker=".")
        best = history["epoch"][history["best"]].item()
        axis.axvline(best, color="grey", linestyle=":", label="best epoch")
        axis.set(title=name.replace("_", " "), xlabel="epoch")
        if name != "loss":
            axis.set_ylim(0, 1.03)
        axis.xaxis.get_major_locator().set_params(integer=True)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def age_distributions(estimates: Sequence["Estimate"]) -> Figure:
    """Shows how probable each year is for each face, over the age branches."""
    figure, [axis] = _diagrams(7.5, 2.6)
    _draw_ages(axis, estimates)
    if estimates:
        axis.legend(frameon=False)
    return figure


def story(image: np.ndarray, crop: np.ndarray, estimate: "Estimate") -> Figure:
    """Shows how a photo becomes an estimate: the face's box, the crop, each year's probability.

    Photo and crop are RGB uint8 of shape (height, width, 3).
    """
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplot_mosaic([["photo", "face"], ["ages", "ages"]])
    photo, face, ages = axes.values()
    photo.imshow(image)
    photo.add_patch(_box(estimate))
    face.imshow(crop)
    for axis in (photo, face):
        axis.axis("off")
        axis.set_anchor("N")
    ages.spines[["top", "right"]].set_visible(False)
    _draw_ages(ages, [estimate])
    photo.set_title("1. MTCNN finds the face", fontsize=9)
    face.set_title(f"2. the crop, {crop.shape[1]} pixels", fontsize=9)
    ages.set_title(f"3. EfficientNet: {estimate}", fontsize=9, pad=18)
    return figure


def _draw_ages(axis: Axes, estimates: Sequence["Estimate"]) -> None:
    for i, each in enumerate(estimates, 1):
        years = np.arange(MIN_AGE, MAX_AGE + 1)
        line = axis.plot(years, each.ages, label=f"face {i}: {each.age} years")[0]
        axis.axvline(each.age, color=line.get_color(), linewidth=0.8, linestyle=":")
    for i, (low, high) in enumerate(AGE_BRANCHES):
        axis.axvspan(low - 0.5, high + 0.5, color=("0.92", "0.98")[i % 2], zorder=0)
    _name_branches(axis)
    axis.set(xlim=(MIN_AGE - 0.5, MAX_AGE + 0.5), ylim=(0, None))
    axis.set(xlabel="age", ylabel="probability")


def _name_branches(axis: Axes, more: Sequence[str] = ("",) * len(AGE_BRANCHES)) -> None:
    place = {"ha": "center", "va": "bottom", "transform": axis.get_xaxis_transform()}
    for (low, high), name, text in zip(AGE_BRANCHES, BRANCH_NAMES, more, strict=True):
        axis.text((low + high) / 2, 1.01, name + text, fontsize=8, **place)


def _box(estimate: "Estimate") -> Rectangle:
    left, top, right, bottom = estimate.box
    return Rectangle(
        (left, top), right - left, bottom - top, fill=False, linewidth=2, edgecolor=_HIGHLIGHT
    )


def annotate(image: np.ndarray, estimates: Sequence["Estimate"], max_side: int = 1600) -> Figure:
    """Draws boxes and estimates on a photo, RGB uint8 of shape (height, width, 3).

    Where there are several faces, their labels begin with a number. The figure has the photo's
    shape, and 640 to `max_side` pixels on its longer side when saved.
    """
    height, width = image.shape[:2]
    scale = float(np.clip(max(height, width), 640, max_side)) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    # Matplotlib would take 6 GB to scale down 100 megapixels.
    shown = resize(image, size) if scale < 1 else image
    axis.imshow(shown, extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect="auto")
    axis.axis("off")
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    for number, estimate in enumerate(estimates, 1):
        axis.add_patch(_box(estimate))
        prefix = f"{number}: " if len(estimates) > 1 else ""
        _label(axis, *estimate.box[:2], prefix + str(estimate).replace(", ", "\n"))
    return figure


def _label(axis: Axes, x: float, y: float, text: str) -> None:
    """Writes a label above a point of a picture, moved so that all of it is inside."""
    background = {"facecolor": _HIGHLIGHT, "edgecolor": "none", "pad": 2, "alpha": 0.9}
    label = axis.text(x, y, text, fontsize=9, va="bottom", bbox=background)
    canvas = FigureCanvasAgg(axis.figure)
    extent = label.get_window_extent(canvas.get_renderer())
    width, height = canvas.get_width_height()
    shift_x = max(2 - extent.x0, 0) + min(width - 2 - extent.x1, 0)
    shift_y = max(2 - extent.y0, 0) + min(height - 2 - extent.y1, 0)
    place = np.add(axis.transData.transform((x, y)), (shift_x, shift_y))
    label.set_position(axis.transData.inverted().transform(place))


def confusion(report: dict[str, Any]) -> Figure:
    """Shows each head's confusion matrix as shares of the true class, with counts."""
    heads = [("age_branch", BRANCH_NAMES, "age branch"), ("gender", GENDERS, "gender")]
    heads = [head for head in heads if f"{head[0]}_confusion" in report]
    widths = [1 + len(names) for _, names, _ in heads]
    figure = Figure(figsize=(0.83 * sum(widths), 3.5), layout="constrained")
    axes = figure.subplots(1, len(heads), width_ratios=widths, squeeze=False)[0]
    for axis, (head, names, title) in zip(axes, heads, strict=True):
        counts = np.array(report[f"{head}_confusion"])
        shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.set_anchor("N")
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.5 else "black"
            text = f"{share:.0%}\n{counts[row, column]:,}"
            axis.text(column, row, text, ha="center", va="center", fontsize=9, color=colour)
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(names)), names)
        axis.set(xlabel="estimated", ylabel="true")
        axis.set_title(f"{title}: {report[f'{head}_accuracy']:.1%} right")
    return figure


def age_errors(estimates: pd.DataFrame) -> Figure:
    """Shows an `estimates_table`: the error by true age, the share of faces within N years."""
    figure, [by_age, within] = _diagrams(7.5, 3, 2, width_ratios=(3, 2))
    off = estimates["years_off"]
    middle = (estimates["age"] + estimates.get("age_to", estimates["age"])) // 2
    middle = (middle - MIN_AGE) // _AGE_STEP * _AGE_STEP + MIN_AGE + _AGE_STEP // 2
    size, direction = off.abs().groupby(middle).mean(), off.groupby(middle).mean()
    width = 0.8 * _AGE_STEP
    by_age.bar(size.index, size, width, color=_COLOURS[0], alpha=0.5, label="size of the error")
    by_age.plot(direction, color=_COLOURS[1], marker=".", label="too old (+) or too young (-)")
    by_age.axhline(0, color="0.4", linewidth=0.8)
    by_age.set(xlim=(MIN_AGE - 1, MAX_AGE + 1), xlabel="true age", ylabel="years")
    by_age.set_title("mean error by true age", fontsize=10)
    by_age.legend(frameon=False, fontsize=8)
    years = np.arange(_MOST_YEARS + 1)
    within.plot(years, [(off.abs() <= year).mean() for year in years], color=_COLOURS[0])
    within.set(xlim=(0, _MOST_YEARS), ylim=(0, 1.03), xticks=years[::5])
    within.set(xlabel="years off", ylabel="share of faces")
    within.set_title("at most this many years off", fontsize=10)
    return figure


def reliability_diagram(estimates: pd.DataFrame) -> Figure:
    """Shows of an `estimates_table` how often each head is right, by its confidence."""
    heads = [("branch", "age_branch", "age branch"), ("gender", "gender", "gender")]
    heads = [head for head in heads if head[1] in estimates]
    figure, axes = _diagrams(3.7 * len(heads), 3.5, len(heads))
    for axis, (name, true, title) in zip(axes, heads, strict=True):
        confidence = estimates[f"{name}_confidence"].to_numpy()
        right = (estimates[f"estimated_{name}"] == estimates[true]).to_numpy()
        steps = reliability(confidence, right)
        axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
        sizes = 200 * steps["faces"] / steps["faces"].max()
        axis.scatter(steps["confidence"], steps["accuracy"], sizes, color=_COLOURS[0], alpha=0.6)
        axis.set(xlim=(0, 1.05), ylim=(0, 1.05), xlabel="confidence", ylabel="accuracy")
        axis.set_title(f"{title}: calibration error {calibration_error(confidence, right):.1%}")
    return figure


def groups(report: dict[str, Any]) -> Figure:
    """Shows the accuracy of both heads for each group of people, with 95 % intervals."""
    rows = report["groups"]
    figure, axes = _diagrams(7.5, 0.9 + 0.26 * len(rows), 2, sharey=True)
    places = np.arange(len(rows))
    age = "age_branch" if "age_branch_accuracy" in report else "age_range"
    for axis, head in zip(axes, (age, "gender"), strict=True):
        key = f"{head}_accuracy"
        scores = [row[key] for row in rows]
        ends = np.array([row["intervals"][key] or (row[key],) * 2 for row in rows])
        axis.hlines(places, ends[:, 0], ends[:, 1], color=_COLOURS[0], alpha=0.5, linewidth=4)
        axis.plot(scores, places, "o", color=_COLOURS[0])
        axis.axvline(report[key], color=_COLOURS[1], linewidth=1, linestyle=":")
        axis.set(title=head.replace("_", " "), xlim=(-0.03, 1.03), xlabel="share of right answers")
    axes[0].set_yticks(places, [f"{row['group']}  ({row['n']:,})" for row in rows])
    axes[0].invert_yaxis()
    return figure
