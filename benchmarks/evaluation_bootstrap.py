"""How fast intervals of a detector's metrics are made, next to a Python loop over scikit-learn.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_bootstrap.py [--rows 40000] [--resamples 1000] [--loop 3]

Both give every metric of the detection track over resamples stratified by class, for all rows and for each generator,
family, content type and source: 30 groups, in which real and synthetic rows are shared out as in ImagiNet's test set.
scikit-learn's loop takes half a second a resample: `--loop` resamples of it are timed, and their time is scaled to
`--resamples`. Contenders take turns; times are of the processor, summed over threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Per family its generators, per content type the sources of real images.
_GENERATORS = {
    "GAN": ("ProGAN", "StyleGAN-XL", "StyleGAN3"),
    "SD": ("SD v2.1", "SDXL v1.0", "Animagine XL"),
    "Midjourney": ("Midjourney",),
    "DALL-E 3": ("DALL-E 3",),
}
_SOURCES = {
    "photos": ("ImageNet", "COCO"),
    "paintings": ("WikiArt",),
    "faces": ("FFHQ",),
    "uncategorized": ("Danbooru",),
}


def made_rows(n: int, seed: int = 0) -> tuple[NDArray[np.intp], NDArray[np.float64], dict[str, list[str]]]:
    """Labels (n,), scores (n,) that tell them apart at about 80 %, and the columns to group by."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    scores = 1 / (1 + np.exp(-1.5 * rng.normal(size=n) - 2.5 * (labels - 0.5)))
    columns: dict[str, list[str]] = {"generator_family": [], "generator": [], "content_type": [], "source": []}
    families, contents = tuple(_GENERATORS), tuple(_SOURCES)
    for label, family_at, content_at, draw in zip(
        labels, rng.integers(4, size=n), rng.integers(4, size=n), rng.random(n), strict=True
    ):
        family, content = families[family_at], contents[content_at]
        generator = _GENERATORS[family][int(draw * len(_GENERATORS[family]))]
        source = _SOURCES[content][int(draw * len(_SOURCES[content]))]
        columns["generator_family"].append(family if label else "real")
        columns["generator"].append(generator if label else "real")
        columns["content_type"].append(content)
        columns["source"].append(generator if label else source)
    return labels, scores, columns


def loop(labels: NDArray[np.intp], scores: NDArray[np.float64], columns: dict[str, list[str]], resamples: int) -> None:
    """The same by scikit-learn: for each group and resample, draw rows of each class and call each metric."""
    rng = np.random.default_rng(0)
    groups = [np.arange(len(labels))]
    for column, values in columns.items():
        of_row = np.array(values)
        for value in np.unique(of_row):
            mask = of_row == value
            if column.startswith("generator"):
                if value == "real":
                    continue
                mask |= labels == 0
            groups.append(np.flatnonzero(mask))
    for _ in range(resamples):
        for rows in groups:
            sides = [rows[labels[rows] == label] for label in (0, 1)]
            drawn = np.concatenate([rng.choice(side, len(side)) for side in sides])
            if all(len(side) for side in sides):
                _scikit_learn(labels[drawn], scores[drawn])


def _scikit_learn(truth: NDArray[np.intp], scores: NDArray[np.float64]) -> dict[str, float]:
    from sklearn import metrics

    called = scores >= 0.5
    fpr, tpr, _ = metrics.roc_curve(truth, scores)
    nearest = np.argmin(np.abs(1 - tpr - fpr))
    highest = np.maximum(scores, 1 - scores)
    bins = np.minimum((highest * 15).astype(int), 14)
    return {
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, called),
        "auc": metrics.roc_auc_score(truth, scores),
        "accuracy": metrics.accuracy_score(truth, called),
        "average_precision": metrics.average_precision_score(truth, scores),
        "eer": (fpr[nearest] + 1 - tpr[nearest]) / 2,
        "tpr_at_fpr_1": tpr[fpr <= 0.01].max(),
        "tpr_at_fpr_0_1": tpr[fpr <= 0.001].max(),
        "ece": np.abs(np.bincount(bins, (called == truth) - highest)).sum() / len(truth),
        "brier": metrics.brier_score_loss(truth, scores),
        "nll": metrics.log_loss(truth, scores),
    }


def bootstrap(rows: int = 40_000, resamples: int = 1000, looped: int = 3, repeats: int = 3) -> dict[str, Any]:
    """Seconds of the processor of both, and how many times faster ours is: the median over `repeats` turns."""
    from imaginet_hub.evaluation.detection import detection_report

    labels, scores, columns = made_rows(rows)
    loop(*made_rows(200), 1)  # imports are not counted
    theirs, ours = [], []
    for _ in range(repeats):
        start = time.process_time()
        loop(labels, scores, columns, looped)
        middle = time.process_time()
        report = detection_report(labels, scores, columns, n_resamples=resamples)
        end = time.process_time()
        theirs.append((middle - start) / looped * resamples)
        ours.append(end - middle)
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {
        "rows": rows,
        "resamples": resamples,
        "groups": 1 + sum(map(len, report["by"].values())),
        "scikit_learn_s": statistics.median(theirs),
        "scikit_learn_scaled_from": looped,
        "ours_s": statistics.median(ours),
        "times_faster": statistics.median(ratios),
        "times_faster_least_to_most": [min(ratios), max(ratios)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--loop", type=int, default=3, help="resamples of scikit-learn's loop that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(json.dumps(bootstrap(args.rows, args.resamples, args.loop, args.repeats), indent=2))


if __name__ == "__main__":
    main()
