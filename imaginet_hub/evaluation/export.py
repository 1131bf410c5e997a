"""A results file in the two forms that the Hub reads: `.eval_results/*.yaml` and a card's model-index. Pure functions.

What is reported on all rows and what each protocol says are entries of their own, with a task or a configuration of
their own: the Hub puts entries that share these side by side, and huggingface_hub merges them when it writes a card.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import HFValidationError, validate_repo_id

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.protocols import PROTOCOLS
from imaginet_hub.evaluation.report import interval_text
from imaginet_hub.labels import Track

__all__ = ["check_dataset_id", "eval_results", "model_index", "model_index_results", "write_eval_results"]

#: What a leaderboard gets, one task each.
_HEADLINES = ("balanced_accuracy", "auc")

#: Where the Hub knows a metric by another name.
_METRIC_TYPES = {"auc": "roc_auc", "macro_f1": "f1", "brier": "brier_score"}

_TASKS = {Track.DETECTION: "synthetic image detection", Track.IDENTIFICATION: "generator identification"}


@dataclass(frozen=True)
class _Summary:
    """The figures of all rows, or of one protocol.

    Attributes:
        protocol: its name; None for all rows.
        what: what the figures are of, in words.
        metrics: as in a results file.
        threshold: of detection, else None.
    """

    protocol: str | None
    what: str
    metrics: Mapping[str, Mapping[str, float | None]]
    threshold: float | None


def eval_results(
    results: Mapping[str, Any],
    dataset_id: str,
    *,
    task_id: str | None = None,
    dataset_revision: str | None = None,
    date: str | None = None,
    source_url: str | None = None,
    source_name: str | None = None,
) -> list[EvalResultEntry]:
    """Balanced accuracy and AUC as entries of `.eval_results/*.yaml`, each with a note of how it was measured.

    Args:
        results: content of a results file.
        dataset_id: Hub id of the dataset that was measured on.
        task_id: what the names of the tasks begin with, the track by default: `detection_balanced_accuracy`,
            `detection_auc`, and for protocols `detection_clean_auc` and so on. A benchmark dataset defines the tasks
            that it ranks in its eval.yaml.
        dataset_revision: commit of the dataset.
        date: of the evaluation, ISO 8601; the Hub takes the commit's by default.
        source_url, source_name: where the results file or the run can be seen.

    Returns:
        Entries with values in [0, 1]; a metric that is undefined is left out.

    Raises:
        UsageError: no such id can be on the Hub, a source's name without its address, or nothing to report.
    """
    check_dataset_id(dataset_id)
    if source_name is not None and source_url is None:
        raise UsageError(f"expected source_url, the address of the source {source_name!r}, got none")
    entries = [
        EvalResultEntry(
            dataset_id=dataset_id,
            task_id="_".join(filter(None, (task_id or results["track"], summary.protocol, metric))),
            value=_rounded(summary.metrics[metric]["value"]),
            dataset_revision=dataset_revision,
            date=date,
            source_url=source_url,
            source_name=source_name,
            notes=_notes(results, summary, metric),
        )
        for summary in _summaries(results)
        for metric in _HEADLINES
        if _defined(summary, metric)
    ]
    if not entries:
        raise UsageError("expected a balanced accuracy or an AUC to report, got none: both need rows of two classes")
    return entries


def write_eval_results(
    folder: str | os.PathLike[str], entries: Sequence[EvalResultEntry], name: str | None = None
) -> Path:
    """Write entries to `FOLDER/.eval_results/NAME.yaml`, completely or not at all.

    Args:
        folder: of the model, as it is to be uploaded.
        entries: see `eval_results`.
        name: of the file; the dataset's by default. A file of that name is replaced.

    Returns:
        The file's path.

    Raises:
        UsageError: no entries, or a name with other characters than letters, digits, `.`, `_` and `-`.
    """
    if not entries:
        raise UsageError("expected one entry or more to write, got none")
    stem = entries[0].dataset_id.rpartition("/")[2] if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", stem, re.ASCII):
        raise UsageError(f"expected a file name of letters, digits, '.', '_' and '-', got {stem!r}")
    path = Path(folder) / ".eval_results" / f"{stem}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        content = eval_result_entries_to_yaml(list(entries))
        partial.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def model_index_results(
    results: Mapping[str, Any],
    dataset_id: str,
    *,
    dataset_revision: str | None = None,
    source_url: str | None = None,
    source_name: str | None = None,
    metrics: Sequence[str] | None = None,
) -> list[EvalResult]:
    """The metrics of a results file as `huggingface_hub.EvalResult`, for `ModelCardData(eval_results=...)`.

    The interval and the threshold are in `metric_args`; the configuration of the dataset names the protocol.

    Args:
        results, dataset_id, dataset_revision, source_url, source_name: as for `eval_results`.
        metrics: which; all of them by default.

    Raises:
        UsageError: as `eval_results`.
    """
    check_dataset_id(dataset_id)
    if source_name is not None and source_url is None:
        raise UsageError(f"expected source_url, the address of the source {source_name!r}, got none")
    track = Track(results["track"])
    return [
        EvalResult(
            task_type="image-classification",
            task_name=_TASKS[track],
            dataset_type=dataset_id,
            dataset_name=str(results["dataset"].get("name") or dataset_id) + " (simulated)" * _simulated(results),
            dataset_config="-".join(filter(None, (track, summary.protocol))),
            dataset_split=results["dataset"].get("split"),
            dataset_revision=dataset_revision,
            metric_type=_METRIC_TYPES.get(metric, metric),
            metric_name=metric.replace("_", " "),
            metric_value=_rounded(interval["value"]),
            metric_args=_metric_args(results, summary, interval),
            source_url=source_url,
            source_name=source_name,
        )
        for summary in _summaries(results)
        for metric, interval in summary.metrics.items()
        if _defined(summary, metric) and (metrics is None or metric in metrics)
    ]


def model_index(
    results: Sequence[Mapping[str, Any]],
    dataset_ids: Sequence[str],
    model_name: str,
    *,
    metrics: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The `model-index` of a card's YAML.

    Args:
        results: contents of results files.
        dataset_ids: Hub id of the dataset of each.
        model_name: of the model.
        metrics: which; all of them by default.

    Raises:
        UsageError: as `eval_results`; not one id for each results file.
    """
    if len(results) != len(dataset_ids):
        raise UsageError(f"expected a dataset id for each of {len(results)} results, got {len(dataset_ids)}")
    flat = [
        entry
        for content, dataset_id in zip(results, dataset_ids, strict=True)
        for entry in model_index_results(content, dataset_id, metrics=metrics)
    ]
    return eval_results_to_model_index(model_name, flat)


def _summaries(results: Mapping[str, Any]) -> Iterator[_Summary]:
    yield _Summary(None, f"all {results['n']:,} rows", results["metrics"], results["threshold"])
    for protocol in PROTOCOLS if results["protocols"] else ():
        part = results["protocols"][protocol]
        families = part["by"]["generator_family"]
        what = (
            f"protocol {protocol}, mean of {len(families['groups'])} generator families against "
            f"{part['negatives']['unique']:,} real images, calibration: {part['calibration']['rule']}"
        )
        yield _Summary(protocol, what, families["mean"], part["threshold"])


def _defined(summary: _Summary, metric: str) -> bool:
    return summary.metrics.get(metric, {}).get("value") is not None


def _simulated(results: Mapping[str, Any]) -> bool:
    return bool(results["dataset"].get("corpus") == "mini")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def check_dataset_id(dataset_id: str) -> None:
    """Check that something can be a dataset's id on the Hub.

    Raises:
        UsageError: it cannot.
    """
    try:
        validate_repo_id(dataset_id)
    except HFValidationError as error:
        raise UsageError(f"expected the Hub id of a dataset, such as name/dataset, got {dataset_id!r}") from error


def _metric_args(
    results: Mapping[str, Any], summary: _Summary, interval: Mapping[str, float | None]
) -> dict[str, Any] | None:
    args: dict[str, Any] = {}
    if summary.threshold is not None:
        args["threshold"] = summary.threshold
    if interval["low"] is not None:
        args["interval"] = [_rounded(interval["low"]), _rounded(interval["high"])]
        args["confidence"] = results["bootstrap"]["confidence"]
    return args or None


def _notes(results: Mapping[str, Any], summary: _Summary, metric: str) -> str:
    """How a value was measured, in one line."""
    dataset, steps = results["dataset"], results["preprocessing"]
    interval = summary.metrics[metric]
    facts = [f"{metric.replace('_', ' ')} {interval_text(interval)}"]
    if interval["low"] is not None:
        bootstrap = results["bootstrap"]
        facts.append(f"{bootstrap['confidence'] * 100:g} % interval of {bootstrap['n_resamples']:,} resamples")
    if summary.threshold is not None and metric != "auc":
        facts.append(f"threshold {summary.threshold:.4g}")
    facts.append(summary.what)
    if results["skipped"]:
        facts.append(f"unreadable rows: {len(results['skipped']):,}")
    where = "/".join(str(dataset[key]) for key in ("name", "split") if dataset.get(key))
    if where:
        facts.append(f"dataset {where}")
    if _simulated(results):
        facts.append("simulated images")
    done = [f"{name.replace('_', ' ')} {value}" for name, value in steps.items() if value is not None]
    facts.append(f"preprocessing: {', '.join(done) or 'none'}")
    return "; ".join(facts)
