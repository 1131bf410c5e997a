"""Pictures of an audit, from its report alone: readable without colour vision, drawn without pyplot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imaginet_hub.data.traits import THUMBNAIL
from imaginet_hub.errors import require
from imaginet_hub.evaluation.figures import save_figure, spectra_figure
from imaginet_hub.labels import Origin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

    from imaginet_hub.evaluation.spectra import Spectrum

__all__ = ["PANELS", "PICTURES", "audit_figure", "write_figures"]

# Okabe & Ito's palette (2008): distinct under every common colour vision deficiency, and in grey.
_COLOURS = {str(Origin.REAL): "#0072B2", str(Origin.SYNTHETIC): "#D55E00"}
_HATCHES = {str(Origin.REAL): "//", str(Origin.SYNTHETIC): None}
_GREY = "#6E6E6E"
_SHOWN = 12  # bars of a panel
_GROUPS = 6  # of duplicates


def audit_figure(report: Mapping[str, Any]) -> Figure:
    """One page: the panels that there is something for, and below them groups of near duplicates.

    Args:
        report: of `audit`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = _figure()
    panels = [draw for name, draw in PANELS.items() if name != "model" or report["model"]]
    groups = report["duplicates"]["near"]["examples"][:_GROUPS]
    columns, rows = 3, len(panels) // 3 + 1
    heights = [5.0] * (rows - 1) + [5.0 if len(panels) % 3 else 2.8]
    below = 1.7 * len(groups) / 2 + 0.6 if groups else 0
    figure.set_size_inches(18, sum(heights) + below + 0.6)
    upper: FigureBase = figure
    if groups:
        both: Any = figure.subfigures(2, 1, height_ratios=[sum(heights), below])
        upper, lower = both
        _draw_duplicates(lower, report, columns=2)
    grid: Any = upper.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for axes, draw in zip(grid.ravel(), panels, strict=False):
        draw(axes, report)
    rest = grid.ravel()[len(panels) :]
    for axes in rest:
        axes.set_axis_off()
    _write_findings(rest[0], report)
    counts = report["counts"]
    name = report["dataset"]["name"] or "rows"
    left_out = f", {counts['unreadable']:,} unreadable" if counts["unreadable"] else ""
    title = f"Shortcuts in {name}: {counts['n_real']:,} real and {counts['n_synthetic']:,} synthetic images{left_out}"
    figure.suptitle(_literal(title), fontsize="x-large")
    return figure


def _write_findings(axes: Axes, report: Mapping[str, Any]) -> None:
    """The strongest findings in words; they may be longer than the panel, whose neighbours are empty."""
    lines = [finding["text"] for finding in report["verdict"]["findings"]]
    lines = lines[:_SHOWN] + [f"and {len(lines) - _SHOWN} more"] * (len(lines) > _SHOWN)
    text = "\n".join(f"• {_short(line, 160)}" for line in lines or ["nothing stands out from chance"])
    axes.set_title("Findings, the strongest first", fontsize="medium", loc="left")
    note = axes.text(0, 1, text, va="top", fontsize="small", linespacing=1.9, transform=axes.transAxes)
    note.set_in_layout(False)


def write_figures(report: Mapping[str, Any], out: Path, spectra: Mapping[str, Spectrum] | None = None) -> list[Path]:
    """OUT/audit.png, OUT/audit.svg, each panel and the spectra as OUT/pictures/NAME.png.

    Returns what was written: those of `PICTURES` that there is something for.
    """
    page = audit_figure(report)
    written = [out / "audit.png", out / "audit.svg"]
    for path in written:
        page.savefig(path, dpi=110)
    (out / "pictures").mkdir(exist_ok=True)
    for name, draw in PANELS.items():
        if name == "model" and not report["model"]:
            continue
        figure = _figure()
        figure.set_size_inches(7.5, 5.4)
        draw(figure.subplots(), report)
        written.append(out / "pictures" / f"{name}.png")
        figure.savefig(written[-1], dpi=130)
    if groups := report["duplicates"]["near"]["examples"][:_GROUPS]:
        figure = _figure()
        figure.set_size_inches(9, 1.7 * len(groups) + 0.6)
        _draw_duplicates(figure, report, columns=1)
        written.append(out / "pictures" / "duplicates.png")
        figure.savefig(written[-1], dpi=130)
    if spectra:
        written.append(out / "pictures" / "spectra.png")
        save_figure(spectra_figure(spectra), written[-1])
    return written


def _figure() -> Figure:
    require("eval", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(layout="constrained")


def _literal(text: str) -> str:
    """Text from data: matplotlib is not to read formulas in it."""
    return text.replace("$", r"\$")


def _short(text: str, length: int = 26) -> str:
    return _literal(text if len(text) <= length else text[: length - 1] + "…")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _draw_rules(axes: Axes, report: Mapping[str, Any]) -> None:
    found = {name: rule["all"]["balanced_accuracy"] for name, rule in report["rules"].items()}
    found = {name: i for name, i in found.items() if i["value"] is not None and abs(i["value"] - 0.5) > 1e-9}
    names = sorted(found, key=lambda name: abs(found[name]["value"] - 0.5))[-_SHOWN:]
    _draw_intervals(axes, {_words(name): found[name] for name in names})
    axes.set_title("One rule alone", fontsize="medium")
    axes.set_xlabel("balanced accuracy of calling synthetic where it holds")


def _draw_intervals(axes: Axes, intervals: Mapping[str, Mapping[str, Any]]) -> None:
    """Points with their intervals, the last on top, against chance at one half."""
    for row, interval in enumerate(intervals.values()):
        value, low, high = (interval[key] for key in ("value", "low", "high"))
        side = Origin.SYNTHETIC if value >= 0.5 else Origin.REAL
        if low is not None:
            axes.plot([low, high], [row, row], color=_COLOURS[side], linewidth=2.5, alpha=0.6)
        axes.plot(value, row, "o" if side is Origin.SYNTHETIC else "s", color=_COLOURS[side])
        axes.annotate(
            f"{value:.3f}", (value, row), (0, 5), textcoords="offset points", ha="center", fontsize="x-small"
        )
    axes.axvline(0.5, color=_GREY, linestyle=":")
    axes.set_yticks(range(len(intervals)), [_short(name) for name in intervals], fontsize="small")
    axes.set_ylim(-0.6, max(len(intervals), 1) - 0.2)
    axes.set_xlim(0, 1)
    if not intervals:
        _nothing(axes, "nothing differs from chance")


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=_GREY)


def _draw_scalars(axes: Axes, report: Mapping[str, Any]) -> None:
    found = {name: scalar["auc"] for name, scalar in report["scalars"].items() if scalar["auc"]["value"] is not None}
    names = sorted(found, key=lambda name: abs(found[name]["value"] - 0.5))[-_SHOWN:]
    _draw_intervals(axes, {_words(name): found[name] for name in names})
    axes.set_title("One number alone", fontsize="medium")
    axes.set_xlabel("AUC (below .5: lower in synthetic images)")


def _draw_histogram(name: str, label: str) -> Callable[[Axes, Mapping[str, Any]], None]:
    def draw(axes: Axes, report: Mapping[str, Any]) -> None:
        scalar = report["scalars"][name]
        edges, medians = np.array(scalar["histogram"]["edges"]), scalar["median"]
        for origin, colour in _COLOURS.items():
            counts = np.array(scalar["histogram"][origin], float)
            if not counts.sum():
                continue
            shares = counts / counts.sum()
            title = f"{origin} ({int(counts.sum()):,}), median {medians[origin]:.3g}"
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.3)
            axes.stairs(shares, edges, color=colour, linewidth=1.5, hatch=_HATCHES[origin], label=title)
            axes.axvline(medians[origin], color=colour, linestyle="--", linewidth=1)
        axes.set_xlabel(label)
        axes.set_ylabel("share of the class")
        axes.set_title(f"{_words(name).capitalize()}{_by_format(scalar)}", fontsize="medium")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        else:
            _nothing(axes, "nothing to show")

    return draw


def _by_format(scalar: Mapping[str, Any]) -> str:
    """Medians of the commonest format that has both classes, where there are several."""
    parts = {
        name: part for name, part in scalar["by_format"].items() if min(part["n_real"], part["n_synthetic"]) >= 10
    }
    if len(scalar["by_format"]) < 2 or not parts:
        return ""
    name = max(parts, key=lambda name: parts[name]["n_real"] + parts[name]["n_synthetic"])
    real, synthetic = (parts[name]["median"][origin] for origin in Origin)
    return f"; {name} only: medians {real:.3g} real, {synthetic:.3g} synthetic"


def _draw_shares(axes: Axes, shares: Mapping[str, Mapping[str, float]], empty: str) -> None:
    """Two bars a name, the first name on top."""
    names = list(shares)[::-1]
    for origin, offset in ((str(Origin.REAL), 0.2), (str(Origin.SYNTHETIC), -0.2)):
        axes.barh(
            np.arange(len(names)) + offset,
            [shares[name][origin] for name in names],
            0.38,
            label=origin,
            color=_COLOURS[origin],
            alpha=0.75,
            hatch=_HATCHES[origin],
            edgecolor="white",
        )
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize="small")
    axes.set_ylim(min(-0.6, len(names) - 4.4), max(len(names), 1) - 0.4)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the class")
    if shares:
        axes.legend(fontsize="small")
    else:
        _nothing(axes, empty)


def _draw_metadata(axes: Axes, report: Mapping[str, Any]) -> None:
    rules = {name: rule["all"] for name, rule in report["rules"].items() if name.startswith("has_")}
    shares = {
        _words(name.removeprefix("has_")): {"real": part["share_real"], "synthetic": part["share_synthetic"]}
        for name, part in rules.items()
        if part["share_real"] or part["share_synthetic"]
    }
    _draw_shares(axes, shares, "no file has any metadata")
    axes.set_title("Files with metadata", fontsize="medium")


def _draw_categories(name: str, title: str) -> Callable[[Axes, Mapping[str, Any]], None]:
    def draw(axes: Axes, report: Mapping[str, Any]) -> None:
        counts, part = report["counts"], report["categoricals"][name]
        shares = {
            entry["value"]: {str(o): entry[f"n_{o}"] / max(1, counts[f"n_{o}"]) for o in Origin}
            for entry in part["largest"][:_SHOWN]
        }
        _draw_shares(axes, shares, "nothing to show")
        value = part["balanced_accuracy"]
        told = "" if value is None else f": tells the label with {_interval(value)}"
        axes.set_title(title + told, fontsize="medium")

    return draw


def _interval(interval: Mapping[str, Any]) -> str:
    if interval["value"] is None:
        return "n/a"
    ends = "" if interval["low"] is None else f" [{interval['low']:.3f}, {interval['high']:.3f}]"
    return f"{interval['value']:.3f}{ends}"


def _draw_roc(axes: Axes, report: Mapping[str, Any]) -> None:
    styles = {"cross_validated": "-", "by_source": "--"}
    names = {"cross_validated": "new images", "by_source": "new sources"}
    for kind, colour in (("metadata", "black"), ("metadata_and_colours", "#009E73")):
        for way, style in styles.items():
            part = report["classifier"][kind][way]
            if part is not None:
                label = f"{_words(kind)}, {names[way]}:\nAUC {_interval(part['auc'])}"
                axes.plot(part["roc"]["fpr"], part["roc"]["tpr"], style, color=colour, label=label)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    axes.set_xlabel("real images called synthetic (FPR)")
    axes.set_ylabel("synthetic images found (TPR)")
    axes.set_title("Classifiers that see no picture (cross-validated)", fontsize="medium")
    if len(axes.lines) > 1:
        axes.legend(loc="lower right", fontsize="small")
    else:
        _nothing(axes, "too few images for a classifier")


def _draw_importance(axes: Axes, report: Mapping[str, Any]) -> None:
    part = report["classifier"]["metadata_and_colours"]["cross_validated"]
    importance = dict(list(part["importance"].items())[:_SHOWN]) if part else {}
    names = list(reversed(importance))
    axes.barh(range(len(names)), [importance[name] for name in names], color="#009E73", alpha=0.75)
    axes.set_yticks(range(len(names)), [_words(name) for name in names], fontsize="small")
    axes.axvline(0, color=_GREY, linewidth=0.8)
    axes.set_xlabel("AUC lost when its values are shuffled")
    axes.set_title("What the classifier of metadata and colours goes by", fontsize="medium")
    if not names:
        _nothing(axes, "too few images for a classifier")


def _draw_model(axes: Axes, report: Mapping[str, Any]) -> None:
    variants = report["model"]["variants"]
    for offset, metric, marker, colour in (
        (0.14, "auc", "o", "black"),
        (-0.14, "balanced_accuracy", "s", _COLOURS["real"]),
    ):
        for row, part in enumerate(reversed(variants.values())):
            interval = part["metrics"][metric]
            if interval["low"] is not None:
                axes.plot([interval["low"], interval["high"]], [row + offset] * 2, color=colour, alpha=0.6)
            label = _words(metric) if row == 0 else None
            axes.plot(interval["value"], row + offset, marker, color=colour, label=label)
    baseline = report["verdict"]["baseline"]
    if baseline is not None:
        value = baseline["balanced_accuracy"]["value"]
        axes.axvline(value, color=_COLOURS["synthetic"], linestyle="--", label="best shortcut")
    axes.axvline(0.5, color=_GREY, linestyle=":")
    names = {
        "raw": "raw crop",
        "format_quality": "same format\nand quality",
        "size": "same size",
        "all": "all the same",
    }
    axes.set_yticks(range(len(variants)), [names.get(name, name) for name in reversed(variants)], fontsize="small")
    axes.set_xlim(min(0.4, axes.get_xlim()[0]), 1.01)
    axes.set_ylim(-0.5, len(variants) + 0.4)
    axes.set_title("The model, raw and with shortcuts taken away", fontsize="medium")
    axes.legend(fontsize="x-small", loc="upper left", ncols=3, columnspacing=1)


def _draw_duplicates(figure: FigureBase, report: Mapping[str, Any], columns: int) -> None:
    """A row of small pictures for each group, with where they are from."""
    near = report["duplicates"]["near"]
    groups = near["examples"][:_GROUPS]
    across = 6
    grid: Any = figure.subplots(-(-len(groups) // columns), columns * across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, group in enumerate(groups):
        row, column = divmod(number, columns)
        for axes, entry in zip(grid[row, column * across :], group["rows"][:across], strict=False):
            luma = np.frombuffer(bytes.fromhex(entry["thumbnail"]), np.uint8).reshape(THUMBNAIL, THUMBNAIL)
            axes.imshow(luma, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
            name = _short(Path(entry["path"]).name, 22)
            axes.set_title(f"{entry['label']}, {_short(entry['split'], 12)}\n{name}", fontsize=6)
    figure.suptitle(
        f"Groups of near duplicates: {near['groups']:,}; across splits: {near['across_splits']:,}; "
        f"across labels: {near['across_labels']:,} (shown: luma, 16 x 16)",
        fontsize="medium",
    )


#: Panels by name, in the order of the page.
PANELS: dict[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "rules": _draw_rules,
    "scalars": _draw_scalars,
    "classifier": _draw_roc,
    "bits_per_pixel": _draw_histogram("bits_per_pixel", "bits of the file for each pixel"),
    "width": _draw_histogram("width", "pixels"),
    "formats": _draw_categories("format", "Formats"),
    "quantisation": _draw_categories("quantisation", "JPEG quantisation tables"),
    "metadata": _draw_metadata,
    "importance": _draw_importance,
    "model": _draw_model,
}

#: All that `write_figures` may write.
PICTURES = ("audit.png", "audit.svg", *(f"pictures/{name}.png" for name in (*PANELS, "duplicates", "spectra")))
