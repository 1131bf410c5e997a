"""Real against synthetic: metrics on scores, with intervals, overall and by group. Numpy only.

The positive class is "synthetic". A row is called synthetic when its score is at or above the threshold. Everything is
computed from one table: how many real and how many synthetic rows lie at each distinct score. Tied scores therefore
move together, as in scikit-learn, and a bootstrap resample is just another table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.bootstrap import Bootstrap, auc_from_counts, bin_counts, column_values
from imaginet_hub.labels import Origin

__all__ = ["GENERATOR_COLUMNS", "METRICS", "detection_metrics", "detection_report"]

#: Columns that say what made an image. Real rows have no value of their own there.
GENERATOR_COLUMNS = ("generator_family", "generator")

#: The metrics of this track, in the order in which they are reported.
METRICS = ("balanced_accuracy", "auc", "accuracy", "average_precision", "eer", "tpr_at_fpr_1")


def detection_metrics(labels: ArrayLike, scores: ArrayLike, *, threshold: float = 0.5) -> dict[str, float]:
    """Metrics of a detector's scores.

    - `balanced_accuracy`: mean of the recalls of the two classes at `threshold`.
    - `accuracy`: share of rows called right at `threshold`.
    - `auc`: area under the ROC curve; ties count half.
    - `average_precision`: sum over distinct scores of the gain in recall times the precision there (not interpolated).
    - `eer`: equal error rate, where the ROC curve, drawn with straight lines, meets FPR = 1 - TPR.
    - `tpr_at_fpr_1`: highest recall of synthetic rows among the thresholds that call at most 1 % of real rows
      synthetic. With fewer than 100 real rows that means none.
    - `n_real`, `n_synthetic`: rows of each class.

    Where only one class is there, every metric but accuracy is NaN.

    Args:
        labels: (n,) 0 = real, 1 = synthetic.
        scores: (n,) probability of synthetic, in [0, 1].
        threshold: lowest score that is called synthetic.

    Raises:
        UsageError: no rows, lengths that differ, other labels, scores or a threshold that are NaN or outside
            [0, 1].
    """
    truth, values = _checked(labels, scores, threshold)
    real, synthetic, n_bins, n_called = _binned(truth, values, threshold)
    metrics = _metrics(bin_counts(real[None], n_bins), bin_counts(synthetic[None], n_bins), n_called)
    counts = {"n_real": float(len(real)), "n_synthetic": float(len(synthetic))}
    return {name: float(metrics[name][0]) for name in METRICS} | counts


def detection_report(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Mapping[str, Sequence[str]],
    *,
    threshold: float = 0.5,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Metrics with stratified bootstrap intervals, overall and for each value of each column.

    A generator, or a family of generators, is measured on its own synthetic rows against all real rows. Every other
    value (a content type, a source) is measured on the rows that have it.

    Args:
        labels, scores, threshold: as for `detection_metrics`.
        groups: for each column, the value of each row, e.g. {"generator": [...], "content_type": [...]}.
        n_resamples, seed, confidence: see `Bootstrap`.

    Returns:
        A dict with, for all rows,

        - `n`, `n_real`, `n_synthetic`: counts;
        - `metrics`: {metric: {"value", "low", "high"}}, NaN where undefined; no bounds where a class has a single row;
        - `recall`: {class: {"value", "low", "high"}}, the share of each class that is called right;
        - `confusion`: [[real called real, called synthetic], [synthetic called real, called synthetic]];
        - `baselines`: what always naming the larger class would give;
        - `by`: {column: {value: {"n", "n_real", "n_synthetic", "metrics"}}}.

    Raises:
        UsageError: as `detection_metrics`; a column of another length; resampling options out of range.
    """
    truth, values = _checked(labels, scores, threshold)
    bootstrap = Bootstrap(n_resamples, confidence, seed)
    summary = _summary(truth, values, threshold, bootstrap, "all")
    recall = {str(name): summary["metrics"][f"recall_{name}"] for name in Origin}
    summary["metrics"] = {name: summary["metrics"][name] for name in METRICS}
    by: dict[str, dict[str, Any]] = {column: {} for column in groups}
    for column, value, mask in column_values(groups, len(truth)):
        rows = mask
        if column in GENERATOR_COLUMNS:
            if not truth[mask].any():
                continue
            rows = np.where(truth == 1, mask, True)
        part = _summary(truth[rows], values[rows], threshold, bootstrap, f"{column}={value}")
        part["metrics"] = {name: part["metrics"][name] for name in METRICS}
        by[column][value] = part
    called = (values >= threshold).astype(np.intp)
    larger = max(Origin, key=lambda name: summary[f"n_{name}"])
    return {
        **summary,
        "recall": recall,
        "confusion": np.bincount(2 * truth + called, minlength=4).reshape(2, 2).tolist(),
        "baselines": {
            "majority": {
                "class": str(larger),
                "accuracy": summary[f"n_{larger}"] / len(truth),
                "balanced_accuracy": 0.5 if summary["n_real"] and summary["n_synthetic"] else float("nan"),
            }
        },
        "by": by,
    }


def _checked(labels: ArrayLike, scores: ArrayLike, threshold: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    if not 0 <= threshold <= 1:
        raise UsageError(f"expected a threshold in [0, 1], got {threshold}")
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise UsageError(f"expected labels and scores of one shape (n,), got {truth.shape} and {values.shape}")
    if not truth.size:
        raise UsageError("expected at least one row to measure, got none")
    if not np.isin(truth, (0, 1)).all():
        raise UsageError(f"expected labels 0 (real) and 1 (synthetic), got {np.unique(truth)[:5].tolist()}")
    if not ((values >= 0) & (values <= 1)).all():
        bad = int(np.flatnonzero(~((values >= 0) & (values <= 1)))[0])
        raise UsageError(
            f"expected scores in [0, 1] (probabilities of synthetic), got {values[bad]} in row {bad}: "
            "apply a sigmoid or softmax to logits, and look for the cause of NaN"
        )
    return truth.astype(np.intp), values


def _binned(
    truth: NDArray[np.intp], scores: NDArray[np.float64], threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], int, int]:
    """Distinct scores as bins, highest first.

    Returns:
        The bin of each real row, the bin of each synthetic row, the number of bins, and how many of them are at or
        above the threshold.
    """
    distinct, bins = np.unique(-scores, return_inverse=True)
    return bins[truth == 0], bins[truth == 1], len(distinct), int(np.searchsorted(distinct, -threshold, side="right"))


def _metrics(real: NDArray[np.intp], synthetic: NDArray[np.intp], n_called: int) -> dict[str, NDArray[np.float64]]:
    """Every metric of each table of counts.

    Args:
        real, synthetic: (tables, bins) rows of each class at each distinct score, highest first.
        n_called: number of leading bins that are called synthetic.

    Returns:
        {metric: (tables,)}, and the recalls of both classes.
    """
    # Points of the ROC curve, from "nothing is called synthetic" to "everything is".
    fp, tp = (np.cumsum(np.pad(counts, ((0, 0), (1, 0))), axis=-1) for counts in (real, synthetic))
    n_real, n_synthetic = fp[:, -1], tp[:, -1]
    table = np.arange(len(fp))
    with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 = NaN is what an empty class gives
        fpr, tpr = fp / n_real[:, None], tp / n_synthetic[:, None]
        recall_real, recall_synthetic = 1 - fpr[:, n_called], tpr[:, n_called]
        precision = tp[:, 1:] / np.maximum(tp[:, 1:] + fp[:, 1:], 1)
        gap = 1 - tpr - fpr
        after = np.argmax(gap <= 0, axis=-1)
        before = after - 1
        step = gap[table, before] / (gap[table, before] - gap[table, after])
        ranking = {
            "balanced_accuracy": (recall_real + recall_synthetic) / 2,
            "auc": auc_from_counts(real, synthetic),
            "average_precision": (synthetic * precision).sum(axis=-1) / n_synthetic,
            "eer": fpr[table, before] + step * (fpr[table, after] - fpr[table, before]),
            "tpr_at_fpr_1": tpr[table, (fp <= n_real[:, None] // 100).sum(axis=-1) - 1],
        }
        right = n_real - fp[:, n_called] + tp[:, n_called]
        return {
            **{name: np.where((n_real > 0) & (n_synthetic > 0), value, np.nan) for name, value in ranking.items()},
            "accuracy": right / (n_real + n_synthetic),
            "recall_real": recall_real,
            "recall_synthetic": recall_synthetic,
        }


def _summary(
    truth: NDArray[np.intp], scores: NDArray[np.float64], threshold: float, bootstrap: Bootstrap, key: str
) -> dict[str, Any]:
    """Counts and every metric with its interval."""
    real, synthetic, n_bins, n_called = _binned(truth, scores, threshold)
    observed = _metrics(bin_counts(real[None], n_bins), bin_counts(synthetic[None], n_bins), n_called)
    resampled = [
        _metrics(bin_counts(drawn_real, n_bins), bin_counts(drawn_synthetic, n_bins), n_called)
        for drawn_real, drawn_synthetic in bootstrap.resamples((real, synthetic), key)
    ]
    sizes = {"recall_real": len(real), "recall_synthetic": len(synthetic)}
    smallest = min(size for size in sizes.values() if size)
    return {
        "n": len(truth),
        "n_real": len(real),
        "n_synthetic": len(synthetic),
        "metrics": {
            name: bootstrap.interval(
                value[0], np.concatenate([part[name] for part in resampled]), sizes.get(name, smallest)
            )
            for name, value in observed.items()
        },
    }
