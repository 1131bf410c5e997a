"""The shortcut audit of a dataset, with a detector if one is named, and its pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imaginet_hub.data.images import from_row
from imaginet_hub.data.loading import open_split, splits_of
from imaginet_hub.data.progress import progress_bar
from imaginet_hub.errors import ImageError, UsageError, require
from imaginet_hub.evaluation.audit import audit, write_audit
from imaginet_hub.evaluation.report import interval_text
from imaginet_hub.evaluation.spectra import MeanSpectra, Spectrum
from imaginet_hub.inference.contract import load_measurable
from imaginet_hub.labels import Track

__all__ = ["audit_dataset", "audit_summary"]

#: Of each generator; means of more look the same.
_SPECTRUM_IMAGES = 100


def audit_dataset(
    dataset: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    splits: Sequence[str] | None = None,
    limit: int | None = None,
    labels: Mapping[str, str] | None = None,
    batch_size: int = 32,
    num_workers: int | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    progress: bool = True,
    show: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Audit a dataset, and write OUT/audit.json and pictures, once all is known.

    Args:
        dataset: a built folder, a Hub id, a folder of images with its annotations, or "mini".
        out: folder to write into.
        model, labels, device, dtype, compile: a detector of real against synthetic to measure too; see
            `contract.load_measurable`.
        splits, limit, batch_size, num_workers, seed: see `evaluation.audit.audit`.
        progress: show bars.
        show: is told of the detector and of what its classes were taken for.

    Returns:
        The audit, as written.

    Raises:
        ModelError, DataNotFoundError, UsageError: what was asked for cannot be used.
    """
    require("eval", "matplotlib", "sklearn")
    target = Path(out).expanduser()
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {target} cannot be made ({error}); choose another folder") from error
    detector = None
    if model is not None:
        detector = load_measurable(
            model, labels=labels, device=device, dtype=dtype, compile=compile, batch_size=batch_size
        )
        if detector.track is not Track.DETECTION:
            raise UsageError(f"--model: expected a detector of real against synthetic, got classes {detector.names}")
        if show is not None:
            show(f"{detector.name}: {detector.how}")
    chosen = splits_of(dataset) if splits is None else splits
    report = audit(
        dataset,
        predict=detector.predict if detector else None,
        names=detector.names if detector else None,
        crop_size=detector.crop_size if detector else 256,
        batch_size=batch_size,
        seed=seed,
        splits=chosen,
        num_workers=num_workers,
        progress=progress,
        limit=limit,
    )
    spectra = _spectra(dataset, chosen, progress)
    try:
        write_audit(report, target, spectra=spectra)
    except OSError as error:
        raise UsageError(
            f"--out: {target} cannot be written ({error}); make room, or choose another folder"
        ) from error
    return report


def _spectra(dataset: str | os.PathLike[str], splits: Sequence[str], progress: bool) -> dict[str, Spectrum]:
    """Of the first images of each generator; what cannot be read was counted before."""
    spectra = MeanSpectra()
    left: dict[str, int] = {}
    for split in splits:
        rows = open_split(dataset, split)
        column = "generator" if "generator" in rows.features else "label"
        groups = rows.column(column)
        for group in groups:
            left.setdefault(str(group), _SPECTRUM_IMAGES)
        wanted = {group: min(left[group], groups.count(group)) for group in dict.fromkeys(map(str, groups))}
        bar = progress_bar(total=sum(wanted.values()), desc=f"Spectra of {split}", unit="img", disable=not progress)
        with bar:
            for row in rows:
                group = str(row[column])
                if not any(wanted.values()):
                    break
                if not wanted[group]:
                    continue
                wanted[group] -= 1
                left[group] -= 1
                bar.update()
                try:
                    spectra.add(group, from_row(row["image"]))
                except ImageError:
                    continue
    return spectra.result()


def audit_summary(report: Mapping[str, Any]) -> str:
    """What an audit found, as text."""
    counts = report["counts"]
    lines = [
        f"{report['dataset']['name']}: {counts['n']:,} images, {counts['n_real']:,} real and "
        f"{counts['n_synthetic']:,} synthetic"
    ]
    if counts["unreadable"]:
        lines[0] += f"; {counts['unreadable']:,} could not be read and are listed in audit.json"
    findings = report["verdict"]["findings"]
    lines += [f"  {finding['text']}" for finding in findings] or ["  nothing beyond chance was found"]
    if report["verdict"]["baseline"]:
        lines.append(f"Quote this beside any score: {report['verdict']['baseline']['text']}")
    if report["model"]:
        lines.append("The detector:")
        for name, variant in report["model"]["variants"].items():
            metrics = variant["metrics"]
            lines.append(
                f"  {name:<16}balanced accuracy {interval_text(metrics['balanced_accuracy'])}, AUC "
                f"{interval_text(metrics['auc'])}"
            )
    return "\n".join(lines)
