"""Pictures of results, with matplotlib: readable without colour vision, drawn without pyplot or a display.

Every function returns a `matplotlib.figure.Figure`. In a notebook, run `%matplotlib inline` once and the figure shows
as the last value of a cell.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.errors import UsageError, require
from imaginet_hub.evaluation.detection import GENERATOR_COLUMNS
from imaginet_hub.evaluation.report import Results, interval_text
from imaginet_hub.labels import Origin, Track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["contact_sheet", "detection_figure", "identification_figure", "save_figure"]

# Okabe & Ito's palette (2008): distinct under every common colour vision deficiency, and in grey.
_REAL, _SYNTHETIC, _GREY = "#0072B2", "#D55E00", "#6E6E6E"

#: Groups of fewer synthetic images are drawn pale: their intervals promise too much.
_FEW = 10


def detection_figure(results: Results) -> Figure:
    """ROC curve with a logarithmic false positive axis, scores of both classes, balanced accuracy by generator.

    Args:
        results: of the detection track, with `per_image`.

    Raises:
        UsageError: results of the other track, or without the scores of each image.
        MissingExtraError: matplotlib is not installed.
    """
    _check_track(results, Track.DETECTION)
    if results.per_image is None:
        raise UsageError("expected results with the scores of each image (per_image): write them with per_image=True")
    figure = _figure()
    column = next((name for name in (*reversed(GENERATOR_COLUMNS), *results.by) if results.by.get(name)), None)
    groups = results.by[column] if column else {}
    if len(groups) <= 12:
        figure.set_size_inches(15, 4.6)
        panels = figure.subplot_mosaic([["roc", "scores", "groups"]])
    else:
        figure.set_size_inches(11, max(8.4, 1.6 + 0.26 * len(groups)))
        panels = figure.subplot_mosaic([["roc", "groups"], ["scores", "groups"]])
    position = results.names.index(Origin.SYNTHETIC)
    scores = np.array([entry["scores"][position] for entry in results.per_image])
    synthetic = np.array([entry["label"] == Origin.SYNTHETIC for entry in results.per_image])
    threshold = 0.5 if results.threshold is None else results.threshold
    _draw_roc(panels["roc"], scores[~synthetic], scores[synthetic], threshold, results.metrics["auc"])
    _draw_scores(panels["scores"], scores[~synthetic], scores[synthetic], threshold)
    _draw_groups(panels["groups"], groups, column or "group", results.metrics["balanced_accuracy"])
    figure.suptitle(_title(results))
    return figure


def identification_figure(results: Results) -> Figure:
    """The confusion matrix: rows are true families, with counts and the share of each row.

    Args:
        results: of the identification track.

    Raises:
        UsageError: results of the other track.
        MissingExtraError: matplotlib is not installed.
    """
    _check_track(results, Track.IDENTIFICATION)
    figure = _figure()
    counts = np.array(results.confusion)
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    k = len(results.names)
    figure.set_size_inches(3.2 + 0.95 * k, 2.4 + 0.75 * k)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, answer), count in np.ndenumerate(counts):
        text = f"{count:,}\n{shares[true, answer]:.0%}" if totals[true] else "0"
        dark = shares[true, answer] > 0.7
        weight = "bold" if true == answer else "normal"
        axes.text(answer, true, text, ha="center", va="center", color="white" if dark else "black", weight=weight)
    axes.set_xticks(
        range(k), [_short(name) for name in results.names], rotation=30, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(k), [f"{_short(name)}\n{_recall(results.recall[name])}" for name in results.names])
    axes.set_xlabel("answer")
    axes.set_ylabel("true family, with its recall")
    majority = results.baselines["majority"]
    axes.set_title(
        f"balanced accuracy {interval_text(results.metrics['balanced_accuracy'])}\n"
        f"accuracy {interval_text(results.metrics['accuracy'])}; always {_short(majority['class'])}: "
        f"{majority['accuracy']:.3f}",
        fontsize="medium",
    )
    figure.suptitle(_title(results))
    return figure


def contact_sheet(images: Sequence[Image.Image], titles: Sequence[str] | None = None, columns: int = 6) -> Figure:
    """Pictures in rows, each with its title.

    Args:
        images: one or more.
        titles: one per image.
        columns: pictures per row.

    Raises:
        UsageError: no images, a number of titles that differs, or fewer than one column.
        MissingExtraError: matplotlib is not installed.
    """
    titles = [""] * len(images) if titles is None else titles
    if not images or len(titles) != len(images) or columns < 1:
        raise UsageError(
            "contact_sheet: expected one or more images, a title for each and one or more columns, "
            f"got {len(images)} images, {len(titles)} titles, {columns} columns"
        )
    figure = _figure()
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    figure.set_size_inches(2 * columns, 2.25 * rows)
    grid: NDArray[Any] = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(np.asarray(image.convert("RGB")))
        axes.set_title(_literal(title), fontsize="small")
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format that the file name ends in (png, svg, pdf); parent folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _figure() -> Figure:
    require("eval", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(layout="constrained")


def _check_track(results: Results, track: Track) -> None:
    if results.track != track:
        raise UsageError(f"expected results of the {track} track, got {results.track}")


def _title(results: Results) -> str:
    model, dataset = (str(part.get("name", "")) for part in (results.model, results.dataset))
    subject = " on ".join(filter(None, (model, dataset))) or results.track
    left_out = len(results.skipped) + sum(results.unknown_classes.values())
    return f"{_literal(subject)} ({results.n:,} images{f', {left_out:,} left out' if left_out else ''})"


def _recall(metric: dict[str, float | None]) -> str:
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return "no rows"
    return f"{value:.0%}" + ("" if low is None or high is None else f" [{low:.0%}, {high:.0%}]")


def _short(name: str, length: int = 22) -> str:
    return _literal(name if len(name) <= length else name[: length - 1] + "…")


def _literal(text: str) -> str:
    """Text from data: matplotlib is not to read formulas in it."""
    return text.replace("$", r"\$")


def _draw_roc(
    axes: Axes,
    real: NDArray[np.float64],
    synthetic: NDArray[np.float64],
    threshold: float,
    auc: dict[str, float | None],
) -> None:
    axes.set_title(f"ROC, AUC {interval_text(auc)}", fontsize="medium")
    axes.set_xlabel("real images called synthetic (FPR)")
    axes.set_ylabel("synthetic images found (TPR)")
    axes.set_ylim(0, 1.02)
    if not (real.size and synthetic.size):
        axes.text(0.5, 0.5, "one class only", ha="center", va="center", transform=axes.transAxes)
        return
    thresholds = np.unique(np.concatenate([real, synthetic, [threshold]]))[::-1]
    fpr, tpr = (1 - np.searchsorted(np.sort(part), thresholds, side="left") / part.size for part in (real, synthetic))
    left = min(0.5 / real.size, 0.005)  # where no false positive is drawn: half of the smallest rate there is
    axes.set_xscale("log")
    axes.set_xlim(left, 1)
    chance = np.geomspace(left, 1, 200)
    axes.plot(chance, chance, color=_GREY, linestyle=":", label="chance")
    fpr, tpr = np.append(fpr, 1.0), np.append(tpr, 1.0)
    axes.step(np.maximum(fpr, left), tpr, where="post", color="black", label="detector")
    axes.axvline(0.01, color=_GREY, linewidth=0.8, linestyle="--")
    axes.text(0.01, 0.06, " 1 % FPR", color=_GREY, fontsize="small")
    at = int(np.flatnonzero(thresholds == threshold)[0])
    axes.plot(
        max(fpr[at], left), tpr[at], "o", color=_SYNTHETIC, clip_on=False, zorder=3, label=f"threshold {threshold:g}"
    )
    axes.legend(loc="center left", fontsize="small")


def _draw_scores(axes: Axes, real: NDArray[np.float64], synthetic: NDArray[np.float64], threshold: float) -> None:
    edges = np.linspace(0, 1, 26)
    for part, color, hatch, name in (
        (real, _REAL, "//", Origin.REAL),
        (synthetic, _SYNTHETIC, None, Origin.SYNTHETIC),
    ):
        if part.size:
            shares = np.histogram(part, edges)[0] / part.size
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.35, label=f"{name} ({part.size:,})")
            axes.stairs(shares, edges, color=color, linewidth=1.5, hatch=hatch)
    axes.axvline(threshold, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_title("Scores", fontsize="medium")
    axes.set_xlabel("probability of synthetic")
    axes.set_ylabel("share of the class")
    axes.legend(fontsize="small")


def _draw_groups(axes: Axes, groups: dict[str, dict[str, Any]], column: str, overall: dict[str, float | None]) -> None:
    shown = {name: part for name, part in groups.items() if part["metrics"]["balanced_accuracy"]["value"] is not None}
    ordered = sorted(shown, key=lambda name: shown[name]["metrics"]["balanced_accuracy"]["value"])
    for row, name in enumerate(ordered):
        metric, few = shown[name]["metrics"]["balanced_accuracy"], shown[name]["n_synthetic"] < _FEW
        axes.barh(row, metric["value"], color=_REAL, alpha=0.25 if few else 0.75)
        if metric["low"] is not None:
            axes.plot([metric["low"], metric["high"]], [row, row], color="black", linewidth=2, marker="|")
    labels = [f"{_short(name)} ({shown[name]['n_synthetic']:,})" for name in ordered]
    axes.set_yticks(range(len(ordered)), labels, fontsize="small")
    axes.axvline(0.5, color=_GREY, linestyle=":")
    axes.set_xlim(0, 1)
    axes.set_title(f"By {column.replace('_', ' ')}; overall {interval_text(overall)}", fontsize="medium")
    pale = any(part["n_synthetic"] < _FEW for part in shown.values())
    axes.set_xlabel(f"balanced accuracy (dotted: chance{f'; pale: fewer than {_FEW} images' if pale else ''})")
    axes.set_ylim(-0.6, max(len(ordered), 1) - 0.4)
