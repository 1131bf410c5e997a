"""Pictures of results, with matplotlib: readable without colour vision, drawn without pyplot or a display.

Every function returns a `matplotlib.figure.Figure`. In a notebook, run `%matplotlib inline` once and the figure shows
as the last value of a cell.
"""

from __future__ import annotations

import itertools
import math
import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.errors import UsageError, require
from imaginet_hub.evaluation.detection import GENERATOR_COLUMNS
from imaginet_hub.evaluation.mistakes import Mistake
from imaginet_hub.evaluation.report import Results, interval_text
from imaginet_hub.evaluation.spectra import Spectrum
from imaginet_hub.labels import Origin, Track

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "comparison_figure",
    "contact_sheet",
    "deletion_figure",
    "detection_figure",
    "embedding_figure",
    "identification_figure",
    "mistakes_figure",
    "patch_figure",
    "reliability_figure",
    "roc_figure",
    "save_figure",
    "spectra_figure",
    "training_figure",
]

# Okabe & Ito's palette (2008): distinct under every common colour vision deficiency, and in grey.
_REAL, _SYNTHETIC, _GREY = "#0072B2", "#D55E00", "#6E6E6E"

#: Colour and dashes of curves, so that neither is needed to tell them apart.
_STYLES = (
    ("#0072B2", (0, ())),
    ("#D55E00", (0, (5, 1.5))),
    ("#009E73", (0, (1.2, 1.2))),
    ("#CC79A7", (0, (6, 1.5, 1.2, 1.5))),
    ("#E69F00", (0, (3, 1))),
    ("#56B4E9", (0, (6, 1.5, 1.2, 1.5, 1.2, 1.5))),
    ("#6E6E6E", (0, (9, 2))),
    ("#000000", (0, (3, 3))),
)

#: Groups of fewer synthetic images are drawn pale: their intervals promise too much.
_FEW = 10

#: Groups beyond these are counted, not drawn: nobody reads a taller picture.
_MOST_GROUPS = 60

#: Metrics of which the smaller value is the better one.
_LESS_IS_BETTER = ("eer", "ece", "brier", "nll")

#: Bins of a reliability diagram, those of the calibration error.
_BINS = 15


def detection_figure(results: Results) -> Figure:
    """An overview: ROC curve with a logarithmic false positive axis, reliability, scores of both classes, groups.

    Args:
        results: of the detection track, with `per_image`.

    Raises:
        UsageError: results of the other track, or without the scores of each image.
        MissingExtraError: matplotlib is not installed.
    """
    real, synthetic = _scores(results)
    figure = _figure()
    column = next((name for name in (*reversed(GENERATOR_COLUMNS), *results.by) if results.by.get(name)), None)
    groups = results.by[column] if column else {}
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    if len(groups) <= 15:
        figure.set_size_inches(13, 9.6)
        roc, scores = left.subplots(2, 1, height_ratios=[4.6, 4])
        diagram, counts, bars = right.subplots(3, 1, height_ratios=[3.6, 1, 4])
    else:
        figure.set_size_inches(13, max(13.5, 2 + 0.26 * min(len(groups), _MOST_GROUPS)))
        roc, diagram, counts, scores = left.subplots(4, 1, height_ratios=[4.4, 3.6, 1, 3.4])
        bars = right.subplots()
    _draw_roc(roc, results, real, synthetic)
    if roc.lines:
        good = results.metrics["auc"]["value"] or 0
        roc.legend(loc="lower right" if good > 0.85 else "upper left", fontsize="small")
    roc.set_title(f"ROC, AUC {interval_text(results.metrics['auc'])}", fontsize="medium")
    _draw_reliability(diagram, counts, results)
    _draw_scores(scores, real, synthetic, _threshold(results))
    _draw_groups(bars, groups, column or "group", results.metrics["balanced_accuracy"])
    figure.suptitle(_title(results))
    return figure


def roc_figure(results: Results) -> Figure:
    """ROC curves of all synthetic images and of each generator family, with a logarithmic false positive axis.

    Marked: the threshold, and the shares found at 1 % and 0.1 % false positives with their intervals. Hatched: false
    positive rates below that of a single real image, of which these results say nothing. Of many families the lowest
    are drawn in colour.

    Args:
        results: of the detection track, with `per_image`; families need one of the columns generator_family and
            generator among those reported by.

    Raises:
        UsageError, MissingExtraError: as `detection_figure`.
    """
    real, synthetic = _scores(results)
    figure = _figure()
    figure.set_size_inches(10.5, 5.8)
    axes = figure.subplots()
    column = next((name for name in GENERATOR_COLUMNS if results.by.get(name)), None)
    curves: dict[str, NDArray[np.float64]] = {}
    labels: dict[str, str] = {}
    if column and len(results.by[column]) > 1:
        by = results.by[column]
        position = results.names.index(Origin.SYNTHETIC)
        parts: dict[str, list[float]] = {}
        for entry in results.per_image or ():
            if entry["label"] == Origin.SYNTHETIC:
                parts.setdefault(entry["columns"][column], []).append(entry["scores"][position])
        for name in sorted(parts, key=lambda name: by[name]["metrics"]["auc"]["value"] or 0):
            curves[name] = np.array(parts[name])
            auc = interval_text(by[name]["metrics"]["auc"])
            labels[name] = f"{_short(name)} ({len(parts[name]):,}), AUC {auc}"
    everything = f"all generators ({synthetic.size:,}), AUC {interval_text(results.metrics['auc'])}"
    _draw_roc(axes, results, real, synthetic, curves, labels, everything)
    if axes.lines:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False, alignment="left")
    axes.set_title(_title(results))
    return figure


def reliability_figure(results: Results) -> Figure:
    """How often answers are right against how probable they are said to be, in the bins of the calibration error.

    The answer is the most probable class, whatever the threshold; bars are Wilson's 95 % intervals.

    Args:
        results: of either track, with `per_image`.

    Raises:
        UsageError: results without the scores of each image.
        MissingExtraError: matplotlib is not installed.
    """
    _check_scores(results)
    figure = _figure()
    figure.set_size_inches(6, 6.6)
    diagram, counts = figure.subplots(2, 1, height_ratios=[3.4, 1])
    _draw_reliability(diagram, counts, results)
    figure.suptitle(_title(results))
    return figure


def identification_figure(results: Results) -> Figure:
    """The confusion matrix: rows are true families, with counts and, up to 8 classes, the share of each row.

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
    few = k <= 8
    figure.set_size_inches(*((3.2 + 0.95 * k, 2.4 + 0.75 * k) if few else (4 + 0.46 * k, 3 + 0.46 * k)))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, answer), count in np.ndenumerate(counts):
        text = f"{count:,}\n{shares[true, answer]:.0%}" if few and totals[true] else f"{count:,}"
        axes.text(
            answer,
            true,
            text if few or count else "·",
            ha="center",
            va="center",
            fontsize="medium" if few else "small",
            color="white" if shares[true, answer] > 0.6 else "black",
            weight="bold" if true == answer else "normal",
        )
    axes.set_xticks(
        range(k),
        [_short(name) for name in results.names],
        rotation=30 if few else 60,
        ha="right",
        rotation_mode="anchor",
    )
    between = "\n" if few else "  "
    axes.set_yticks(range(k), [f"{_short(name)}{between}{_recall(results.recall[name])}" for name in results.names])
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


def comparison_figure(results: Results) -> Figure:
    """How much better or worse a model is than another on the same images, with paired intervals.

    Args:
        results: with a `comparison`.

    Raises:
        UsageError: results without one.
        MissingExtraError: matplotlib is not installed.
    """
    if results.comparison is None:
        raise UsageError("expected results with a comparison: evaluate against another detector")
    mcnemar = results.comparison["mcnemar"]
    differences = {
        name: d for name, d in results.comparison["differences"].items() if d["value"] is not None and name != "nll"
    }
    nll = results.comparison["differences"].get("nll")
    figure = _figure()
    figure.set_size_inches(8, 1.9 + 0.36 * max(1, len(differences)))
    axes = figure.subplots()
    for row, (name, difference) in enumerate(reversed(differences.items())):
        better = difference["value"] * (-1 if name in _LESS_IS_BETTER else 1) > 0
        if difference["low"] is not None:
            axes.plot([difference["low"], difference["high"]], [row, row], color="black", linewidth=2, marker="|")
        axes.plot(difference["value"], row, "o" if better else "s", color=_REAL if better else _SYNTHETIC, zorder=3)
    axes.axvline(0, color=_GREY, linestyle=":")
    labels = [f"{name.replace('_', ' ')}{' *' * (name in _LESS_IS_BETTER)}" for name in reversed(differences)]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(-0.6, max(1, len(labels)) - 0.4)
    reach = max((abs(end) for d in differences.values() for end in d.values() if end is not None), default=0)
    axes.set_xlim(-1.1 * (reach or 0.1), 1.1 * (reach or 0.1))
    more = f"\nnll *, on no such scale: {interval_text(nll)}" if nll and nll["value"] is not None else ""
    axes.set_xlabel(f"difference (round: better, square: not; * less is better){more}")
    other = _short(str(results.comparison.get("other", {}).get("name", "the other")), 36)
    axes.set_title(
        f"minus {other}\nright where the other is wrong: {mcnemar['only_a_right']:,}, wrong where it is right: "
        f"{mcnemar['only_b_right']:,} (McNemar p = {mcnemar['p_value']:.3g})",
        fontsize="medium",
    )
    figure.suptitle(_title(results))
    return figure


def mistakes_figure(mistakes: Mapping[str, Sequence[Mistake]]) -> Figure:
    """A contact sheet: one row of pictures for each group, the worst mistakes first.

    Args:
        mistakes: group -> its mistakes, as `Mistakes.by_group` gives them; groups without any are named below.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure()
    shown = {group: part for group, part in mistakes.items() if part}
    none = [_short(group) for group, part in mistakes.items() if not part]
    if none or not shown:
        figure.supxlabel(f"no mistakes{': ' if none else ''}{', '.join(none)}", fontsize="small", wrap=True)
    if not shown:
        figure.set_size_inches(6, 1)
        return figure
    columns = max(map(len, shown.values()))
    figure.set_size_inches(1.6 + 1.75 * columns, 0.3 + 2.05 * len(shown))
    grid: NDArray[Any] = figure.subplots(len(shown), columns + 1, squeeze=False, width_ratios=[0.8] + [1] * columns)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (group, part) in zip(grid, shown.items(), strict=True):
        row[0].text(0, 0.5, _wrapped(group, 14), va="center", weight="bold", transform=row[0].transAxes)
        for axes, mistake in zip(row[1:], part, strict=False):
            axes.imshow(np.asarray(mistake.thumbnail.convert("RGB")))
            axes.set_title(f"{mistake.probability:.3f} {_short(mistake.answer, 14)}", fontsize="small", pad=3)
            tail = mistake.path if len(mistake.path) <= 24 else "…" + mistake.path[-23:]
            axes.text(0.5, -0.03, _literal(tail), ha="center", va="top", fontsize=6, transform=axes.transAxes)
    return figure


def spectra_figure(spectra: Mapping[str, Spectrum]) -> Figure:
    """Mean spectra: that of real images, and how each generator's differs from it, in decibels.

    Grids of points are traces of upsampling. What differs by less than 5.6 / sqrt(n) dB between single frequencies of
    groups of n images is noise.

    Args:
        spectra: group -> spectrum, as `MeanSpectra.result` gives them. Without the group "real" all are shown as
            they are.

    Raises:
        UsageError: no spectra, or of different sizes.
        MissingExtraError: matplotlib is not installed.
    """
    sizes = {len(spectrum.decibels) for spectrum in spectra.values()}
    if len(sizes) != 1:
        raise UsageError(f"expected spectra of one size, got {sorted(sizes) or 'none'}")
    (size,) = sizes
    real = spectra.get(Origin.REAL)
    others = [group for group in spectra if group != Origin.REAL]
    absolute = [Origin.REAL] if real else others
    shown = {group: spectra[group].decibels for group in absolute}
    shown |= {group: spectra[group].decibels - real.decibels for group in others if real}
    low, high = np.percentile([shown[group] for group in absolute], [0.5, 99.8])
    reach = max((float(np.percentile(np.abs(shown[group]), 99.5)) for group in others if real), default=0)
    reach = min(max(reach, 3.0), 15.0)
    figure = _figure()
    columns = min(6, max(3, len(shown)))
    rows = math.ceil(len(shown) / columns)
    figure.set_size_inches(2.1 * columns + 1.6, 2.4 * rows + 3.4)
    halves: Any = figure.subfigures(2, 1, height_ratios=[2.4 * rows, 3.4])
    above, below = halves
    grid: NDArray[Any] = above.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    scales: dict[str, Any] = {}
    for axes, (group, values) in zip(grid.flat, shown.items(), strict=False):
        if group in absolute:
            scales["power, dB"] = axes.imshow(values, cmap="cividis", vmin=low, vmax=high)
        else:
            scales["against real, dB"] = axes.imshow(values, cmap="PuOr_r", vmin=-reach, vmax=reach)
        axes.set_title(f"{_short(group, 20)} ({spectra[group].images:,})", fontsize="small")
    for label, scale in scales.items():
        bar = {"shrink": min(0.85, 2 / rows), "anchor": (0, 1), "pad": 0.01, "aspect": 18}
        above.colorbar(scale, ax=grid, label=label, extend="both", **bar)
    axes = below.subplots()
    curves = {group: spectra[group].radial - (real.radial if real else 0) for group in others}
    certain = {group: float(np.abs(curves[group][2:]).max()) * spectra[group].images ** 0.5 for group in others}
    if real:
        axes.axhline(0, color="black", linewidth=1, label=str(Origin.REAL))
    for group, style in _styled(sorted(others, key=lambda group: -certain[group])).items():
        axes.plot(np.arange(size // 2 + 1) / size, curves[group], **style)
    axes.set_xlim(0, 0.5)
    axes.set_xlabel("frequency, cycles a pixel (mean over directions)")
    axes.set_ylabel("against real, dB" if real else "power, dB")
    below.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def patch_figure(
    images: Sequence[NDArray[np.uint8]],
    values: Sequence[NDArray[np.float64]],
    titles: Sequence[str] | None = None,
    label: str = "log-odds of synthetic",
) -> Figure:
    """Images, and below each what every part of it adds to an answer, on one scale: orange for, purple against.

    Args:
        images: one or more, (H, W, 3).
        values: for each image (H, W), such as `PatchMap.pixels`.
        titles: one per image.
        label: of the scale.

    Raises:
        UsageError: no images, or shapes or a number of titles that do not fit.
        MissingExtraError: matplotlib is not installed.
    """
    titles = [""] * len(images) if titles is None else titles
    shapes = [image.shape for image in images]
    if not images or len(titles) != len(images) or shapes != [(*part.shape, 3) for part in values]:
        raise UsageError(
            "patch_figure: expected one or more images (H, W, 3), values (H, W) and a title for each, got images "
            f"{shapes}, values {[part.shape for part in values]}, {len(titles)} titles"
        )
    figure = _figure()
    figure.set_size_inches(2.1 * len(images) + 1, 4.4)
    grid: NDArray[Any] = figure.subplots(2, len(images), squeeze=False)
    reach = float(np.percentile(np.abs(np.concatenate([part.ravel() for part in values])), 99)) or 1.0
    for (above, below), image, part, title in zip(grid.T, images, values, titles, strict=True):
        above.imshow(image)
        above.set_title(_literal(title), fontsize="small")
        below.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        scale = below.imshow(part, cmap="PuOr_r", vmin=-reach, vmax=reach, alpha=0.65)
        for axes in (above, below):
            axes.set_axis_off()
    figure.colorbar(scale, ax=grid, label=label, extend="both", shrink=0.8, aspect=30)
    return figure


def deletion_figure(
    fractions: NDArray[np.float64],
    scores: Mapping[str, NDArray[np.float64]],
    advantage: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    label: str = "log-odds of synthetic",
) -> Figure:
    """What is left of an answer when parts of images are deleted, in several orders.

    Args:
        fractions: (steps,) deleted shares.
        scores: order -> (images, steps), as `DeletionCurves.scores`.
        advantage: order -> how much faster the first order is, with its interval; as `DeletionCurves.advantage`.
        label: of the scores.

    Raises:
        UsageError: shapes that do not fit.
        MissingExtraError: matplotlib is not installed.
    """
    shapes = {order: part.shape for order, part in scores.items()}
    if not shapes or any(len(shape) != 2 or shape[1:] != fractions.shape for shape in shapes.values()):
        raise UsageError(f"deletion_figure: expected scores (images, {fractions.size}) for each order, got {shapes}")
    figure = _figure()
    figure.set_size_inches(7.5, 4.5)
    axes = figure.subplots()
    labels = {order: f"{order} ({interval_text(advantage[order])})" for order in scores if order in advantage}
    for order, style in _styled(list(scores), labels).items():
        axes.plot(fractions, scores[order].mean(axis=0), **style)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the image that is deleted")
    images = next(iter(shapes.values()))[0]
    axes.set_ylabel(f"{label}, mean of {images:,} image{'s' * (images > 1)}")
    more = " (area above the first, 95 %)" if advantage else ""
    figure.legend(loc="outside right upper", fontsize="small", frameon=False, title=f"order{more}")
    return figure


def training_figure(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Training curves: the loss of each run above its learning rate.

    Args:
        histories: run -> what was logged, with `step` and `loss` and, if known, `learning_rate`: the key "history" of
            a model folder's training.json.

    Raises:
        UsageError: no runs, or one of which nothing was logged.
        MissingExtraError: matplotlib is not installed.
    """
    if not histories or not all(histories.values()):
        raise UsageError(
            f"training_figure: expected runs with a history, got {', '.join(k for k in histories) or 'none'}: train "
            "with a lower --logging_steps"
        )
    figure = _figure()
    figure.set_size_inches(4.6 * len(histories), 4.4)
    grid: NDArray[Any] = figure.subplots(2, len(histories), squeeze=False, sharex="col", height_ratios=[3, 1])
    for (above, below), (name, history) in zip(grid.T, histories.items(), strict=True):
        for axes, key, color in ((above, "loss", _REAL), (below, "learning_rate", _GREY)):
            kept = [entry for entry in history if entry.get(key) is not None]
            axes.plot([entry["step"] for entry in kept], [entry[key] for entry in kept], ".-", color=color)
            axes.set_ylabel(key.replace("_", " "))
        above.set_title(_short(name, 36), fontsize="medium")
        below.set_ylim(bottom=0)
        below.set_xlabel("step")
    return figure


def embedding_figure(points: NDArray[np.floating], labels: Sequence[str], title: str = "") -> Figure:
    """Points in the plane by group, such as a t-SNE of features; groups beyond eight are drawn alike.

    Args:
        points: (n, 2); what the axes mean is not shown, since in such a map they mean nothing.
        labels: n groups.
        title: of the picture.

    Raises:
        UsageError: shapes that do not fit.
        MissingExtraError: matplotlib is not installed.
    """
    if points.shape != (len(labels), 2) or not len(labels):
        raise UsageError(
            f"embedding_figure: expected points (n, 2) and n labels, got {points.shape} and {len(labels)} labels"
        )
    figure = _figure()
    figure.set_size_inches(7.5, 5.4)
    axes = figure.subplots()
    groups = np.asarray(labels, dtype=object)
    counts = {name: int((groups == name).sum()) for name in dict.fromkeys(labels)}
    names = {name: f"{_short(name)} ({count:,})" for name, count in counts.items()}
    for marker, (name, style) in zip(itertools.cycle("os^vDPX*"), _styled(list(counts), names).items(), strict=False):
        part = points[groups == name]
        shown = {"color": style["color"], "label": style["label"], "zorder": style["zorder"]}
        axes.scatter(part[:, 0], part[:, 1], s=16, marker=marker, alpha=0.75, linewidths=0, **shown)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(_literal(title), fontsize="medium")
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure in the format that the file name ends in (png, svg, pdf); parent folders are created.

    The same figure gives the same bytes. Text in an SVG stays text.
    """
    import matplotlib as mpl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "imaginet"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # names may be in any script
        figure.savefig(path, dpi=150, metadata=dated)


def _figure() -> Figure:
    require("eval", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(layout="constrained")


def _check_track(results: Results, track: Track) -> None:
    if results.track != track:
        raise UsageError(f"expected results of the {track} track, got {results.track}")


def _check_scores(results: Results) -> None:
    if results.per_image is None:
        raise UsageError("expected results with the scores of each image (per_image): write them with per_image=True")


def _scores(results: Results) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities of synthetic of the real and of the synthetic rows."""
    _check_track(results, Track.DETECTION)
    _check_scores(results)
    position = results.names.index(Origin.SYNTHETIC)
    rows = results.per_image or ()
    real, synthetic = (
        np.array([entry["scores"][position] for entry in rows if entry["label"] == origin], dtype=np.float64)
        for origin in Origin
    )
    return real, synthetic


def _threshold(results: Results) -> float:
    return 0.5 if results.threshold is None else results.threshold


def _title(results: Results) -> str:
    model, dataset = (str(part.get("name", "")) for part in (results.model, results.dataset))
    subject = " on ".join(_short(name, 36) for name in (model, dataset) if name) or results.track
    left_out = len(results.skipped) + sum(results.unknown_classes.values())
    return f"{subject} ({results.n:,} images{f', {left_out:,} left out' if left_out else ''})"


def _recall(metric: Mapping[str, float | None]) -> str:
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return "no rows"
    return f"{value:.0%}" + ("" if low is None or high is None else f" [{low:.0%}, {high:.0%}]")


def _short(name: str, length: int = 26) -> str:
    return _literal(_cut(name, length))


def _wrapped(name: str, width: int) -> str:
    """A name over up to three lines."""
    return "\n".join(_literal(line) for line in textwrap.wrap(_cut(name, 3 * width - 6), width))


def _cut(name: str, length: int) -> str:
    """A name without its middle: what tells names apart is often at their end."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[: length - 1 - half]}…{name[-half:]}"


def _literal(text: str) -> str:
    """Text from data: matplotlib is not to read formulas in it, and an SVG holds no control characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text).replace("$", r"\$")


def _styled(names: Sequence[str], labels: Mapping[str, str] = MappingProxyType({})) -> dict[str, dict[str, Any]]:
    """How to draw many curves: the first in colour and with dashes of their own, further ones alike and pale."""
    drawn: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        label = labels.get(name, _short(name))
        label = f" {label}" if label.startswith("_") else label  # matplotlib hides such labels
        if number < len(_STYLES):
            color, dashes = _STYLES[number]
            drawn[name] = {"color": color, "linestyle": dashes, "linewidth": 1.8, "label": label, "zorder": 2.5}
        else:
            rest = len(names) - number
            label = f"{rest} other{'s' * (rest > 1)}" if number == len(_STYLES) else "_"
            drawn[name] = {"color": "#BBBBBB", "linewidth": 0.8, "label": label, "zorder": 2}
    return drawn


def _draw_roc(
    axes: Axes,
    results: Results,
    real: NDArray[np.float64],
    synthetic: NDArray[np.float64],
    groups: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
    labels: Mapping[str, str] = MappingProxyType({}),
    everything: str = "all generators",
) -> None:
    """The curve of all synthetic scores and those of groups of them, each against all real rows.

    Args:
        axes: to draw on.
        results: for the threshold and for the shares at low rates.
        real, synthetic: scores of all rows of each class.
        groups: name -> scores of its synthetic rows.
        labels: of the groups' curves, for the legend.
        everything: label of the curve of all rows.
    """
    axes.set_xlabel("real images called synthetic (FPR)")
    axes.set_ylabel("synthetic images found (TPR)")
    axes.set_ylim(0, 1.02)
    if not (real.size and synthetic.size):
        axes.text(0.5, 0.5, "one class only", ha="center", va="center", transform=axes.transAxes)
        return
    left = min(0.5 / real.size, 0.0005)  # where no false positive is drawn
    axes.set_xscale("log")
    axes.set_xlim(left, 1)
    axes.axvspan(
        left,
        1 / real.size,
        facecolor="none",
        edgecolor="#C8C8C8",
        hatch="///",
        linewidth=0,
        label=f"below 1 of {real.size:,} real images",
    )
    chance = np.geomspace(left, 1, 200)
    axes.plot(chance, chance, color=_GREY, linestyle=":", linewidth=1, label="chance")
    fpr, tpr = _roc(real, synthetic)
    axes.step(np.maximum(fpr, left), tpr, where="post", color="black", linewidth=2.2, zorder=2.8, label=everything)
    for name, style in _styled(list(groups), labels).items():
        fpr, tpr = _roc(real, groups[name])
        axes.step(np.maximum(fpr, left), tpr, where="post", **style)
    threshold = _threshold(results)
    axes.plot(
        max(float(np.mean(real >= threshold)), left),
        np.mean(synthetic >= threshold),
        "o",
        color="black",
        markerfacecolor="white",
        markersize=8,
        clip_on=False,
        zorder=4,
        label=f"threshold {threshold:.3g}",
    )
    for rate, key, marker in ((0.01, "tpr_at_fpr_1", "s"), (0.001, "tpr_at_fpr_0_1", "D")):
        found = results.metrics.get(key)
        if found is None or found["value"] is None:
            continue
        axes.axvline(rate, color=_GREY, linewidth=0.8, linestyle="--", zorder=1)
        low, high = (found["value"] if end is None else end for end in (found["low"], found["high"]))
        axes.vlines(rate, low, high, color=_SYNTHETIC, linewidth=3, zorder=3)
        axes.plot(
            rate,
            found["value"],
            marker,
            color=_SYNTHETIC,
            clip_on=False,
            zorder=4,
            label=f"at {rate * 100:g} % FPR: {interval_text(found)}",
        )


def _roc(real: NDArray[np.float64], synthetic: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rates (points,) of false and of true positives at every threshold, from none called synthetic to all."""
    thresholds = np.unique(np.concatenate([real, synthetic]))[::-1]
    fpr, tpr = (
        1 - np.searchsorted(np.sort(part), np.append(np.inf, thresholds), side="left") / part.size
        for part in (real, synthetic)
    )
    return fpr, tpr


def _draw_reliability(diagram: Axes, counts: Axes, results: Results) -> None:
    rows = [entry for entry in results.per_image or () if entry["label"] in results.names]
    scores = np.array([entry["scores"] for entry in rows])
    truth = np.array([results.names.index(entry["label"]) for entry in rows])
    highest, right = scores.max(axis=1), scores.argmax(axis=1) == truth
    bins = np.searchsorted(np.arange(1, _BINS) / _BINS, highest)
    total = np.bincount(bins, minlength=_BINS)
    used = np.flatnonzero(total)
    share, said = (np.bincount(bins, values, minlength=_BINS)[used] / total[used] for values in (right, highest))
    low, high = _wilson(share, total[used])
    width = 1 / _BINS
    start = used[0] * width
    diagram.bar(
        (used + 0.5) * width, share, width, color=_REAL, alpha=0.35, edgecolor=_REAL, label="share that is right"
    )
    diagram.bar(
        (used + 0.5) * width,
        said - share,
        width,
        bottom=share,
        facecolor="none",
        edgecolor=_SYNTHETIC,
        hatch="///",
        linewidth=0.8,
        label="gap to the probability",
    )
    diagram.vlines((used + 0.5) * width, low, high, color="black", linewidth=1.5)
    diagram.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
    diagram.set_xlim(start, 1)
    diagram.set_ylim(0, 1.02)
    diagram.set_ylabel("share of answers that are right")
    stated = [f"{name} {interval_text(results.metrics.get(key))}" for key, name in _CALIBRATION.items()]
    diagram.set_title("Reliability: " + ", ".join(stated[:1]) + "\n" + ", ".join(stated[1:]), fontsize=9.5)
    diagram.tick_params(labelbottom=False)
    diagram.legend(loc="lower right", fontsize="small")
    counts.bar((used + 0.5) * width, total[used], width, color=_GREY, alpha=0.6, edgecolor=_GREY)
    for place, count in zip((used + 0.5) * width, total[used], strict=True):
        counts.annotate(f"{count:,}", (place, count), (0, 1), textcoords="offset points", ha="center", fontsize=7)
    counts.set_xlim(start, 1)
    counts.set_ylim(0, 1.3 * total.max())
    counts.set_xlabel("probability of the answer")
    counts.set_ylabel("images")


#: What the title of a reliability diagram states.
_CALIBRATION = {"ece": "ECE", "brier": "Brier", "nll": "NLL"}


def _wilson(share: NDArray[np.float64], n: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's 95 % interval of a share (1927, JASA 22): it has a width where the share is 0 or 1."""
    z = 1.959964
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return centre - half, centre + half


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
    more = len(ordered) - _MOST_GROUPS
    ordered = ordered[:_MOST_GROUPS]
    for row, name in enumerate(ordered):
        metric, few = shown[name]["metrics"]["balanced_accuracy"], shown[name]["n_synthetic"] < _FEW
        axes.barh(row, metric["value"], color=_REAL, alpha=0.25 if few else 0.75)
        if metric["low"] is not None:
            axes.plot([metric["low"], metric["high"]], [row, row], color="black", linewidth=2, marker="|")
    labels = [f"{_short(name)} ({shown[name]['n_synthetic']:,})" for name in ordered]
    axes.set_yticks(range(len(ordered)), labels, fontsize="small")
    axes.axvline(0.5, color=_GREY, linestyle=":")
    axes.set_xlim(0, 1)
    which = f", the lowest {_MOST_GROUPS} of {len(shown)}" if more > 0 else ""
    axes.set_title(
        f"By {_short(column.replace('_', ' '))}{which}; overall {interval_text(overall)}", fontsize="medium"
    )
    pale = any(part["n_synthetic"] < _FEW for part in shown.values())
    axes.set_xlabel(f"balanced accuracy (dotted: chance{f'; pale: fewer than {_FEW} images' if pale else ''})")
    spare = max(0, 6 - len(ordered)) / 2  # two bars are not to fill the panel
    axes.set_ylim(-0.6 - spare, len(ordered) - 0.4 + spare)
    if not ordered:
        axes.text(0.5, 0.5, "no group with both classes", ha="center", va="center", transform=axes.transAxes)
