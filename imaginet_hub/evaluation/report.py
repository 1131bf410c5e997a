"""From rows of a dataset and a prediction function to one results file. No model and no torch in here.

A results file is a JSON object, version 1, with these keys in this order; what is undefined (NaN) is null:

- `schema_version`: 1.
- `track`: "detection" or "identification"; `names`: its classes, in the order of the scores.
- `model`, `dataset`: objects that the caller fills (name, revision, fingerprint, split, ...).
- `preprocessing`: `crop_size` (pixels or null) and `equalize` (such as "jpeg:90", or null), applied before prediction.
- `threshold`: lowest score called synthetic (detection), else null.
- `bootstrap`: `n_resamples`, `confidence`, `seed` of every interval.
- `n`: rows measured; `class_counts`: {name: rows}.
- `skipped`: rows that could not be read, [{"row", "path", "reason"}]; they are not part of `n`.
- `unknown_classes`: {class: rows} whose class is none of `names` (identification); not part of `n` either.
- `metrics`: {metric: {"value", "low", "high"}}; `recall`: {name: {"value", "low", "high"}}.
- `confusion`: one list per true class, rows answered with each class, both in the order of `names`.
- `baselines`: {"majority": {"class", "accuracy", "balanced_accuracy"}}, what naming the largest class always gives.
- `by`: {column: {value: {"n", "metrics", ...}}}; detection adds "n_real" and "n_synthetic". A generator is measured
  against all real rows.
- `per_image`: [{"path", "label", "scores", "columns"}] in row order, or null.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from imaginet_hub.data.images import from_row
from imaginet_hub.errors import DataNotFoundError, ImageError, UsageError
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.detection import detection_report
from imaginet_hub.evaluation.identification import identification_report
from imaginet_hub.labels import Origin, Track
from imaginet_hub.perturbations import fixed_crop, jpeg, webp

__all__ = ["SCHEMA_VERSION", "Predict", "Results", "evaluate_rows", "interval_text"]

SCHEMA_VERSION = 1

#: RGB images in, probabilities (images, classes) out.
Predict = Callable[[Sequence[Image.Image]], NDArray[Any]]

#: What reading an image may raise: our own error, Pillow's and the system's (Pillow reports broken PNG chunks as
#: SyntaxError, and its bomb error is no OSError).
_UNREADABLE = (ImageError, OSError, SyntaxError, Image.DecompressionBombError)

_ENCODERS = {"jpeg": jpeg, "webp": webp}


@dataclass(kw_only=True)
class Results:
    """What an evaluation found; the attributes are the keys of the results file (see the module's description)."""

    track: str
    names: list[str]
    n: int
    class_counts: dict[str, int]
    metrics: dict[str, dict[str, float | None]]
    recall: dict[str, dict[str, float | None]]
    confusion: list[list[int]]
    baselines: dict[str, dict[str, Any]]
    by: dict[str, dict[str, dict[str, Any]]]
    preprocessing: dict[str, Any]
    bootstrap: dict[str, Any]
    threshold: float | None = None
    skipped: list[dict[str, Any]] = field(default_factory=list)
    unknown_classes: dict[str, int] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    per_image: list[dict[str, Any]] | None = None

    def to_json(self, *, per_image: bool = True) -> dict[str, Any]:
        """The results file as an object that `json` can write.

        Args:
            per_image: whether to keep the score of every image.
        """
        order = (
            *("track", "names", "model", "dataset", "preprocessing", "threshold", "bootstrap", "n", "class_counts"),
            *("skipped", "unknown_classes", "metrics", "recall", "confusion", "baselines", "by", "per_image"),
        )
        content = {"schema_version": SCHEMA_VERSION} | {key: getattr(self, key) for key in order}
        return _plain(content if per_image else content | {"per_image": None})

    def write(self, path: str | os.PathLike[str], *, per_image: bool = True) -> None:
        """Write the results file: completely or not at all. Parent folders are created.

        Args:
            path: where to.
            per_image: whether to keep the score of every image.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(per_image=per_image), indent=1, ensure_ascii=False, allow_nan=False)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a results file.

        Raises:
            DataNotFoundError: there is no such file.
            UsageError: it is not a results file of this version.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataNotFoundError(f"{path}: expected a results file, found none") from error
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UsageError(f"{path}: expected the JSON that `imaginet evaluate` writes ({error})") from error
        version = content.pop("schema_version", None) if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{path}: expected a results file of schema version {SCHEMA_VERSION}, found version {version}: "
                "evaluate again with this release"
            )
        known = {entry.name: entry.default for entry in dataclasses.fields(cls)}
        if content.keys() != known.keys():
            raise UsageError(
                f"{path}: not a complete results file; keys missing: {sorted(known.keys() - content.keys())}, "
                f"unknown: {sorted(content.keys() - known.keys())}"
            )
        return cls(**content)


def evaluate_rows(
    rows: Iterable[Mapping[str, Any]],
    predict: Predict,
    *,
    track: Track | str,
    names: Sequence[str],
    batch_size: int = 32,
    total: int | None = None,
    by: Sequence[str] = ("generator", "content_type"),
    label_column: str | None = None,
    threshold: float = 0.5,
    seed: int = 0,
    n_resamples: int = 1000,
    progress: bool = True,
    equalize: str | None = None,
    crop_size: int | None = None,
) -> Results:
    """Measure any prediction function on labelled rows.

    Rows are read one after the other, and one batch of images is held at a time. A row whose image cannot be read is
    left out and listed, and so is the class of a row that the model does not know.

    Args:
        rows: mappings with `image` (a PIL image of any mode, or `{"bytes", "path"}` as a datasets row has it before
            decoding), the class as a *name* in `label` (detection) or `generator_family` (identification), each
            column of `by`, and `path` where known. Broken images are survived when they are looked up or decoded, not
            when the iteration itself fails: for datasets, pass the image column with `decode=False`.
        predict: (images) RGB to (images, classes) probabilities in [0, 1], in the order of `names`.
        track: detection or identification.
        names: the classes of the scores; ("real", "synthetic") in either order for detection.
        batch_size: images per call of `predict`.
        total: number of rows, for the progress bar.
        by: columns to report by; their values are shown as text, missing ones as "(none)".
        label_column: the column of the class, where it is not the track's own.
        threshold: lowest score that is called synthetic (detection).
        seed: of the bootstrap.
        n_resamples: of the bootstrap.
        progress: whether to show a progress bar.
        equalize: "jpeg:QUALITY" or "webp:QUALITY": give every image the same last encoding, in memory, after the
            crop, so that the format of its file cannot speak for its label.
        crop_size: side in pixels of the fixed crop (see `perturbations.fixed_crop`); None leaves images as they are.

    Returns:
        The results, `model` and `dataset` left to the caller.

    Raises:
        UsageError: options that cannot be used, rows without the columns named, classes that are not names, a
            `predict` whose result has another shape or is no probability, or no row left to measure.
    """
    if track not in tuple(Track):
        raise UsageError(f"expected track {' or '.join(Track)}, got {track!r}")
    track = Track(track)
    if track is Track.DETECTION and sorted(names) != sorted(Origin):
        raise UsageError(f"detection: expected the class names {tuple(map(str, Origin))}, got {tuple(names)}")
    if batch_size < 1:
        raise UsageError(f"expected batch_size of 1 or more, got {batch_size}")
    bootstrap = Bootstrap(n_resamples=n_resamples, seed=seed)
    prepare = _preparation(crop_size, equalize)
    column_of_class = label_column or track.label_column

    skipped: list[dict[str, Any]] = []
    unknown: Counter[str] = Counter()
    measured: list[dict[str, Any]] = []
    batch: list[Image.Image] = []
    scores: list[NDArray[np.float64]] = []
    for number, row in enumerate(tqdm(rows, total=total, unit="image", disable=not progress)):
        _check_columns(row, ("image", column_of_class, *by), number)
        name = _class_name(row, column_of_class, number)
        if name not in names:
            if track is Track.DETECTION:
                raise UsageError(f"row {number}: expected a label among {tuple(names)}, got {name!r}")
            unknown[name] += 1
            continue
        path = str(row.get("path") or f"row {number}")
        try:
            batch.append(prepare(row["image"]))
        except _UNREADABLE as error:
            skipped.append({"row": number, "path": path, "reason": str(error) or type(error).__name__})
            continue
        measured.append({"path": path, "label": name, "columns": {column: _text(row, column) for column in by}})
        if len(batch) == batch_size:
            scores.append(_predicted(predict, batch, len(names)))
            batch = []
    if batch:
        scores.append(_predicted(predict, batch, len(names)))
    if not measured:
        raise UsageError(
            f"expected rows to measure, got none: {len(skipped)} unreadable, {unknown.total()} of classes other than "
            f"{', '.join(names)}"
        )

    probabilities = np.concatenate(scores)
    labels = np.array([names.index(entry["label"]) for entry in measured])
    groups = {column: [entry["columns"][column] for entry in measured] for column in by}
    options = dataclasses.asdict(bootstrap)
    if track is Track.DETECTION:
        column = names.index(Origin.SYNTHETIC)
        report = detection_report(labels == column, probabilities[:, column], groups, threshold=threshold, **options)
        counts = {str(origin): report.pop(f"n_{origin}") for origin in Origin}
        # The report has real first; the file keeps the caller's order.
        position = [tuple(Origin).index(Origin(name)) for name in names]
        report["confusion"] = [[report["confusion"][i][j] for j in position] for i in position]
        report["class_counts"] = {name: counts[name] for name in names}
        report["threshold"] = float(threshold)
    else:
        report = identification_report(labels, probabilities, names, groups, **options)
    per_image = [
        {"path": entry["path"], "label": entry["label"], "scores": values, "columns": entry["columns"]}
        for entry, values in zip(measured, probabilities.tolist(), strict=True)
    ]
    return Results(
        track=str(track),
        names=[str(name) for name in names],
        preprocessing={"crop_size": crop_size, "equalize": equalize},
        bootstrap=options,
        skipped=skipped,
        unknown_classes=dict(sorted(unknown.items())),
        per_image=per_image,
        **_plain(report),
    )


def interval_text(metric: Mapping[str, float | None] | None) -> str:
    """`{value, low, high}` as "0.912 [0.880, 0.941]"; without ends where there are none, "n/a" without a value."""
    if not metric or metric.get("value") is None:
        return "n/a"
    low, high = metric.get("low"), metric.get("high")
    ends = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{metric['value']:.3f}{ends}"


def _plain(value: Any) -> Any:
    """Copied containers, with None in place of NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(value)
    return value


def _check_columns(row: Mapping[str, Any], columns: Sequence[str], number: int) -> None:
    missing = [column for column in columns if column not in row]
    if missing:
        raise UsageError(f"row {number}: expected the columns {', '.join(missing)}, got only {', '.join(row)}")


def _class_name(row: Mapping[str, Any], column: str, number: int) -> str:
    name = str(row[column]) if isinstance(row[column], bool) else row[column]
    if not isinstance(name, str):
        raise UsageError(
            f"row {number}: expected a class name in column {column!r}, got {name!r}: "
            "turn ClassLabel integers into names first (ClassLabel.int2str)"
        )
    return str(name)


def _text(row: Mapping[str, Any], column: str) -> str:
    return "(none)" if row[column] is None else str(row[column])


def _preparation(crop_size: int | None, equalize: str | None) -> Callable[[Any], Image.Image]:
    """What happens to an image before prediction; options are checked here, before the first row."""
    if crop_size is not None and crop_size < 1:
        raise UsageError(f"expected crop_size of 1 pixel or more, got {crop_size}")
    encoding, _, quality = (equalize or "").partition(":")
    if equalize is not None and not (encoding in _ENCODERS and quality.isdecimal() and 1 <= int(quality) <= 100):
        raise UsageError(f'expected equalize as "jpeg:QUALITY" or "webp:QUALITY", quality 1 to 100, got {equalize!r}')

    def prepare(image: Any) -> Image.Image:
        rgb = from_row(image)
        if crop_size is not None:
            rgb = fixed_crop(rgb, crop_size)
        return rgb if equalize is None else _ENCODERS[encoding](rgb, int(quality))

    return prepare


def _predicted(predict: Predict, images: list[Image.Image], n_classes: int) -> NDArray[np.float64]:
    scores = np.asarray(predict(images), dtype=np.float64)
    if scores.shape != (len(images), n_classes):
        raise UsageError(f"predict: expected an array of shape {(len(images), n_classes)}, got {scores.shape}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise UsageError(
            f"predict: expected probabilities in [0, 1], got values from {scores.min()} to {scores.max()}: "
            "apply a softmax to logits, and look for the cause of NaN"
        )
    return scores
