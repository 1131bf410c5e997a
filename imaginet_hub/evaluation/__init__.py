"""Measuring detectors: metrics with intervals, results files, pictures. Works on any prediction function."""

from imaginet_hub.evaluation.detection import detection_metrics, detection_report
from imaginet_hub.evaluation.figures import contact_sheet, detection_figure, identification_figure, save_figure
from imaginet_hub.evaluation.identification import identification_metrics, identification_report
from imaginet_hub.evaluation.report import Results, evaluate_rows

__all__ = [
    "Results",
    "contact_sheet",
    "detection_figure",
    "detection_metrics",
    "detection_report",
    "evaluate_rows",
    "identification_figure",
    "identification_metrics",
    "identification_report",
    "save_figure",
]
