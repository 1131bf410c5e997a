"""Which generator family made a synthetic image: metrics on class probabilities, with intervals. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.bootstrap import Bootstrap, auc_from_counts, bin_counts, column_values
from imaginet_hub.evaluation.detection import GENERATOR_COLUMNS

__all__ = ["METRICS", "identification_metrics", "identification_report"]

#: The metrics of this track, in the order in which they are reported.
METRICS = ("balanced_accuracy", "auc", "accuracy", "macro_f1")


def identification_metrics(labels: ArrayLike, probabilities: ArrayLike, names: Sequence[str]) -> dict[str, Any]:
    """Metrics of a classifier's probabilities. The class with the highest one is the answer (the first, where tied).

    - `accuracy`: share of rows answered right.
    - `balanced_accuracy`: mean recall over the classes that occur among `labels`.
    - `macro_f1`: mean F1 over the classes that occur among `labels` or the answers.
    - `auc`: mean, over the classes that occur, of the area under the one-vs-rest ROC curve; ties count half. NaN
      where only one class occurs.
    - `recall`: {name: share of its rows answered right}, NaN for a class without rows.
    - `confusion`: one list per true class, rows answered with each class, both in the order of `names`.
    - `n`: rows.

    Args:
        labels: (n,) integers, positions in `names`.
        probabilities: (n, k) in [0, 1].
        names: the k classes.

    Raises:
        UsageError: no rows, shapes that do not fit, unknown labels, probabilities that are NaN or outside [0, 1].
    """
    truth, values = _checked(labels, probabilities, names)
    tables = _Tables(truth, values)
    metrics = tables.metrics(tables.rows_once())
    return {
        **{name: float(metrics[name][0]) for name in METRICS},
        "recall": {name: float(recall) for name, recall in zip(names, metrics["recall"][0], strict=True)},
        "confusion": metrics["confusion"][0].tolist(),
        "n": len(truth),
    }


def identification_report(
    labels: ArrayLike,
    probabilities: ArrayLike,
    names: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any]:
    """Metrics with stratified bootstrap intervals, overall and for each value of each column.

    Args:
        labels, probabilities, names: as for `identification_metrics`.
        groups: for each column, the value of each row, e.g. {"generator": [...], "content_type": [...]}.
        n_resamples, seed, confidence: see `Bootstrap`.

    Returns:
        A dict with, for all rows,

        - `n`: rows; `class_counts`: {name: rows};
        - `metrics`: {metric: {"value", "low", "high"}}, NaN where undefined;
        - `recall`: {name: {"value", "low", "high"}};
        - `confusion`: as for `identification_metrics`;
        - `baselines`: what always naming the largest class would give;
        - `by`: {column: {value: {"n", "metrics"}}}. A generator belongs to one class, so that accuracy is its only
          metric.

    Raises:
        UsageError: as `identification_metrics`; a column of another length; resampling options out of range.
    """
    truth, values = _checked(labels, probabilities, names)
    bootstrap = Bootstrap(n_resamples, confidence, seed)
    metrics, recall, confusion = _summary(truth, values, bootstrap, "all")
    by: dict[str, dict[str, Any]] = {column: {} for column in groups}
    for column, value, mask in column_values(groups, len(truth)):
        part, _, _ = _summary(truth[mask], values[mask], bootstrap, f"{column}={value}")
        shown = ("accuracy",) if column in GENERATOR_COLUMNS else METRICS
        by[column][value] = {"n": int(mask.sum()), "metrics": {name: part[name] for name in shown}}
    counts = confusion.sum(axis=1)
    largest = int(counts.argmax())
    return {
        "n": len(truth),
        "class_counts": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "metrics": metrics,
        "recall": dict(zip(names, recall, strict=True)),
        "confusion": confusion.tolist(),
        "baselines": {
            "majority": {
                "class": names[largest],
                "accuracy": float(counts[largest] / len(truth)),
                "balanced_accuracy": float(1 / np.count_nonzero(counts)),
            }
        },
        "by": by,
    }


def _checked(
    labels: ArrayLike, probabilities: ArrayLike, names: Sequence[str]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    truth, values = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if not names or len(set(names)) != len(names):
        raise UsageError(f"expected one or more distinct class names, got {list(names)}")
    if truth.ndim != 1 or values.shape != (len(truth), len(names)):
        raise UsageError(
            f"expected labels (n,) and probabilities (n, {len(names)}), got {truth.shape} and {values.shape}"
        )
    if not truth.size:
        raise UsageError("expected at least one row to measure, got none")
    if not np.isin(truth, np.arange(len(names))).all():
        raise UsageError(f"expected labels 0 to {len(names) - 1}, got {np.unique(truth).tolist()}")
    usable = ((values >= 0) & (values <= 1)).all(axis=1)
    if not usable.all():
        bad = int(np.flatnonzero(~usable)[0])
        raise UsageError(
            f"expected probabilities in [0, 1], got {values[bad].tolist()} in row {bad}: "
            "apply a softmax to logits, and look for the cause of NaN"
        )
    return truth.astype(np.intp), values


class _Tables:
    """Answers and ranks of the rows, looked up by row number for the data themselves and for every resample."""

    def __init__(self, truth: NDArray[np.intp], probabilities: NDArray[np.float64]) -> None:
        self.n_classes = probabilities.shape[1]
        self.answers = probabilities.argmax(axis=1)
        self.strata = tuple(np.flatnonzero(truth == label) for label in range(self.n_classes))
        # One-vs-rest: for each class that occurs, the bin of every row's probability of it, highest first.
        self.bins = {
            label: np.unique(-probabilities[:, label], return_inverse=True)[1]
            for label, rows in enumerate(self.strata)
            if 0 < len(rows) < len(truth)
        }

    def rows_once(self) -> tuple[NDArray[np.intp], ...]:
        """The data themselves, in the form of one resample."""
        return tuple(rows[None] for rows in self.strata)

    def metrics(self, drawn: Sequence[NDArray[np.intp]]) -> dict[str, NDArray[Any]]:
        """Every metric of each resample.

        Args:
            drawn: for each class, (resamples, rows of the class) row numbers.

        Returns:
            {metric: (resamples,)}, "recall" (resamples, k) and "confusion" (resamples, k, k).
        """
        confusion = np.stack([bin_counts(self.answers[rows], self.n_classes) for rows in drawn], axis=1)
        right = np.diagonal(confusion, axis1=1, axis2=2)
        support = confusion.sum(axis=2)
        mentions = support + confusion.sum(axis=1)
        recall = np.where(support > 0, right / np.maximum(support, 1), np.nan)
        return {
            "accuracy": right.sum(axis=1) / support.sum(axis=1),
            "balanced_accuracy": np.nanmean(recall, axis=1),
            "macro_f1": (2 * right / np.maximum(mentions, 1)).sum(axis=1) / np.count_nonzero(mentions, axis=1),
            "auc": self._auc(drawn),
            "recall": recall,
            "confusion": confusion,
        }

    def _auc(self, drawn: Sequence[NDArray[np.intp]]) -> NDArray[np.float64]:
        if not self.bins:
            return np.full(len(drawn[0]), np.nan)
        areas = []
        for label, bins in self.bins.items():
            n_bins = int(bins.max()) + 1
            rest = np.concatenate([rows for other, rows in enumerate(drawn) if other != label], axis=1)
            areas.append(auc_from_counts(bin_counts(bins[rest], n_bins), bin_counts(bins[drawn[label]], n_bins)))
        return np.mean(areas, axis=0)


def _summary(
    truth: NDArray[np.intp], probabilities: NDArray[np.float64], bootstrap: Bootstrap, key: str
) -> tuple[dict[str, dict[str, float]], list[dict[str, float]], NDArray[np.intp]]:
    """Every metric with its interval, the recall of every class with its interval, the confusion matrix."""
    tables = _Tables(truth, probabilities)
    observed = tables.metrics(tables.rows_once())
    resampled = [tables.metrics(drawn) for drawn in bootstrap.resamples(tables.strata, key)]
    pooled = {name: np.concatenate([part[name] for part in resampled]) for name in (*METRICS, "recall")}
    metrics = {name: bootstrap.interval(observed[name][0], pooled[name], len(truth)) for name in METRICS}
    recall = [
        bootstrap.interval(value, replicates, len(rows))
        for value, replicates, rows in zip(observed["recall"][0], pooled["recall"].T, tables.strata, strict=True)
    ]
    return metrics, recall, observed["confusion"][0]
