"""Real against synthetic: metrics on scores, with intervals, overall and by group. Numpy only.

The positive class is "synthetic". A row is called synthetic when its score is at or above the threshold. Rows of each
class lie in the order of their scores, and everything is computed from how often each of them counts: once for the
data themselves, as often as it was drawn for a bootstrap resample. Rows of tied scores move together, as in
scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.bootstrap import Bootstrap, Strata, column_values
from imaginet_hub.labels import Origin

__all__ = ["GENERATOR_COLUMNS", "METRICS", "detection_metrics", "detection_report", "weighted_groups"]

#: Columns that say what made an image. Real rows have no value of their own there.
GENERATOR_COLUMNS = ("generator_family", "generator")

#: The metrics of this track, in the order in which they are reported.
METRICS = (
    "balanced_accuracy",
    "auc",
    "accuracy",
    "average_precision",
    "eer",
    "tpr_at_fpr_1",
    "tpr_at_fpr_0_1",
    "ece",
    "brier",
    "nll",
)

#: Of the expected calibration error, as in `calibration.expected_calibration_error`.
ECE_BINS = 15

#: How many times fewer than the real rows may be called synthetic.
_RATES = {"tpr_at_fpr_1": 100, "tpr_at_fpr_0_1": 1000}


def detection_metrics(labels: ArrayLike, scores: ArrayLike, *, threshold: float = 0.5) -> dict[str, float]:
    """Metrics of a detector's scores.

    - `balanced_accuracy`: mean of the recalls of the two classes at `threshold`.
    - `auc`: area under the ROC curve; ties count half (the Mann-Whitney statistic, Hanley & McNeil 1982).
    - `accuracy`: share of rows called right at `threshold`.
    - `average_precision`: sum over distinct scores of the gain in recall times the precision there (not interpolated).
    - `eer`: equal error rate, where the ROC curve, drawn with straight lines, meets FPR = 1 - TPR.
    - `tpr_at_fpr_1`, `tpr_at_fpr_0_1`: highest recall of synthetic rows among the thresholds that call at most 1 %, or
      .1 %, of real rows synthetic. With fewer than 100, or 1000, real rows that means none.
    - `ece`: expected calibration error of the probabilities (1 - score, score), 15 bins, in [0, 1]; see
      `calibration.expected_calibration_error`.
    - `brier`: mean (score - label)^2, in [0, 1]: half of `calibration.brier_score`, which sums over both classes.
    - `nll`: mean -log of the probability of a row's own class, in nats; see `calibration.negative_log_likelihood`.
    - `n_real`, `n_synthetic`: rows of each class.

    Balanced accuracy and accuracy alone depend on `threshold`. Where only one class is there, accuracy, ece, brier and
    nll are those of its rows, and every other metric is NaN.

    Args:
        labels: (n,) 0 = real, 1 = synthetic.
        scores: (n,) probability of synthetic, in [0, 1].
        threshold: lowest score that is called synthetic.

    Raises:
        UsageError: no rows, lengths that differ, other labels, scores or a threshold that are NaN or outside
            [0, 1].
    """
    truth, values = checked(labels, scores, threshold)
    pair = pair_of(truth, values, threshold, np.arange(len(truth)))
    return {name: float(pair.observed[name][0]) for name in METRICS} | {
        "n_real": float(len(pair.real.rows)),
        "n_synthetic": float(len(pair.synthetic.rows)),
    }


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
    value (a content type, a source) is measured on the rows that have it. Rows are drawn within each class of each
    such group; where groups share all real rows, they share what is drawn of them.

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
    truth, values = checked(labels, scores, threshold)
    bootstrap = Bootstrap(n_resamples, confidence, seed)
    everything = pair_of(truth, values, threshold, np.arange(len(truth)), "all")
    parts = {}
    for column, value, mask in column_values(groups, len(truth)):
        if column not in GENERATOR_COLUMNS:
            parts[column, value] = pair_of(truth, values, threshold, np.flatnonzero(mask), f"{column}={value}")
        elif truth[mask].any():
            made = _side(truth, values, threshold, np.flatnonzero(mask), 1, f"{column}={value}")
            parts[column, value] = Pair(everything.real, made)
    pairs = [everything, *parts.values()]
    resampled, *replicates = replicated(pairs, bootstrap, len(truth), own_rows(bootstrap))
    by: dict[str, dict[str, Any]] = {column: {} for column in groups}
    for ((column, value), pair), part in zip(parts.items(), replicates, strict=True):
        by[column][value] = _summary(pair, part, bootstrap)
    summary = _summary(everything, resampled, bootstrap)
    called = (values >= threshold).astype(np.intp)
    larger = max(Origin, key=lambda name: summary[f"n_{name}"])
    return {
        **summary,
        "recall": {
            str(side.origin): bootstrap.interval(
                float(everything.observed[f"recall_{side.origin}"][0]),
                resampled[f"recall_{side.origin}"],
                len(side.rows),
            )
            for side in (everything.real, everything.synthetic)
        },
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


def weighted_groups(
    labels: ArrayLike,
    scores: ArrayLike,
    weights: Mapping[str, ArrayLike],
    strata: ArrayLike,
    *,
    threshold: float = 0.5,
    bootstrap: Bootstrap | None = None,
) -> dict[str, Any]:
    """Metrics of groups that may share rows and count a row more than once, and their unweighted mean over groups.

    For lists whose negatives were drawn with replacement, or serve several groups. Values are those of lists in which
    each row stands as often as it counts. What is resampled are the rows, within strata and once for all groups: a row
    that counts three times is still one image, and the interval of the mean knows what the groups have in common.

    Args:
        labels, scores, threshold: as for `detection_metrics`.
        weights: for each group, (n,) whole numbers: how often each row counts; 0 for rows that are not in it.
        strata: (n,) the stratum of each row, such as its label, or label and content type.
        bootstrap: how intervals are made; the default if None.

    Returns:
        `groups`: {name: {"n_real", "n_real_unique", "n_synthetic", "metrics": {metric: {"value", "low", "high"}}}},
        where `n_real_unique` counts rows once; and `mean`: {metric: {"value", "low", "high"}}, NaN where the metric
        is undefined for one of the groups.

    Raises:
        UsageError: as `detection_metrics`; no groups; weights or strata of another length, weights that are not whole
            numbers of 0 or more, a group without rows.
    """
    truth, values = checked(labels, scores, threshold)
    bootstrap = bootstrap or Bootstrap()
    if not weights:
        raise UsageError("expected at least one group of weights, got none")
    if np.shape(strata) != truth.shape:
        raise UsageError(f"expected one stratum for each of {len(truth)} rows, got shape {np.shape(strata)}")
    pairs = {}
    for name, given in weights.items():
        times = np.asarray(given)
        if times.shape != truth.shape or times.dtype.kind not in "iub" or (times < 0).any() or not times.any():
            raise UsageError(
                f"group {name!r}: expected {len(truth)} whole numbers, 0 or more and not all 0, that say how often "
                f"each row counts, got {times.dtype} of shape {times.shape}"
            )
        pairs[name] = pair_of(truth, values, threshold, np.flatnonzero(times), name, times.astype(np.intp))
    replicates = replicated(pairs.values(), bootstrap, len(truth), shared_rows(bootstrap, Strata(strata)))
    smallest = min(pair.smallest for pair in pairs.values())
    return {
        "groups": {
            name: {
                "n_real": int(pair.real.weights.sum()),
                "n_real_unique": len(pair.real.rows),
                "n_synthetic": int(pair.synthetic.weights.sum()),
                "metrics": _intervals(pair, resampled, bootstrap),
            }
            for (name, pair), resampled in zip(pairs.items(), replicates, strict=True)
        },
        "mean": {
            metric: bootstrap.interval(
                float(np.mean([pair.observed[metric][0] for pair in pairs.values()])),
                np.mean([resampled[metric] for resampled in replicates], axis=0),
                smallest,
                proportion=metric != "nll",
            )
            for metric in METRICS
        },
    }


def checked(labels: ArrayLike, scores: ArrayLike, threshold: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
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


@dataclass(frozen=True)
class Side:
    """The rows of one class in a group, highest score first.

    Attributes:
        key: names what is drawn of them.
        origin: the class.
        rows: (m,) their numbers.
        weights: (m,) how often each counts in the data themselves.
        scores: (m,).
        n_called: how many are called synthetic: the first ones.
        losses: (m, 2 + bins) what each adds to the sums of brier and nll, and to each bin of ece.
    """

    key: str
    origin: Origin
    rows: NDArray[np.intp]
    weights: NDArray[np.intp]
    scores: NDArray[np.float64]
    n_called: int
    losses: NDArray[np.float64]

    def tally(self, counts: NDArray[np.intp]) -> _Tally:
        """From how often each row counts in each resample, (resamples, m)."""
        above = np.zeros((len(counts), counts.shape[1] + 1), np.int32)
        np.cumsum(counts, axis=1, dtype=np.int32, out=above[:, 1:])
        return _Tally(above, counts.astype(np.float64) @ self.losses)


@dataclass(frozen=True)
class _Tally:
    """Resamples of a side: rows among the first 0, 1, ..., m, (resamples, m + 1), and sums of its losses."""

    above: NDArray[np.int32]
    losses: NDArray[np.float64]


class Pair:
    """The two sides of a group.

    Attributes:
        real, synthetic: the sides.
        observed: every metric of the data themselves, {metric: (1,)}.
        smallest: rows of the smaller class, of those that have rows.
    """

    def __init__(self, real: Side, synthetic: Side) -> None:
        self.real, self.synthetic = real, synthetic
        # At each distinct synthetic score: synthetic rows at or above it, real rows above it and at or above it.
        distinct = np.append(np.flatnonzero(np.diff(synthetic.scores)), len(synthetic.scores) - 1)
        self._reached = distinct + 1
        at = -synthetic.scores[distinct] if len(synthetic.scores) else synthetic.scores
        self._before, self._after = (np.searchsorted(-real.scores, at, side) for side in ("left", "right"))
        self.smallest = min(len(side.rows) for side in (real, synthetic) if len(side.rows))
        self.observed = self.metrics(real.tally(real.weights[None]), synthetic.tally(synthetic.weights[None]))

    def metrics(self, real: _Tally, synthetic: _Tally) -> dict[str, NDArray[np.float64]]:
        """Every metric of each resample, {metric: (resamples,)}, and the recalls of both classes."""
        n_real, n_synthetic = (tally.above[:, -1].astype(np.float64) for tally in (real, synthetic))
        right_real = n_real - real.above[:, self.real.n_called]
        right_synthetic = synthetic.above[:, self.synthetic.n_called].astype(np.float64)
        losses = real.losses + synthetic.losses
        n = n_real + n_synthetic
        with np.errstate(divide="ignore", invalid="ignore"):  # 0 / 0 = NaN is what an empty class gives
            recall_real, recall_synthetic = right_real / n_real, right_synthetic / n_synthetic
            return {
                "balanced_accuracy": (recall_real + recall_synthetic) / 2,
                "accuracy": (right_real + right_synthetic) / n,
                "brier": losses[:, 0] / n,
                "nll": losses[:, 1] / n,
                "ece": np.abs(losses[:, 2:]).sum(axis=1) / n,
                "recall_real": recall_real,
                "recall_synthetic": recall_synthetic,
                **self._ranking(real.above, synthetic.above, n_real, n_synthetic),
            }

    def _ranking(
        self,
        real: NDArray[np.int32],
        synthetic: NDArray[np.int32],
        n_real: NDArray[np.float64],
        n_synthetic: NDArray[np.float64],
    ) -> dict[str, NDArray[np.float64]]:
        """What the order of rows alone decides. The ROC curve is straight between distinct synthetic scores."""
        names = ("auc", "average_precision", "eer", *_RATES)
        if min(real.shape[1], synthetic.shape[1]) == 1:
            return {name: np.full(len(real), np.nan) for name in names}
        tp = np.take(synthetic, self._reached, axis=1)  # true and false positives at each distinct synthetic score
        fp_before, fp = np.take(real, self._before, axis=1), np.take(real, self._after, axis=1)
        gained = np.diff(tp, axis=1, prepend=0).astype(np.float64)
        precision = tp / np.maximum(tp + fp, 1)

        # `corner` is the first synthetic score that takes the curve to FPR >= 1 - TPR. The curve comes to it over the
        # real rows above that score, at a constant TPR, and passes it from `start` to `end` in a straight line.
        table = np.arange(len(tp))
        short = tp * n_real[:, None] + fp * n_synthetic[:, None] < (n_real * n_synthetic)[:, None]
        corner = np.minimum(np.count_nonzero(short, axis=1), tp.shape[1] - 1)
        fpr_start, fpr_end = fp_before[table, corner] / n_real, fp[table, corner] / n_real
        tpr_end = tp[table, corner] / n_synthetic
        tpr_start = tpr_end - gained[table, corner] / n_synthetic
        gap_start, gap_end = 1 - tpr_start - fpr_start, 1 - tpr_end - fpr_end
        share = np.where(gap_start > gap_end, gap_start / (gap_start - gap_end), 0)
        ranking = {
            "auc": 1 - np.vecdot(gained, (fp_before + fp).astype(np.float64)) / (2 * n_real * n_synthetic),
            "average_precision": np.vecdot(gained, precision) / n_synthetic,
            "eer": np.where(gap_start <= 0, 1 - tpr_start, fpr_start + share * (fpr_end - fpr_start)),
        }
        for name, part in _RATES.items():
            reached = np.count_nonzero(fp <= (n_real // part)[:, None], axis=1)
            ranking[name] = np.where(reached > 0, tp[table, reached - 1], 0) / n_synthetic
        defined = (n_real > 0) & (n_synthetic > 0)
        return {name: np.where(defined, ranking[name], np.nan) for name in names}


#: Given a chunk of resamples, a function that says how often each row of a side counts: (resamples, m).
Draw: TypeAlias = Callable[[range], Callable[["Side"], NDArray[np.intp]]]


def own_rows(bootstrap: Bootstrap) -> Draw:
    """Each side draws its rows by itself; sides of one key draw the same."""
    return lambda chunk: lambda side: bootstrap.counts(chunk, len(side.rows), side.key)


def shared_rows(bootstrap: Bootstrap, strata: Strata) -> Draw:
    """Rows are drawn once for all sides."""

    def draw(chunk: range) -> Callable[[Side], NDArray[np.intp]]:
        counts = strata.counts(bootstrap, chunk)
        return lambda side: np.take(counts, side.rows, axis=1) * side.weights

    return draw


def replicated(
    pairs: Iterable[Pair],
    bootstrap: Bootstrap,
    rows: int,
    draw: Draw,
) -> list[dict[str, NDArray[np.float64]]]:
    """Every metric of each pair on each resample.

    Args:
        pairs: any number of them; real sides of one key are drawn once.
        bootstrap: says how many resamples.
        rows: of the data, which says how many resamples are computed at once.
        draw: `own_rows` or `shared_rows`.

    Returns:
        For each pair {metric: (n_resamples,)}.
    """
    pairs = list(pairs)
    parts: list[list[dict[str, NDArray[np.float64]]]] = [[] for _ in pairs]
    for chunk in bootstrap.chunks(rows):
        counts = draw(chunk)
        real: dict[str, _Tally] = {}
        for pair, part in zip(pairs, parts, strict=True):
            if pair.real.key not in real:
                real[pair.real.key] = pair.real.tally(counts(pair.real))
            part.append(pair.metrics(real[pair.real.key], pair.synthetic.tally(counts(pair.synthetic))))
    return [{name: np.concatenate([one[name] for one in part]) for name in part[0]} for part in parts]


def _side(
    truth: NDArray[np.intp],
    scores: NDArray[np.float64],
    threshold: float,
    rows: NDArray[np.intp],
    label: int,
    key: str,
    weights: NDArray[np.intp] | None = None,
) -> Side:
    """The rows of one class among `rows`; `weights` (n,) are 1 where there are none."""
    rows = rows[truth[rows] == label]
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    values = scores[rows]
    own = values if label else 1 - values
    highest = np.maximum(values, 1 - values)
    bins = np.searchsorted(np.arange(1, ECE_BINS) / ECE_BINS, highest)
    losses = np.zeros((len(rows), 2 + ECE_BINS))
    losses[:, 0] = (values - label) ** 2
    losses[:, 1] = -np.log(np.clip(own, np.finfo(np.float64).eps, 1))
    losses[np.arange(len(rows)), 2 + bins] = ((values > 1 - values) == label) - highest
    times = np.ones(len(rows), np.intp) if weights is None else weights[rows]
    origin = tuple(Origin)[label]
    return Side(f"{key} {origin}", origin, rows, times, values, int(np.count_nonzero(values >= threshold)), losses)


def pair_of(
    truth: NDArray[np.intp],
    scores: NDArray[np.float64],
    threshold: float,
    rows: NDArray[np.intp],
    key: str = "",
    weights: NDArray[np.intp] | None = None,
) -> Pair:
    """Both classes of a group of rows."""
    real, synthetic = (_side(truth, scores, threshold, rows, label, key, weights) for label in (0, 1))
    return Pair(real, synthetic)


def _summary(pair: Pair, replicates: Mapping[str, NDArray[np.float64]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Counts and metrics of a group."""
    n_real, n_synthetic = len(pair.real.rows), len(pair.synthetic.rows)
    metrics = _intervals(pair, replicates, bootstrap)
    return {"n": n_real + n_synthetic, "n_real": n_real, "n_synthetic": n_synthetic, "metrics": metrics}


def _intervals(
    pair: Pair, replicates: Mapping[str, NDArray[np.float64]], bootstrap: Bootstrap
) -> dict[str, dict[str, float]]:
    """Every metric with its interval."""
    intervals = {
        name: bootstrap.interval(
            float(pair.observed[name][0]), replicates[name], pair.smallest, proportion=name != "nll"
        )
        for name in METRICS
    }
    sides = [side for side in (pair.real, pair.synthetic) if len(side.rows)]
    n = sum(side.weights.sum() for side in sides)
    for name, shares in (("balanced_accuracy", [1 / 2, 1 / 2]), ("accuracy", [s.weights.sum() / n for s in sides])):
        if len(sides) == 2:
            intervals[name] = _with_unanimous(intervals[name], pair, sides, shares, bootstrap)
    return intervals


def _with_unanimous(
    interval: dict[str, float], pair: Pair, sides: Sequence[Side], shares: Sequence[float], bootstrap: Bootstrap
) -> dict[str, float]:
    """The interval of a weighted mean of both recalls, where all rows of one class are answered alike.

    No resample moves that recall, as if its few rows proved that all will be answered so. Its own uncertainty,
    Wilson's bound, is added to that of the other one as distances of independent parts add up, by their squares
    (MOVER: Zou & Donner 2008, "Construction of confidence limits about effect measures", Statistics in Medicine 27).
    """
    value, below, above = interval["value"], 0.0, 0.0
    for side, share in zip(sides, shares, strict=True):
        recall = float(pair.observed[f"recall_{side.origin}"][0])
        distance = share * bootstrap.unseen(len(side.rows))
        below += distance**2 if recall == 1 else 0
        above += distance**2 if recall == 0 else 0
    if value in (0, 1) or np.isnan(interval["low"]):
        return interval
    return {
        "value": value,
        "low": max(0.0, value - float(np.hypot(value - interval["low"], np.sqrt(below)))),
        "high": min(1.0, value + float(np.hypot(interval["high"] - value, np.sqrt(above)))),
    }
