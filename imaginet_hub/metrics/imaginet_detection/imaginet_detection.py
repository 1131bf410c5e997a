"""Real against synthetic, for the library `evaluate`. What it computes is in `imaginet_hub.evaluation.detection`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from imaginet_hub.evaluation.detection import detection_metrics, detection_report
from imaginet_hub.metrics import details

_DESCRIPTION = """\
How well the scores of a detector tell synthetic images from real ones: at a threshold (balanced accuracy, accuracy),
as an order (area under the ROC curve, average precision, equal error rate, recall at a false positive rate of 1 % and
.1 %) and as probabilities (expected calibration error, Brier score, negative log-likelihood), with stratified
bootstrap intervals, overall and by group.
"""

_KWARGS_DESCRIPTION = """\
Args:
    predictions: probability of synthetic for each row, in [0, 1].
    references: label of each row, 0 = real, 1 = synthetic.
    threshold: lowest score that is called synthetic; .5 by default.
    groups: for each column its value for each row, e.g. {"generator": [...], "content_type": [...]}; None by default.
        In the columns generator and generator_family each value is measured against all real rows.
    n_resamples: resamples of the bootstrap; 0, the default, for no intervals.
    seed: of the bootstrap; 0 by default.
    names: not used here; for what is common to both tracks.
Returns:
    balanced_accuracy, auc, accuracy, average_precision, eer, tpr_at_fpr_1, tpr_at_fpr_0_1, ece, brier, nll: floats,
        NaN where undefined, as where only one class is there.
    n_real, n_synthetic: rows of each class, as floats.
    intervals: with n_resamples, {metric: {"value", "low", "high"}}, 95 %.
    by: with groups, {column: {value: {"n", "n_real", "n_synthetic", "metrics"}}}, where each metric is a float, or
        with n_resamples {"value", "low", "high"}.
Examples:
    >>> import evaluate
    >>> from imaginet_hub import metrics
    >>> detection = evaluate.load(metrics.path("detection"))
    >>> detection.compute(predictions=[0.1, 0.6, 0.8, 0.9], references=[0, 0, 1, 1])["balanced_accuracy"]
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
class ImagiNetDetection(evaluate.Metric):
    """Metrics of `imaginet_hub.evaluation.detection`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(
        self,
        predictions: Sequence[float],
        references: Sequence[int],
        threshold: float = 0.5,
        groups: Mapping[str, Sequence[str]] | None = None,
        n_resamples: int = 0,
        seed: int = 0,
        names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        found: dict[str, Any] = detection_metrics(references, predictions, threshold=threshold)
        if groups or n_resamples:
            report = detection_report(
                references, predictions, groups or {}, threshold=threshold, n_resamples=n_resamples or 1, seed=seed
            )
            found |= details(report, by=bool(groups), intervals=n_resamples > 0)
        return found
