"""What is left of a detector's score once format, size and quality are the same for all images. Numpy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.comparison import compare
from imaginet_hub.evaluation.detection import detection_report
from imaginet_hub.perturbations import fixed_crop, jpeg, resized_square

__all__ = ["THRESHOLD", "VARIANTS", "Variants", "metrics_of"]

#: What a model is shown of each image, `c` being the crop size.
VARIANTS = {
    "raw": "the fixed crop, c x c, of the decoded image",
    "format_quality": "raw, then JPEG of quality 90",
    "size": "the largest square in the middle, resized to c x c (Lanczos)",
    "all": "size, then JPEG of quality 90",
}
#: Lowest probability that is called synthetic.
THRESHOLD = 0.5


def metrics_of(truth: NDArray[np.intp], scores: NDArray[np.float64], bootstrap: Bootstrap) -> dict[str, Any]:
    """The metrics of the detection track, with intervals."""
    report = detection_report(
        truth,
        scores,
        {},
        threshold=THRESHOLD,
        n_resamples=bootstrap.n_resamples,
        seed=bootstrap.seed,
        confidence=bootstrap.confidence,
    )
    return dict(report["metrics"])


class Variants:
    """What a model says of each variant of each image, asked in batches."""

    def __init__(
        self, predict: Callable[[Sequence[Image.Image]], NDArray[Any]], crop_size: int, batch_size: int, column: int
    ) -> None:
        self._predict, self._size, self._batch_size, self._column = predict, crop_size, batch_size, column
        self._waiting: list[list[Image.Image]] = []
        self._scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in VARIANTS}

    def of(self, rgb: Image.Image) -> list[Image.Image]:
        """The variants of an image, in the order of `VARIANTS`."""
        raw = fixed_crop(rgb, self._size)
        size = resized_square(rgb, self._size)
        return [raw, jpeg(raw, 90), size, jpeg(size, 90)]

    def add(self, variants: list[Image.Image]) -> None:
        self._waiting.append(variants)
        if len(self._waiting) == self._batch_size:
            self.flush()

    def flush(self) -> None:
        for name, images in zip(VARIANTS, zip(*self._waiting, strict=True), strict=False):
            scores = np.asarray(self._predict(images), np.float64)
            if scores.shape != (len(images), 2) or not ((scores >= 0) & (scores <= 1)).all():
                raise UsageError(
                    f"predict: expected probabilities of shape {(len(images), 2)}, got an array of shape "
                    f"{scores.shape} or values outside [0, 1]: apply a softmax to logits"
                )
            self._scores[name].append(scores[:, self._column])
        self._waiting = []

    def report(self, truth: NDArray[np.intp], names: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
        scores = {name: np.concatenate(parts) for name, parts in self._scores.items()}
        found = {name: metrics_of(truth, values, bootstrap) for name, values in scores.items()}
        less = {
            name: compare(truth, values, scores["raw"], threshold=THRESHOLD, bootstrap=bootstrap)["differences"]
            for name, values in scores.items()
            if name != "raw"
        }
        return {
            "names": list(names),
            "crop_size": self._size,
            "threshold": THRESHOLD,
            "variants": {name: {"metrics": metrics} for name, metrics in found.items()},
            "difference": {
                name: {metric: part[metric] for metric in ("balanced_accuracy", "auc")} for name, part in less.items()
            },
        }
