"""Which family made an image, for the library `evaluate`; see `imaginet_hub.evaluation.identification`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from imaginet_hub.evaluation.identification import (
    METRICS,
    identification_metrics,
    identification_report,
    unknown_auroc,
)
from imaginet_hub.labels import Track, Vocabulary
from imaginet_hub.metrics import details

_DESCRIPTION = """\
How well the probabilities of a classifier name the family of generators that made a synthetic image: balanced
accuracy, accuracy, macro F1, one-vs-rest area under the ROC curve, expected calibration error, Brier score and
negative log-likelihood, with stratified bootstrap intervals, overall and by group.
"""

_KWARGS_DESCRIPTION = """\
Args:
    predictions: probability of each class for each row, in [0, 1]. The class with the highest one is the answer.
    references: class of each row, a position among the classes.
    names: the classes; by default those of ImagiNet where there are as many, else class 0, class 1, ...
    groups: for each column its value for each row, e.g. {"generator": [...], "content_type": [...]}; None by default.
    n_resamples: resamples of the bootstrap; 0, the default, for no intervals.
    seed: of the bootstrap; 0 by default.
    unknown: whether each of some images is of no class; with unlike, of the same images: how unlike all classes it is.
    threshold: not used here; for what is common to both tracks.
Returns:
    balanced_accuracy, auc, accuracy, macro_f1, ece, brier, nll: floats, NaN where undefined.
    recall NAME: for each class, the share of its rows answered right; NaN for a class without rows.
    confusion: one list per true class, rows answered with each class.
    n: rows, as a float.
    unknown_auroc: with unknown, how well the rows of no class are told from the others by `unlike`.
    intervals: with n_resamples, {metric: {"value", "low", "high"}}, 95 %.
    by: with groups, {column: {value: {"n", "metrics"}}}, where each metric is a float, or with n_resamples {"value",
        "low", "high"}; for generators the accuracy alone.
Examples:
    >>> import evaluate
    >>> from imaginet_hub import metrics
    >>> identification = evaluate.load(metrics.path("identification"))
    >>> predictions = [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.6, 0.3, 0.1]]
    >>> identification.compute(predictions=predictions, references=[0, 1, 1])["balanced_accuracy"]
    0.75
"""

_CITATION = """\
@misc{boychev2024imaginet,
  title = {{ImagiNet}: A Multi-Content Benchmark for Synthetic Image Detection},
  author = {Boychev, Delyan and Cholakov, Radostin},
  year = {2024},
  eprint = {2407.20020},
  archivePrefix = {arXiv},
  url = {https://arxiv.org/abs/2407.20020}
}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ImagiNetIdentification(evaluate.Metric):
    """Metrics of `imaginet_hub.evaluation.identification`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[int],
        threshold: float = 0.5,
        groups: Mapping[str, Sequence[str]] | None = None,
        n_resamples: int = 0,
        seed: int = 0,
        names: Sequence[str] | None = None,
        unknown: Sequence[bool] | None = None,
        unlike: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        if names is None:
            names = _names(len(predictions[0]) if len(predictions) else 0)
        found = identification_metrics(references, predictions, names)
        flat: dict[str, Any] = {name: found[name] for name in METRICS}
        flat |= {f"recall {name}": value for name, value in found["recall"].items()} | {"n": float(found["n"])}
        flat["confusion"] = found["confusion"]
        if unknown is not None:
            auroc = unknown_auroc(~np.asarray(unknown, dtype=bool), unlike if unlike is not None else [])
            flat["unknown_auroc"] = auroc["value"]
        if groups or n_resamples:
            report = identification_report(
                references, predictions, names, groups or {}, n_resamples=n_resamples or 1, seed=seed
            )
            flat |= details(report, by=bool(groups), intervals=n_resamples > 0)
        return flat


def _names(n: int) -> tuple[str, ...]:
    """Of n classes."""
    ours = Vocabulary.upstream().track_names(Track.IDENTIFICATION)
    return ours if len(ours) == n else tuple(f"class {number}" for number in range(n))
