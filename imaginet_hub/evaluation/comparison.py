"""Two detectors, or two classifiers, on the same rows: is one better, and by how much? Numpy only.

Both meet the same images, and find most of the same ones easy or hard. McNemar's test therefore looks at the rows
alone on which exactly one of them is right, and the bootstrap draws the same rows for both, so that what they have in
common cancels in the difference.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import detection, identification
from imaginet_hub.evaluation.bootstrap import Bootstrap, Strata
from imaginet_hub.labels import Origin, Track

if TYPE_CHECKING:
    from imaginet_hub.evaluation.report import Results

__all__ = ["compare", "compare_identification", "compare_results", "mcnemar"]

#: Whose differences are told: of two detectors, of two classifiers.
_DETECTION = ("balanced_accuracy", "auc", "accuracy", "average_precision", "eer", "tpr_at_fpr_1", "brier", "nll")
_IDENTIFICATION = ("balanced_accuracy", "auc", "accuracy", "macro_f1")

#: What rows without a path are called: their numbers, which say nothing of the image.
_GENERATED = re.compile(r"row \d+")


def mcnemar(only_a_right: int, only_b_right: int) -> float:
    """The p-value of McNemar's test, exact and two-sided.

    How likely it is that rows which one of two answers right and the other wrong would be shared out at least as
    unevenly if each were as likely to fall to either: a binomial test with probability 1/2 (McNemar 1947, "Note on
    the sampling error of the difference between correlated proportions or percentages", Psychometrika 12). His
    chi-squared, and Edwards' correction of it (1948, "Note on the correction for continuity", Psychometrika 13),
    approximate this where such rows are many.

    Args:
        only_a_right, only_b_right: such rows, 0 or more.

    Returns:
        In [0, 1]; 1 where there are no such rows.

    Raises:
        UsageError: a negative number.

    Example:
        >>> mcnemar(5, 0)
        0.0625
    """
    fewer, n = min(only_a_right, only_b_right), only_a_right + only_b_right
    if fewer < 0:
        raise UsageError(f"expected numbers of rows, 0 or more, got {only_a_right} and {only_b_right}")
    ways = total = 1
    for k in range(fewer):  # in whole numbers, which do not underflow
        ways = ways * (n - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / 2**n)


def compare(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    threshold: float = 0.5,
    threshold_b: float | None = None,
    bootstrap: Bootstrap | None = None,
    strata: ArrayLike | None = None,
) -> dict[str, Any]:
    """Two detectors on the same rows.

    Args:
        labels: (n,) 0 = real, 1 = synthetic.
        scores_a, scores_b: (n,) each one's probability of synthetic, in [0, 1].
        threshold: lowest score that is called synthetic.
        threshold_b: that of the second detector; the same if None.
        bootstrap: how intervals are made; the default if None.
        strata: (n,) rows are drawn within each stratum of each class, such as a generator; within classes if None.

    Returns:
        - `n`: rows;
        - `mcnemar`: {"only_a_right", "only_b_right", "p_value"}, see `mcnemar`;
        - `differences`: {metric: {"value", "low", "high"}}, a's less b's, of the metrics balanced_accuracy, auc,
          accuracy, average_precision, eer, tpr_at_fpr_1, brier and nll of `detection_metrics`. Of eer, brier and nll
          less is better. Bounds are NaN where a class has a single row, differences where a metric is undefined.

    Raises:
        UsageError: as `detection_metrics`; strata of another length.
    """
    bootstrap = bootstrap or Bootstrap()
    thresholds = (threshold, threshold if threshold_b is None else threshold_b)
    pairs, right = [], []
    for name, scores, least in zip("ab", (scores_a, scores_b), thresholds, strict=True):
        truth, values = detection.checked(labels, scores, least)
        pairs.append(detection.pair_of(truth, values, least, np.arange(len(truth)), name))
        right.append((values >= least) == truth)
    drawn = detection.shared_rows(bootstrap, _strata(truth, strata))
    a, b = detection.replicated(pairs, bootstrap, len(truth), drawn)
    return {
        **_discordant(right[0], right[1]),
        "differences": _differences(
            _DETECTION, [pair.observed for pair in pairs], (a, b), pairs[0].smallest, bootstrap
        ),
    }


def compare_identification(
    labels: ArrayLike,
    probabilities_a: ArrayLike,
    probabilities_b: ArrayLike,
    names: Sequence[str],
    *,
    bootstrap: Bootstrap | None = None,
    strata: ArrayLike | None = None,
) -> dict[str, Any]:
    """Two classifiers of generators on the same rows.

    Args:
        labels: (n,) integers, positions in `names`.
        probabilities_a, probabilities_b: (n, k) each one's, in [0, 1]; the class with the highest one is the answer.
        names: the k classes.
        bootstrap, strata: as for `compare`.

    Returns:
        As `compare`, with differences of balanced_accuracy, auc, accuracy and macro_f1 of `identification_metrics`.

    Raises:
        UsageError: as `identification_metrics`; strata of another length.
    """
    bootstrap = bootstrap or Bootstrap()
    tables, right = [], []
    for probabilities in (probabilities_a, probabilities_b):
        truth, values = identification.checked(labels, probabilities, names)
        tables.append(identification.Table(truth, values))
        right.append(values.argmax(axis=1) == truth)
    layers = _strata(truth, strata)
    parts: list[list[dict[str, NDArray[Any]]]] = [[], []]
    for chunk in bootstrap.chunks(len(truth)):
        counts = layers.counts(bootstrap, chunk)
        for table, part in zip(tables, parts, strict=True):
            part.append(table.metrics(np.take(counts, table.order, axis=1)))
    a, b = ({name: np.concatenate([one[name] for one in part]) for name in _IDENTIFICATION} for part in parts)
    return {
        **_discordant(right[0], right[1]),
        "differences": _differences(
            _IDENTIFICATION, [table.observed for table in tables], (a, b), len(truth), bootstrap
        ),
    }


def compare_results(results: Results, other: Results) -> dict[str, Any]:
    """Two results files of one track on the same images, which are matched by path.

    Each model may have seen crops of its own of them: what they were is told, not refused. Rows without a path are
    matched by their numbers, where the fingerprints of both datasets say that these are the same rows.

    Args:
        results, other: with `per_image`. Thresholds are their own, the bootstrap is that of the first.

    Returns:
        As `compare` or `compare_identification`, of the images that both have, and

        - `other`, `preprocessing`: `model` and `preprocessing` of the second one;
        - `only_here`, `only_there`: images that only the first, or only the second, has a score for;
        - `remarks`: sentences on what keeps the two from being measured alike, none where nothing does.

    Raises:
        UsageError: results without `per_image`, of different tracks or classes, of datasets with different
            fingerprints or perturbations, without a common image, or with different labels for the same image.
    """
    if results.per_image is None or other.per_image is None:
        raise UsageError("expected results with per_image, got some without: evaluate again and keep the scores")
    if results.track != other.track or set(results.names) != set(other.names):
        raise UsageError(
            "expected results of one track and one set of classes, got "
            f"{results.track} ({', '.join(results.names)}) and {other.track} ({', '.join(other.names)})"
        )
    known = _same_dataset(results.dataset, other.dataset)
    here, there = _by_path(results.per_image), _by_path(other.per_image)
    both = [key for key in here if key in there]
    common = [key for key in both if known or not _GENERATED.fullmatch(key[0])]
    if not common:
        what = "numbered rows alone, of datasets without fingerprints," if both else "none that both have"
        raise UsageError(f"expected results on the same images, got {what}: evaluate both models on the same split")
    for key in common:
        if here[key]["label"] != there[key]["label"]:
            raise UsageError(
                f"expected one label for each image, got {here[key]['label']} and {there[key]['label']} for {key[0]}: "
                "evaluate on the same split"
            )
    remarks = _remarks(results, other, known, len(both) - len(common))
    only_here, only_there = len(here) - len(common), len(there) - len(common)
    strangers = len(common)
    common = [key for key in common if here[key]["label"] in results.names]
    if strangers := strangers - len(common):
        remarks.append(f"Left out: {_rows(strangers)} of classes that the models do not know.")
    if not common:
        raise UsageError(
            f"expected images of the classes {', '.join(results.names)}, got {strangers} of others alone: evaluate on "
            "a split that has some"
        )
    names = results.names
    labels = np.array([names.index(here[key]["label"]) for key in common])
    order = [other.names.index(name) for name in names]
    a = np.array([here[key]["scores"] for key in common])
    b = np.array([there[key]["scores"] for key in common])[:, order]
    bootstrap = Bootstrap(**results.bootstrap)
    if results.track == Track.DETECTION:
        column = names.index(Origin.SYNTHETIC)
        found = compare(
            labels == column,
            a[:, column],
            b[:, column],
            threshold=0.5 if results.threshold is None else results.threshold,
            threshold_b=other.threshold,
            bootstrap=bootstrap,
        )
    else:
        found = compare_identification(labels, a, b, names, bootstrap=bootstrap)
    return {
        "other": other.model,
        "preprocessing": dict(other.preprocessing),
        **found,
        "only_here": only_here,
        "only_there": only_there,
        "remarks": remarks,
    }


def _same_dataset(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether fingerprints say so; one that is not known says nothing.

    Raises:
        UsageError: they say that these are not the same images.
    """
    for key, remedy in (
        ("fingerprint", "evaluate both models on the same split of one dataset"),
        ("perturbed", "evaluate both models on the same copy of the test set, perturbed or not"),
    ):
        a, b = one.get(key), other.get(key)
        # What says nothing of a perturbation has none; what has no fingerprint may be anything.
        if a != b and (key == "perturbed" or (a is not None and b is not None)):
            raise UsageError(
                f"expected results on the same images, got {_split(one)} and {_split(other)} with {key} {a} and {b}: "
                f"{remedy}"
            )
    return one.get("fingerprint") is not None and one.get("fingerprint") == other.get("fingerprint")


def _split(dataset: Mapping[str, Any]) -> str:
    return f"{dataset.get('name', '?')}/{dataset.get('split', '?')}"


def _remarks(results: Results, other: Results, known: bool, unmatched: int) -> list[str]:
    """What keeps two results from being measured alike."""
    remarks = []
    if apart := [k for k in results.preprocessing if results.preprocessing[k] != other.preprocessing.get(k)]:
        ours, theirs = (
            ", ".join(f"{key} {part.get(key) or 'none'}" for key in apart)
            for part in (results.preprocessing, other.preprocessing)
        )
        remarks.append(
            f"The images were prepared differently, {ours} against {theirs}: differences are of models and "
            "preparation together."
        )
    if not known:
        remarks.append("Images were matched by path alone: fingerprints of both datasets are not known.")
    if unmatched:
        remarks.append(f"Left out: {_rows(unmatched)} without a path, which nothing says are the same.")
    return remarks


def _rows(n: int) -> str:
    return f"{n:,} image{'s' * (n != 1)}"


def _by_path(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Rows by path; the second, third, ... row of one path is told by its number among them."""
    seen: Counter[str] = Counter()
    found = {}
    for row in rows:
        found[row["path"], seen[row["path"]]] = row
        seen[row["path"]] += 1
    return found


def _strata(truth: NDArray[np.intp], strata: ArrayLike | None) -> Strata:
    """Of each class, or each stratum of each class."""
    if strata is None:
        return Strata(truth)
    if np.shape(strata) != truth.shape:
        raise UsageError(f"expected one stratum for each of {len(truth)} rows, got shape {np.shape(strata)}")
    names, places = np.unique(np.asarray(strata), return_inverse=True)
    return Strata(truth * len(names) + places)


def _discordant(right_a: NDArray[np.bool_], right_b: NDArray[np.bool_]) -> dict[str, Any]:
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return {
        "n": len(right_a),
        "mcnemar": {"only_a_right": only_a, "only_b_right": only_b, "p_value": mcnemar(only_a, only_b)},
    }


def _differences(
    metrics: Sequence[str],
    observed: Sequence[Mapping[str, NDArray[Any]]],
    replicates: Sequence[Mapping[str, NDArray[Any]]],
    rows: int,
    bootstrap: Bootstrap,
) -> dict[str, dict[str, float]]:
    """Of each metric, the first one's less the second one's, with an interval."""
    return {
        name: bootstrap.interval(
            float(observed[0][name][0] - observed[1][name][0]),
            replicates[0][name] - replicates[1][name],
            rows,
            proportion=False,
        )
        for name in metrics
    }
