"""From scores to probabilities and decisions: calibration, thresholds and how good probabilities are. Numpy only.

Fits weigh the classes alike, whatever their sizes: the probabilities hold for as many rows of each class, so that .5
is the threshold that serves balanced accuracy. They pull the labels slightly inwards (Platt 1999, section 2.2), so
that rows which are told apart without an error still give finite figures. Fit on rows that the model has not been
trained on.

A row is called synthetic, or known, when its score is at or above the threshold. Thresholds lie between scores where
they can, in float64: compare in float64, since numpy compares a float32 array with a Python float in float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imaginet_hub.errors import UsageError

__all__ = [
    "accepting_threshold",
    "best_threshold",
    "brier_score",
    "expected_calibration_error",
    "fit_discriminants",
    "fit_platt",
    "fit_temperature",
    "negative_log_likelihood",
    "threshold_at_rate",
]

#: Numbers beyond this are refused, and differences below its inverse are none: squares and ratios stay finite.
LARGEST = 1e30

#: Of a covariance of features towards a multiple of the identity; see `fit_discriminants` and LOG.md.
SHRINKAGE = 0.1


def fit_platt(margins: ArrayLike, labels: ArrayLike) -> tuple[float, float] | None:
    """Platt scaling: the slope > 0 and the intercept of p(synthetic) = sigmoid(slope * margin + intercept).

    They minimise the mean over both classes of each class's mean cross-entropy (Platt 1999, "Probabilistic outputs for
    support vector machines", section 2.2), by Newton's method with backtracking (Lin, Lin & Weng 2007, "A note on
    Platt's probabilistic outputs", section 3). The targets are Platt's, (N + 1) / (N + 2) for synthetic and
    1 / (N + 2) for real rows, but with one N for both, the harmonic mean of the class sizes: with a count for each
    class, the target of the smaller one moves the threshold towards its rows.

    slope * margin + intercept > 0 where the probability is above .5, so the scaled logits (0, slope * margin +
    intercept) decide as the probability does, and scaled margins k * margin have the slope / k.

    Args:
        margins: (n,) the logit of synthetic less the logit of real, of any scale.
        labels: (n,) 0 = real, 1 = synthetic; both must occur.

    Returns:
        (slope, intercept), or None where the best slope is not positive. That is so exactly where the mean margin of
        the synthetic rows is not above the mean margin of the real ones, hence also where all margins are equal: such
        margins are not to be made into probabilities.

    Raises:
        UsageError: shapes that do not fit, numbers that are not finite or beyond 1e30, other labels, a class without
            rows.

    Example:
        >>> slope, intercept = fit_platt([1, 3], [0, 1])  # one row of each: a probability of 2/3, odds of 2
        >>> round(slope, 4), round(intercept, 4)
        (0.6931, -1.3863)
    """
    values = _numbers(margins, "margins", ("n",))
    truth = _labels(labels, len(values), 2)
    order = np.lexsort((values, truth))  # sums, and so the result, do not depend on the order of rows
    values, truth = values[order], truth[order]
    weights, rows = _alike(truth)
    gap = values[truth == 1].mean() - values[truth == 0].mean()
    if gap <= max(1e-12 * np.abs(values).max(), 1 / LARGEST):  # within rounding of the means
        return None
    # Newton's method starts in coordinates where the Hessian is a quarter of the identity.
    centre = weights @ values
    spread = math.sqrt(weights @ (values - centre) ** 2)
    design = np.stack([(values - centre) / spread, np.ones_like(values)])
    targets = np.where(truth == 1, rows + 1, 1) / (rows + 2)
    slope, intercept = _newton(design, targets, weights) / (spread, 1)
    return float(slope), float(intercept - slope * centre)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float | None:
    """Temperature scaling: the T > 0 for which softmax(logits / T) has the least cross-entropy.

    Guo et al. 2017, arXiv 1706.04599, section 4.2. Each class that occurs weighs the same. The targets are smoothed as
    in `fit_platt`: (N + 1) / (N + C) for a row's own class and 1 / (N + C) for each other one, with N the harmonic
    mean of the class sizes, so that T does not go to 0 where every row is answered right. The objective is convex in
    1 / T. T does not change which class is the highest; k * logits has the temperature k * T.

    Args:
        logits: (n, C), C >= 2, of any scale.
        labels: (n,) integers in 0..C-1; two classes or more must occur.

    Returns:
        T, at most 1000 times the mean distance from a row's highest to its mean logit; None where the best is beyond,
        or where no temperature does better than equal probabilities: such logits do not point to the labels.

    Raises:
        UsageError: shapes that do not fit, numbers that are not finite or beyond 1e30, other labels, fewer than two
            classes.

    Example:
        >>> round(fit_temperature([[2, 0], [0, 2]], [0, 1]), 4)  # one row of each: 2 / log 2
        2.8854
    """
    values = _numbers(logits, "logits", ("n", "C"))
    n_classes = values.shape[1]
    truth = _labels(labels, len(values), n_classes)
    weights, rows = _alike(truth)
    values = values - values.max(axis=1, keepdims=True)
    reach = -weights @ values.mean(axis=1)
    if reach <= 1 / LARGEST:
        return None
    values /= reach
    own = np.take_along_axis(values, truth[:, None], axis=1)[:, 0]
    aimed = weights @ (rows * own + values.sum(axis=1)) / (rows + n_classes)

    def derivatives(inverse: float) -> tuple[float, float]:
        """Of the cross-entropy by 1 / T: the first and the second."""
        likely = _softmax(inverse * values)
        mean = (likely * values).sum(axis=1)
        return weights @ mean - aimed, weights @ (likely * (values - mean[:, None]) ** 2).sum(axis=1)

    # As log-sum-exp is at least its largest term, the objective at `high` is no lower than log C, its value at 0.
    low, high = 1e-3, math.log(n_classes) / -aimed
    if derivatives(low)[0] >= 0:
        return None
    inverse = 1.0
    for _ in range(200):
        first, second = derivatives(inverse)
        low, high = (low, inverse) if first > 0 else (inverse, high)
        following = inverse - first / second if second > 0 else math.inf
        if not low <= following <= high:
            following = math.sqrt(low * high)
        done = abs(following - inverse) <= 1e-9 * inverse
        inverse = following
        if done:
            break
    return float(reach / inverse)


def best_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """The threshold of the highest balanced accuracy, halfway between two neighbouring scores. O(n log n).

    Of several such thresholds it is the one in the widest gap between scores, and the lowest of these. Where none
    between scores reaches .5, or all scores are equal, it is the lowest score, by which all rows are called synthetic.
    Fitted and measured on the same rows, the balanced accuracy is too high.

    Args:
        scores: (n,) higher for synthetic.
        labels: (n,) 0 = real, 1 = synthetic; both must occur.

    Raises:
        UsageError: shapes that do not fit, numbers that are not finite or beyond 1e30, other labels, a class without
            rows.

    Example:
        >>> best_threshold([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1])
        0.5
    """
    values = _numbers(scores, "scores", ("n",))
    truth = _labels(labels, len(values), 2)
    distinct, bins = np.unique(values, return_inverse=True)
    real, synthetic = (np.bincount(bins[truth == label], minlength=len(distinct)) for label in (0, 1))
    # Of the cut below each distinct score. Both recalls over one denominator, as integers: equal ones compare equal.
    right = (np.cumsum(real) - real) * synthetic.sum() + np.cumsum(synthetic[::-1])[::-1] * real.sum()
    gaps = np.diff(distinct, prepend=distinct[0])
    best = np.lexsort((distinct, -gaps, -right))[0]
    return _halfway(distinct[best - 1], distinct[best]) if best else float(distinct[0])


def threshold_at_rate(scores: ArrayLike, rate: float) -> float:
    """The lowest threshold that at most `rate` of the scores reach: for a false positive rate, of real rows.

    It lies halfway between the highest score that must not reach it and the next one. Equal scores stay together, so
    that ties can leave the share below `rate`. Where none may reach it, as with a rate below 1 / n, it is one step of
    float32 above the highest score (for probabilities of 1: above 1); at a rate of 1 it is the lowest score.

    A further row from where these come from reaches it with a probability of at most (k + 1) / (n + 1), where k is the
    largest number of rows with k / n <= rate.

    Args:
        scores: (n,).
        rate: in [0, 1].

    Raises:
        UsageError: another shape, no rows, numbers that are not finite or beyond 1e30, a rate outside [0, 1].

    Example:
        >>> threshold_at_rate([0.1, 0.2, 0.3, 0.5], 0.25)
        0.4
    """
    values = np.sort(_numbers(scores, "scores", ("n",)))
    n = len(values)
    reaching = int(np.searchsorted(np.arange(n + 1) / n, _share(rate, "rate"), side="right")) - 1
    if reaching == n:
        return float(values[0])
    below = values[n - reaching - 1]
    above = np.searchsorted(values, below, side="right")
    if above == n:
        return float(np.nextafter(np.float32(below), np.float32(np.inf)))
    return _halfway(below, values[above])


def accepting_threshold(scores: ArrayLike, share: float) -> float:
    """The highest threshold that at least `share` of the scores reach: to accept what is known and reject the rest.

    It is one of the scores. Equal scores stay together, so that ties can put the share above `share`. A further row
    from where these come from reaches it with a probability of at least k / (n + 1), where k is the least number of
    rows with k / n >= share.

    Args:
        scores: (n,) of known rows, higher for known, such as the negated distance of
            `fit_discriminants`.
        share: in (0, 1].

    Raises:
        UsageError: another shape, no rows, numbers that are not finite or beyond 1e30, a share outside (0, 1].

    Example:
        >>> accepting_threshold([0.1, 0.2, 0.3, 0.5], 0.75)
        0.2
    """
    values = np.sort(_numbers(scores, "scores", ("n",)))
    n = len(values)
    if _share(share, "share") == 0:
        raise UsageError("expected a share above 0, got 0: nothing is to be accepted, so no threshold is the highest")
    return float(values[n - np.searchsorted(np.arange(n + 1) / n, share)])


def fit_discriminants(
    features: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Linear discriminants of L2-normalised features, and the classes' means in their space.

    The C - 1 directions in which the means differ most for the spread of the classes around them (Fisher 1936; Rao
    1948), scaled so that the spread has the covariance 1 there. The covariance of the features is shrunk by
    `SHRINKAGE` towards a multiple of the identity (Friedman 1989, "Regularized discriminant analysis", equation 18),
    without which directions in which training images hardly differ would decide about others.

    With z = features / |features|, |projection z - means[k]| is the distance to class k.

    Args:
        features: (n, D) rows.
        labels: (n,) integers in 0..C-1; each of two classes or more must occur.

    Returns:
        projection (C - 1, D), of which rows beyond D are 0, and means (C, C - 1). None where all features of a class
        are the same, or all means.

    Raises:
        UsageError: shapes that do not fit, numbers that are not finite, labels between which some do not occur.
    """
    values = _numbers(features, "features", ("n", "D"))
    n_classes = int(np.max(labels)) + 1 if np.size(labels) else 0
    truth = _labels(labels, len(values), n_classes, least=max(2, n_classes))
    values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    means = np.zeros((n_classes, values.shape[1]))
    within = np.zeros((values.shape[1], values.shape[1]))
    for k in range(n_classes):  # one at a time, since there may be gigabytes of features
        members = values[truth == k]
        means[k] = members.mean(axis=0)
        within += (members - means[k]).T @ (members - means[k]) / len(values)
    size = np.trace(within) / len(within)
    between = means - means.mean(axis=0)
    if size < 1e-12 or np.abs(between).max() < 1e-9:
        return None
    shrunk = (1 - SHRINKAGE) * within + SHRINKAGE * size * np.eye(len(within))
    directions = np.linalg.svd(np.linalg.solve(shrunk, between.T), full_matrices=False)[0][:, : n_classes - 1]
    whitened = np.linalg.solve(np.linalg.cholesky(directions.T @ shrunk @ directions), directions.T)
    projection = np.zeros((n_classes - 1, values.shape[1]))
    projection[: len(whitened)] = whitened
    return projection, means @ projection.T


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The mean over rows of -log p(own class), in nats, in [0, 36.05].

    Probabilities below 2 ** -52 count as that, so that one row which is certain and wrong does not hide all others.

    Args:
        probabilities: (n, C) rows that sum to 1.
        labels: (n,) integers in 0..C-1.

    Raises:
        UsageError: shapes that do not fit, no probabilities, other labels.
    """
    values, truth = _predictions(probabilities, labels)
    own = np.take_along_axis(values, truth[:, None], axis=1)
    return float(np.mean(-np.log(np.clip(own, np.finfo(np.float64).eps, 1))))


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """How far the highest class's probability is from how often that class is right, in [0, 1].

    The mean over bins, weighted by rows, of |share right - mean probability| (Guo et al. 2017, arXiv 1706.04599,
    equation 3). Bins are of equal width over (0, 1] and hold their upper end. Of tied classes the first is the answer.
    With few rows a bin it is well above 0 for perfect probabilities too.

    Args:
        probabilities: (n, C) rows that sum to 1.
        labels: (n,) integers in 0..C-1.
        bins: number of bins, >= 1.

    Raises:
        UsageError: shapes that do not fit, no probabilities, other labels, no bins.
    """
    values, truth = _predictions(probabilities, labels)
    if bins != int(bins) or bins < 1:
        raise UsageError(f"expected one bin or more, got {bins}")
    highest, right = values.max(axis=1), values.argmax(axis=1) == truth
    bin_of_row = np.searchsorted(np.arange(1, bins) / bins, highest)
    return float(np.abs(np.bincount(bin_of_row, right - highest)).sum() / len(truth))


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """The mean over rows of sum_k (p_k - [k is the own class])^2, in [0, 2] (Brier 1950, equation 2).

    With two classes it is twice (p(synthetic) - label)^2, which many call by the same name.

    Args:
        probabilities: (n, C) rows that sum to 1.
        labels: (n,) integers in 0..C-1.

    Raises:
        UsageError: shapes that do not fit, no probabilities, other labels.
    """
    values, truth = _predictions(probabilities, labels)
    return float(np.mean(((values - np.eye(values.shape[1])[truth]) ** 2).sum(axis=1)))


def _numbers(values: ArrayLike, what: str, axes: tuple[str, ...]) -> NDArray[np.float64]:
    """Values as a float64 array with these axes: at least one row, at least two classes."""
    shape = f"({', '.join(axes)}{',' * (len(axes) == 1)})"
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"expected {what} as real numbers of shape {shape}, got other things: {error}") from error
    if numbers.ndim != len(axes):
        raise UsageError(f"expected {what} of shape {shape}, got {numbers.shape}")
    if not len(numbers):
        raise UsageError(f"expected {what} of at least one row, got none: pass the rows to fit or to measure on")
    if numbers.ndim == 2 and numbers.shape[1] < 2:
        raise UsageError(
            f"expected {what} of two classes or more, got shape {numbers.shape}: for one logit z pass (0, z), for one "
            "probability p pass (1 - p, p)"
        )
    usable = np.abs(numbers) <= LARGEST
    if not usable.all():
        row = tuple(int(place) for place in np.argwhere(~usable)[0])
        raise UsageError(
            f"expected {what} that are finite and within {LARGEST:g} of 0, got {numbers[row]} in row {row[0]}: look "
            "for the cause, such as training that has diverged"
        )
    return numbers


def _labels(labels: ArrayLike, n: int, n_classes: int, least: int = 2) -> NDArray[np.intp]:
    """Labels as (n,) integers in 0..n_classes-1, of which `least` or more occur."""
    truth = np.asarray(labels)
    if truth.shape != (n,):
        raise UsageError(f"expected one label a row, of shape ({n},), got {truth.shape}")
    found = np.unique(truth)
    if not np.isin(found, np.arange(n_classes)).all():
        raise UsageError(f"expected labels in 0..{n_classes - 1}, got {found[:10].tolist()}")
    if len(found) < least:
        raise UsageError(
            f"expected rows of at least {least} classes, got only the label {found[0]}: add rows of the others"
        )
    return truth.astype(np.intp)


def _predictions(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Checked probabilities (n, C) and labels (n,)."""
    values = _numbers(probabilities, "probabilities", ("n", "C"))
    # Wide enough for the softmax of a network that computes in bfloat16.
    usable = ((values >= 0) & (values <= 1)).all(axis=1) & (np.abs(values.sum(axis=1) - 1) <= 0.01)
    if not usable.all():
        row = int(np.argmin(usable))
        raise UsageError(
            f"expected probabilities in [0, 1] that sum to 1 in each row, got {values[row].tolist()} in row {row}: "
            "apply a softmax to logits"
        )
    return values, _labels(labels, len(values), values.shape[1], least=1)


def _share(share: float, what: str) -> float:
    if not 0 <= share <= 1:
        raise UsageError(f"expected a {what} in [0, 1], got {share}: pass a share, not per cent")
    return share


def _alike(truth: NDArray[np.intp]) -> tuple[NDArray[np.float64], float]:
    """Weights (n,) that sum to 1, by which each class weighs the same; the harmonic mean of the class sizes."""
    sizes = np.bincount(truth)
    n_classes = np.count_nonzero(sizes)
    return 1 / (n_classes * sizes[truth]), n_classes / (1 / sizes[sizes > 0]).sum()


def _newton(
    design: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The coefficients (k,) of `design` (k, n) with the least cross-entropy against targets (n,) inside (0, 1)."""

    def loss(coefficients: NDArray[np.float64]) -> float:
        scores = coefficients @ design
        # log(1 + exp(score)) - target * score, without the difference of large numbers
        linear = np.where(scores > 0, (1 - targets) * scores, -targets * scores)
        return float(weights @ (linear + np.log1p(np.exp(-np.abs(scores)))))

    at = np.zeros(len(design))
    value = loss(at)
    for _ in range(100):
        likely = _sigmoid(at @ design)
        gradient = design @ (weights * (likely - targets))
        hessian = (design * (weights * likely * (1 - likely))) @ design.T
        step = -np.linalg.solve(hessian + 1e-12 * np.eye(len(at)), gradient)
        decrement = -gradient @ step
        size = 1.0
        # So near the end the step is exact, and the gain too small for a difference of losses to show.
        while decrement > 1e-10 and size > 1e-10 and loss(at + size * step) > value - 1e-4 * size * decrement:
            size /= 2
        at = at + size * step
        value = loss(at)
        if decrement <= 1e-14:
            break
    return at


def _sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    small = np.exp(-np.abs(scores))
    return np.where(scores > 0, 1, small) / (1 + small)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of rows whose highest logit is 0."""
    likely = np.exp(logits)
    return likely / likely.sum(axis=1, keepdims=True)


def _halfway(low: float, high: float) -> float:
    """A threshold that `high` reaches and `low` does not; `high` where no number lies between."""
    middle = (low + high) / 2
    return float(middle if middle > low else high)
