"""Which generator family made a synthetic image: metrics on class probabilities, with intervals. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import detection
from imaginet_hub.evaluation.bootstrap import Bootstrap, column_values
from imaginet_hub.evaluation.detection import ECE_BINS, GENERATOR_COLUMNS

__all__ = ["METRICS", "identification_metrics", "identification_report", "unknown_auroc"]

#: The metrics of this track, in the order in which they are reported.
METRICS = ("balanced_accuracy", "auc", "accuracy", "macro_f1", "ece", "brier", "nll")


def identification_metrics(labels: ArrayLike, probabilities: ArrayLike, names: Sequence[str]) -> dict[str, Any]:
    """Metrics of a classifier's probabilities. The class with the highest one is the answer (the first, where tied).

    - `accuracy`: share of rows answered right.
    - `balanced_accuracy`: mean recall over the classes that occur among `labels`.
    - `macro_f1`: mean F1 over the classes that occur among `labels` or the answers.
    - `auc`: mean, over the classes that occur, of the area under the one-vs-rest ROC curve; ties count half. NaN
      where only one class occurs.
    - `ece`: expected calibration error of the highest probability, 15 bins, in [0, 1]; see
      `calibration.expected_calibration_error`.
    - `brier`: mean over rows of the squared distance from the probabilities to 1 for the own class and 0 for the
      others, in [0, 2]; see `calibration.brier_score`.
    - `nll`: mean -log of the probability of a row's own class, in nats; see `calibration.negative_log_likelihood`.
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
    truth, values = checked(labels, probabilities, names)
    metrics = Table(truth, values).observed
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
    truth, values = checked(labels, probabilities, names)
    bootstrap = Bootstrap(n_resamples, confidence, seed)
    everything = Table(truth, values, "all")
    parts = {}
    for column, value, mask in column_values(groups, len(truth)):
        shown = ("accuracy",) if column in GENERATOR_COLUMNS else METRICS
        parts[column, value] = Table(truth[mask], values[mask], f"{column}={value}", shown)
    resampled, *replicates = _replicated([everything, *parts.values()], bootstrap, len(truth))
    by: dict[str, dict[str, Any]] = {column: {} for column in groups}
    for ((column, value), table), part in zip(parts.items(), replicates, strict=True):
        by[column][value] = {"n": len(table.order), "metrics": _intervals(table, part, bootstrap)}
    recall = {
        name: bootstrap.interval(value, drawn, size)
        for name, value, drawn, size in zip(
            names, everything.observed["recall"][0], resampled["recall"].T, everything.sizes, strict=True
        )
    }
    counts = everything.sizes
    largest = int(counts.argmax())
    return {
        "n": len(truth),
        "class_counts": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "metrics": _intervals(everything, resampled, bootstrap),
        "recall": recall,
        "confusion": everything.observed["confusion"][0].tolist(),
        "baselines": {
            "majority": {
                "class": names[largest],
                "accuracy": float(counts[largest] / len(truth)),
                "balanced_accuracy": float(1 / np.count_nonzero(counts)),
            }
        },
        "by": by,
    }


def unknown_auroc(known: ArrayLike, scores: ArrayLike, *, bootstrap: Bootstrap | None = None) -> dict[str, float]:
    """How well a score tells images of unknown generators from those of known ones: the area under the ROC curve.

    The positive class is "unknown"; ties count half; rows are drawn within both classes.

    Args:
        known: (n,) whether the row's class is one of those that the classifier knows.
        scores: (n,) of any scale, higher for rows that look less like the known classes, such as a distance or 1 - the
            highest probability.
        bootstrap: how the interval is made; the default if None.

    Returns:
        {"value", "low", "high"}; NaN where all rows are known, or none.

    Raises:
        UsageError: no rows, lengths that differ, NaN among the scores, `known` of other values than true and false.
    """
    familiar, values = np.asarray(known), np.asarray(scores, dtype=np.float64)
    bootstrap = bootstrap or Bootstrap()
    if familiar.ndim != 1 or familiar.shape != values.shape or not familiar.size:
        raise UsageError(f"expected known and scores of one shape (n,), n > 0, got {familiar.shape}, {values.shape}")
    if not np.isin(familiar, (False, True)).all() or np.isnan(values).any():
        raise UsageError(
            "expected known as true and false and scores without NaN, got "
            f"{np.unique(familiar)[:5].tolist()} and {int(np.isnan(values).sum())} scores that are NaN"
        )
    ranks = np.unique(values, return_inverse=True)[1]
    pair = detection.pair_of(1 - familiar.astype(np.intp), ranks / max(1, ranks.max()), 0.5, np.arange(len(ranks)))
    [replicates] = detection.replicated([pair], bootstrap, len(ranks), detection.own_rows(bootstrap))
    return bootstrap.interval(float(pair.observed["auc"][0]), replicates["auc"], pair.smallest)


def checked(
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


class Table:
    """The rows of a group, class by class.

    Args:
        truth: (n,) class of each row.
        probabilities: (n, k).
        key: names what is drawn of the rows.
        names: the metrics that are wanted; the area under the curve takes most of the time.

    Attributes:
        key, names: as given.
        sizes: rows of each class.
        order: (n,) the rows in the order of their classes; counts of rows come in this order.
        observed: what `metrics` gives for the data themselves.
    """

    def __init__(
        self,
        truth: NDArray[np.intp],
        probabilities: NDArray[np.float64],
        key: str = "",
        names: Sequence[str] = METRICS,
    ) -> None:
        self.key, self.names = key, names
        self.n_classes = probabilities.shape[1]
        self.order = np.argsort(truth, kind="stable")
        self.sizes = np.bincount(truth, minlength=self.n_classes)
        self._ends = np.cumsum(self.sizes)
        truth, probabilities = truth[self.order], probabilities[self.order]
        rows = np.arange(len(truth))

        # What each row adds: to its class's row of the confusion matrix, and to brier, nll and each bin of ece.
        answers, highest = probabilities.argmax(axis=1), probabilities.max(axis=1)
        bins = np.searchsorted(np.arange(1, ECE_BINS) / ECE_BINS, highest)
        own = np.clip(probabilities[rows, truth], np.finfo(np.float64).eps, 1)
        self._answered = np.eye(self.n_classes)[answers]
        self._losses = np.zeros((len(truth), 2 + ECE_BINS))
        self._losses[:, 0] = ((probabilities - np.eye(self.n_classes)[truth]) ** 2).sum(axis=1)
        self._losses[:, 1] = -np.log(own)
        self._losses[rows, 2 + bins] = (answers == truth) - highest

        # One-vs-rest: for each class that occurs among others, the other rows, lowest probability of it first, and
        # for each of its own rows how many of these are below it, and below or equal to it.
        self._against = []
        for label in range(self.n_classes) if "auc" in names else ():
            if 0 < self.sizes[label] < len(truth):
                mine = self._block(label)
                others = np.flatnonzero(truth != label)
                others = others[np.argsort(probabilities[others, label], kind="stable")]
                at = probabilities[mine, label]
                below, reached = (
                    np.searchsorted(probabilities[others, label], at, side) for side in ("left", "right")
                )
                self._against.append((label, others, below, reached))
        self.observed = self.metrics(np.ones((1, len(truth)), np.intp))

    def draw(self, bootstrap: Bootstrap, chunk: range) -> NDArray[np.intp]:
        """(resamples, n) how often each row is drawn, within its class."""
        return np.concatenate(
            [bootstrap.counts(chunk, size, f"{self.key} class {label}") for label, size in enumerate(self.sizes)],
            axis=1,
        )

    def metrics(self, counts: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Every metric of each resample, from how often each row counts in it: (resamples, n).

        Returns:
            {metric: (resamples,)}, "recall" (resamples, k) and "confusion" (resamples, k, k).
        """
        exact = counts.astype(np.float64)
        blocks = [exact[:, self._block(label)] @ self._answered[self._block(label)] for label in range(self.n_classes)]
        confusion = np.stack(blocks, axis=1).astype(np.intp)
        right = np.diagonal(confusion, axis1=1, axis2=2)
        support = confusion.sum(axis=2)
        n = support.sum(axis=1)
        mentions = support + confusion.sum(axis=1)
        recall = np.where(support > 0, right / np.maximum(support, 1), np.nan)
        losses = exact @ self._losses
        return {
            "accuracy": right.sum(axis=1) / n,
            "balanced_accuracy": np.nanmean(recall, axis=1),
            "macro_f1": (2 * right / np.maximum(mentions, 1)).sum(axis=1) / np.count_nonzero(mentions, axis=1),
            "auc": self._auc(counts, support, n),
            "brier": losses[:, 0] / n,
            "nll": losses[:, 1] / n,
            "ece": np.abs(losses[:, 2:]).sum(axis=1) / n,
            "recall": recall,
            "confusion": confusion,
        }

    def _block(self, label: int) -> slice:
        return slice(self._ends[label] - self.sizes[label], self._ends[label])

    def _auc(self, counts: NDArray[np.intp], support: NDArray[np.intp], n: NDArray[np.intp]) -> NDArray[np.float64]:
        if not self._against:
            return np.full(len(counts), np.nan)
        areas, few = [], counts.astype(np.int32)
        for label, others, below, reached in self._against:
            won = np.zeros((len(counts), len(others) + 1), np.int32)
            np.cumsum(np.take(few, others, axis=1), axis=1, out=won[:, 1:])
            wins = (np.take(won, below, axis=1) + np.take(won, reached, axis=1)).astype(np.float64)
            pairs = support[:, label] * (n - support[:, label])
            areas.append(np.vecdot(counts[:, self._block(label)].astype(np.float64), wins) / (2 * pairs))
        return np.mean(areas, axis=0)


def _replicated(tables: Sequence[Table], bootstrap: Bootstrap, rows: int) -> list[dict[str, NDArray[np.float64]]]:
    """The metrics and recalls of each table on each resample: for each table {metric: (n_resamples, ...)}.

    `rows` of the data say how many resamples are computed at once. Each table draws its own rows.
    """
    kept = (*METRICS, "recall")
    parts: list[list[dict[str, NDArray[Any]]]] = [[] for _ in tables]
    for chunk in bootstrap.chunks(rows):
        for table, part in zip(tables, parts, strict=True):
            metrics = table.metrics(table.draw(bootstrap, chunk))
            part.append({name: metrics[name] for name in kept})
    return [{name: np.concatenate([one[name] for one in part]) for name in kept} for part in parts]


def _intervals(
    table: Table, replicates: Mapping[str, NDArray[np.float64]], bootstrap: Bootstrap
) -> dict[str, dict[str, float]]:
    """The table's metrics with intervals."""
    n = len(table.order)
    smallest = max(int(table.sizes[table.sizes > 0].min()), min(2, n))
    return {
        name: bootstrap.interval(
            float(table.observed[name][0]),
            replicates[name],
            n if name in ("accuracy", "ece") else smallest,
            proportion=name not in ("brier", "nll"),
        )
        for name in table.names
    }
