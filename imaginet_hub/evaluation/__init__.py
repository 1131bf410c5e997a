"""Measuring any detector: metrics with intervals, protocols, results files, audits, pictures."""

from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.comparison import compare, compare_identification, compare_results
from imaginet_hub.evaluation.detection import detection_metrics, detection_report
from imaginet_hub.evaluation.export import eval_results, model_index, write_eval_results
from imaginet_hub.evaluation.figures import (
    comparison_figure,
    contact_sheet,
    detection_figure,
    identification_figure,
    mistakes_figure,
    reliability_figure,
    roc_figure,
    save_figure,
    spectra_figure,
)
from imaginet_hub.evaluation.identification import identification_metrics, identification_report, unknown_auroc
from imaginet_hub.evaluation.mistakes import Mistake, Mistakes
from imaginet_hub.evaluation.predictions import PredictionStore
from imaginet_hub.evaluation.protocols import PROTOCOLS, Scored, run_protocols, side_by_side
from imaginet_hub.evaluation.report import Results, evaluate_rows
from imaginet_hub.evaluation.schema import results_schema, validate
from imaginet_hub.evaluation.spectra import MeanSpectra, Spectrum

__all__ = [
    "PROTOCOLS",
    "Bootstrap",
    "MeanSpectra",
    "Mistake",
    "Mistakes",
    "PredictionStore",
    "Results",
    "Scored",
    "Spectrum",
    "compare",
    "compare_identification",
    "compare_results",
    "comparison_figure",
    "contact_sheet",
    "detection_figure",
    "detection_metrics",
    "detection_report",
    "eval_results",
    "evaluate_rows",
    "identification_figure",
    "identification_metrics",
    "identification_report",
    "mistakes_figure",
    "model_index",
    "reliability_figure",
    "results_schema",
    "roc_figure",
    "run_protocols",
    "save_figure",
    "side_by_side",
    "spectra_figure",
    "unknown_auroc",
    "validate",
    "write_eval_results",
]
