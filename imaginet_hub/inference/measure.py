"""A model folder and a dataset in, a results file and a picture out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets

from imaginet_hub.data.loading import dataset_record, load_rows, track_of, with_names
from imaginet_hub.errors import UsageError, require
from imaginet_hub.evaluation.figures import detection_figure, identification_figure, save_figure
from imaginet_hub.evaluation.report import Results, evaluate_rows, interval_text
from imaginet_hub.inference.detector import Detector
from imaginet_hub.labels import Track

__all__ = ["measure", "summary"]

_HEADLINES = ("balanced_accuracy", "auc", "accuracy")


def measure(
    model: Detector | str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    by: Sequence[str] = (),
    equalize: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    progress: bool = True,
) -> Results:
    """Evaluate a model on one split, on the fixed crops that its processor takes.

    Args:
        model: a loaded detector, a model folder or a Hub id; its track decides what is measured.
        dataset: see `data.loading.load_rows`.
        out: results file (.json); the picture gets the same name with .png.
        split: split to measure on.
        by: columns to break down by, beside generator and content type.
        equalize: "jpeg:Q" re-encodes every crop first, so that the file's format says nothing.
        batch_size: images per forward pass.
        seed: of the bootstrap intervals.
        device: torch device; a GPU if there is one by default.
        dtype, compile: see `Detector`; a loaded detector keeps its own.
        progress: show a bar.

    Returns:
        The results, as written.

    Raises:
        ModelError, DataNotFoundError, UsageError: what was asked for cannot be used.
    """
    require("eval", "matplotlib")
    target = Path(out).expanduser()
    if target.suffix != ".json":
        raise UsageError(f"--out: expected a file name that ends in .json, got {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {target.parent} cannot be made ({error}); choose another folder") from error
    if isinstance(model, Detector):
        detector = model
    else:
        detector = Detector.from_pretrained(model, device=device, dtype=dtype, compile=compile)
    rows = load_rows(dataset, track_of(detector.label_column), split)
    columns = list(dict.fromkeys(("generator", "content_type", *by)))
    unknown = [column for column in columns if column not in rows.column_names]
    if detector.label_column not in rows.column_names:
        raise UsageError(
            f"{detector.name}: expected the column {detector.label_column}, whose classes the model tells apart, "
            f"among {', '.join(rows.column_names)}"
        )
    if unknown:
        raise UsageError(f"--by: no column {', '.join(unknown)}; the dataset has {', '.join(rows.column_names)}")
    results = evaluate_rows(
        _undecoded(rows),
        detector,
        track=detector.track,
        names=detector.names,
        label_column=detector.label_column,
        batch_size=batch_size,
        total=len(rows),
        by=columns,
        seed=seed,
        progress=progress,
        equalize=equalize,
        crop_size=int(detector.processor.crop_size["height"]),
    )
    config = detector.model.config
    results.model = {
        "name": Path(detector.name).resolve().name if Path(detector.name).is_dir() else detector.name,
        "backbone": config.backbone,
        "stem_stride": config.stem_stride,
        "trained_on": config.trained_on,
        "dtype": detector.dtype,
        "compiled": detector.compiled,
        "device": detector.model.device.type,
        "torch": metadata.version("torch"),
    }
    results.dataset = dataset_record(dataset, rows, split)
    results.write(target)
    figure = detection_figure if detector.track is Track.DETECTION else identification_figure
    save_figure(figure(results), target.with_suffix(".png"))
    return results


def _undecoded(rows: datasets.Dataset) -> Iterator[dict[str, Any]]:
    """Rows with class names and the image still as bytes, so that one broken image costs one row."""
    features = rows.features
    for row in rows.cast_column("image", datasets.Image(decode=False)):
        yield with_names(row, features)


def summary(results: Results) -> str:
    """A results file as a few lines of text: headline metrics with 95 % intervals, then the break-downs."""
    dataset = results.dataset
    lines = [f"{results.track} on {dataset.get('name', '?')}/{dataset.get('split', '?')}: {results.n:,} images"]
    lines += [f"  {name:<28}{interval_text(results.metrics.get(name))}" for name in _HEADLINES]
    majority = results.baselines.get("majority", {})
    if majority:
        lines.append(f"  {'majority baseline accuracy':<28}{majority['accuracy']:.3f}")
    for column, values in results.by.items():
        lines.append(f"  by {column}:")
        for value, facts in values.items():
            metrics = facts["metrics"]
            metric = next((metrics[m] for m in ("balanced_accuracy", "accuracy") if m in metrics), None)
            lines.append(f"    {value:<26}{interval_text(metric)}  n={facts['n']}")
    return "\n".join(lines)
