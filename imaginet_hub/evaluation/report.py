"""From rows of a dataset and a prediction function to one results file. No model and no torch in here.

A results file is a JSON object of `results.schema.json` (beside this module; version 2), with these keys in this
order; what is undefined (NaN) is null:

- `schema_version`: 2.
- `track`: "detection" or "identification"; `names`: its classes, in the order of the scores.
- `model`, `dataset`: objects that the caller fills (name, kind, fingerprint, split, ...).
- `preprocessing`: `crop_size` and `resize` (pixels or null) and `equalize` (such as "jpeg:90", or null), applied
  before prediction.
- `threshold`: lowest score called synthetic (detection), else null.
- `bootstrap`: `n_resamples`, `confidence`, `seed` of every interval.
- `n`: rows measured; `class_counts`: {name: rows}.
- `skipped`: rows that could not be read, [{"row", "path", "reason"}]; they are not part of `n`.
- `unknown_classes`: {class: rows} whose class is none of `names` (identification); not part of `n` either.
- `unknown`: how well these rows are told from the known ones: {"score", "n_known", "n_unknown", "auroc"}, or null.
- `metrics`: {metric: {"value", "low", "high"}}; `recall`: {name: {"value", "low", "high"}}.
- `confusion`: one list per true class, rows answered with each class, both in the order of `names`.
- `baselines`: {"majority": {"class", "accuracy", "balanced_accuracy"}}, what naming the largest class always gives.
- `by`: {column: {value: {"n", "metrics", ...}}}; detection adds "n_real" and "n_synthetic". A generator is measured
  against all real rows.
- `protocols`: both protocols side by side (see `protocols`), or null; `comparison`: with another detector (see
  `comparison`), or null.
- `speed`: of the network, beside another in the same run (see `inference.speed`), or null.
- `software`: {package: version}.
- `per_image`: [{"path", "label", "scores", "columns"}] in row order, or null.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm.auto import tqdm

from imaginet_hub.data.images import from_row, read_bytes
from imaginet_hub.errors import DataNotFoundError, ImageError, UsageError
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.detection import detection_report
from imaginet_hub.evaluation.identification import identification_report, unknown_auroc
from imaginet_hub.evaluation.mistakes import Mistakes
from imaginet_hub.evaluation.predictions import PredictionStore
from imaginet_hub.evaluation.schema import validate
from imaginet_hub.labels import Origin, Track
from imaginet_hub.perturbations import fixed_crop, jpeg, resized_square, webp

__all__ = ["SCHEMA_VERSION", "Predict", "Results", "evaluate_rows", "interval_text", "software"]

SCHEMA_VERSION = 2

#: RGB images in, probabilities (images, classes) out. A column more says how unlike all classes an image is.
Predict = Callable[[Sequence[Image.Image]], NDArray[Any]]

#: What reading an image may raise: our own error, Pillow's and the system's (Pillow reports broken PNG chunks as
#: SyntaxError, and its bomb error is no OSError).
_UNREADABLE = (ImageError, OSError, SyntaxError, Image.DecompressionBombError)

_ENCODERS = {"jpeg": jpeg, "webp": webp}

#: What can change a score or an interval.
_SOFTWARE = ("imaginet_hub", "numpy", "pillow", "datasets", "torch", "transformers", "timm")

#: Batches that are read and decoded ahead of the prediction.
_AHEAD = 2


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
    unknown: dict[str, Any] | None = None
    protocols: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None
    software: dict[str, str] = field(default_factory=dict)
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
            *("skipped", "unknown_classes", "unknown", "metrics", "recall", "confusion", "baselines", "by"),
            *("protocols", "comparison", "speed", "software", "per_image"),
        )
        content = {"schema_version": SCHEMA_VERSION} | {key: getattr(self, key) for key in order}
        return _plain(content if per_image else content | {"per_image": None})

    def write(self, path: str | os.PathLike[str], *, per_image: bool = True) -> None:
        """Write the results file: completely or not at all. Parent folders are created.

        Args:
            path: where to.
            per_image: whether to keep the score of every image.

        Raises:
            UsageError: something in it is not as the schema says.
            MissingExtraError: jsonschema is not installed.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = self.to_json(per_image=per_image)
        validate(content)
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
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
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(f"{path}: expected the JSON that `imaginet evaluate` writes ({error})") from error
        try:
            return cls.from_json(content)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """The results of a results file's content; see `to_json`.

        Raises:
            UsageError: it is not a results file of this version.
        """
        version = content.get("schema_version") if isinstance(content, Mapping) else None
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"expected a results file of schema version {SCHEMA_VERSION}, found version {version}: "
                "evaluate again with this release"
            )
        validate(content)
        return cls(**{key: value for key, value in content.items() if key != "schema_version"})

    def check_scores(self) -> None:
        """Check that the figures are those that the scores of single images give, where the file has these.

        Checked are `n`, `class_counts`, `confusion`, `baselines` and the values in `metrics`, `recall` and `by`. What
        cannot be checked: all of a file without `per_image`; the ends of intervals, which depend on numpy's random
        numbers; `protocols`, which need upstream's lists; `unknown`, `comparison` and `speed`, whose rows are not in
        the file; and whether the scores are the model's.

        Raises:
            UsageError: a figure that differs; names it.
        """
        if not self.per_image:
            return
        found = _plain(
            _report(
                Track(self.track),
                self.names,
                [image["label"] for image in self.per_image],
                np.array([image["scores"] for image in self.per_image], dtype=np.float64),
                {column: [image["columns"].get(column, "(none)") for image in self.per_image] for column in self.by},
                0.5 if self.threshold is None else self.threshold,
                n_resamples=1,
            )
        )
        for key in ("n", "class_counts", "confusion", "baselines", "metrics", "recall", "by"):
            different = _difference(getattr(self, key), found[key], key)
            if different is not None:
                where, said, is_ = different
                raise UsageError(
                    f"results: {where}: expected {is_}, which the scores of its images give, got {said}; the file was "
                    "changed: evaluate again"
                )

    def _repr_html_(self) -> str:
        """What a notebook shows: a table of metrics with their intervals, and of both protocols' means."""
        columns = {f"all {self.n:,} rows": self.metrics}
        if self.protocols:
            for protocol in ("paper", "clean"):
                columns[f"protocol {protocol}"] = self.protocols[protocol]["by"]["generator_family"]["mean"]
        where = f"{self.dataset.get('name', '?')}/{self.dataset.get('split', '?')}"
        heads = "".join(f"<th>{html.escape(title)}</th>" for title in ("metric", *columns))
        rows = "".join(
            f"<tr><td>{html.escape(metric.replace('_', ' '))}</td>"
            + "".join(f"<td>{html.escape(interval_text(part.get(metric)))}</td>" for part in columns.values())
            + "</tr>"
            for metric in self.metrics
        )
        caption = html.escape(f"{self.track} by {self.model.get('name', '?')} on {where}")
        return (
            f"<table><caption>{caption}; value [{self.bootstrap['confidence']:.0%} interval]</caption>"
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        )


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
    resize: int | None = None,
    num_workers: int = 0,
    store: PredictionStore | None = None,
    mistakes: Mistakes | None = None,
    digests: set[str] | None = None,
) -> Results:
    """Measure any prediction function on labelled rows.

    Rows are read one after the other, and some batches of images are held at a time. A row whose image cannot be read
    is left out and listed. Rows of a class that the model does not know are left out of the metrics and counted, and
    the AUROC says how well its scores tell them from the others.

    Args:
        rows: mappings with `image` (a PIL image of any mode, or `{"bytes", "path"}` as a datasets row has it before
            decoding), the class as a *name* in `label` (detection) or `generator_family` (identification), each
            column of `by`, and `path` where known. Broken images are survived when they are looked up or decoded, not
            when the iteration itself fails: for datasets, pass the image column with `decode=False`.
        predict: (images) RGB to (images, classes) probabilities in [0, 1], in the order of `names`. For identification
            there may be one column more, a finite score of how unlike all classes an image is; without it that score
            is 1 less the highest probability.
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
        resize: make the square in the middle of every image this many pixels wide (Lanczos), before the crop, so that
            its size cannot speak for its label.
        num_workers: threads that read and decode ahead of the prediction; 0 for none. The results are the same.
        store: predictions that are there already are taken from it, and new ones added, so that a run that was stopped
            goes on. Only for images given as bytes or paths.
        mistakes: is given the mistakes, by generator where `by` has that column, else by class.
        digests: is given the SHA-256 of every file that was measured, of images given as bytes or paths.

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
    if batch_size < 1 or num_workers < 0:
        raise UsageError(
            f"expected batch_size of 1 or more and num_workers of 0 or more, got {batch_size} and {num_workers}"
        )
    if not 0 <= threshold <= 1:
        raise UsageError(f"expected a threshold in [0, 1], got {threshold}")
    bootstrap = Bootstrap(n_resamples=n_resamples, seed=seed)
    hashed = store is not None or digests is not None
    look = partial(_looked_at, prepare=_preparation(crop_size, resize, equalize), store=store, hashed=hashed)
    wanted = _wanted(rows, track, names, label_column or track.label_column, by)

    skipped: list[dict[str, Any]] = []
    found: list[_Row] = []
    scores: list[NDArray[np.float64]] = []
    waiting: list[tuple[int, Image.Image, str | None]] = []

    def predict_waiting() -> None:
        if waiting:
            answers = _predicted(predict, [image for _, image, _ in waiting], len(names), track)
            if store is not None:
                store.add([digest for _, _, digest in waiting], answers)
            for (place, image, _), answer in zip(waiting, answers, strict=True):
                scores[place] = answer
                tell(found[place], answer, lambda image=image: image)  # type: ignore[misc]
            waiting.clear()

    def tell(row: _Row, answer: NDArray[np.float64], image: Callable[[], Image.Image]) -> None:
        if mistakes is not None and row.name in names:
            _offer(mistakes, row, answer[: len(names)], names, track, threshold, image)

    bar = tqdm(total=total, unit="image", disable=not progress)
    with bar:
        for row, seen in _ahead(wanted, look, num_workers, _AHEAD * batch_size):
            bar.update(1)
            if isinstance(seen.error, Exception):
                reason = str(seen.error) or type(seen.error).__name__
                skipped.append({"row": row.number, "path": row.path, "reason": reason})
                continue
            found.append(row._replace(value=None))
            if digests is not None and seen.digest is not None:
                digests.add(seen.digest)
            if seen.scores is not None and store is not None:
                store.reused += 1
                scores.append(seen.scores)
                tell(row, seen.scores, lambda value=row.value: look(value, store=None).image)  # type: ignore[misc]
                continue
            scores.append(np.empty(0))
            waiting.append((len(scores) - 1, seen.image, seen.digest))
            if len(waiting) == batch_size:
                predict_waiting()
        predict_waiting()

    known = [place for place, row in enumerate(found) if row.name in names]
    strangers = Counter(row.name for row in found if row.name not in names)
    if not known:
        raise UsageError(
            f"expected rows to measure, got none: {len(skipped)} unreadable, {strangers.total()} of classes other "
            f"than {', '.join(names)}"
        )
    if len({len(row) for row in scores}) > 1:
        raise UsageError("predict: expected one number of columns for all images, got several")
    every = np.stack(scores)
    probabilities = every[known, : len(names)]
    measured = [found[place] for place in known]
    groups = {column: [row.columns[column] for row in measured] for column in by}
    options = dataclasses.asdict(bootstrap)
    report = _report(track, names, [row.name for row in measured], probabilities, groups, threshold, **options)
    if track is Track.IDENTIFICATION and strangers:
        report["unknown"] = _unknown(every, np.isin(np.arange(len(found)), known), len(names), bootstrap)
    per_image = [
        {"path": row.path, "label": row.name, "scores": values, "columns": row.columns}
        for row, values in zip(measured, probabilities.tolist(), strict=True)
    ]
    return Results(
        track=str(track),
        names=[str(name) for name in names],
        preprocessing={"crop_size": crop_size, "resize": resize, "equalize": equalize},
        bootstrap=options,
        skipped=skipped,
        unknown_classes=dict(sorted(strangers.items())),
        software=software(),
        per_image=per_image,
        **_plain(report),
    )


def _report(
    track: Track,
    names: Sequence[str],
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    groups: Mapping[str, Sequence[str]],
    threshold: float,
    **options: Any,
) -> dict[str, Any]:
    """The figures of a results file that rows of known classes and their probabilities give."""
    labels = np.array([names.index(name) for name in classes])
    if track is Track.IDENTIFICATION:
        return identification_report(labels, probabilities, names, groups, **options)
    column = names.index(Origin.SYNTHETIC)
    report = detection_report(labels == column, probabilities[:, column], groups, threshold=threshold, **options)
    counts = {str(origin): report.pop(f"n_{origin}") for origin in Origin}
    # The report has real first; the file keeps the caller's order.
    position = [tuple(Origin).index(Origin(name)) for name in names]
    report["confusion"] = [[report["confusion"][i][j] for j in position] for i in position]
    report["class_counts"] = {name: counts[name] for name in names}
    report["threshold"] = float(threshold)
    return report


def _difference(said: Any, found: Any, where: str) -> tuple[str, Any, Any] | None:
    """Where a figure first differs, what it is said to be, and what it is; ends of intervals are not looked at."""
    if isinstance(said, Mapping) and isinstance(found, Mapping):
        keys = [key for key in said if key not in ("low", "high")]
        pairs = [(said[key], found.get(key), f"{where}.{key}") for key in keys]
    elif isinstance(said, list) and isinstance(found, list) and len(said) == len(found):
        pairs = [(*pair, f"{where}[{number}]") for number, pair in enumerate(zip(said, found, strict=True))]
    elif isinstance(said, float) and isinstance(found, int | float):
        return None if math.isclose(said, found, rel_tol=1e-6, abs_tol=1e-9) else (where, said, found)
    else:
        return None if said == found else (where, said, found)
    return next((found for pair in pairs if (found := _difference(*pair)) is not None), None)


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


class _Row(NamedTuple):
    """What is known of a row without its image."""

    number: int
    path: str
    name: str
    columns: dict[str, str]
    value: Any


class _Seen(NamedTuple):
    """What a look at an image gave: its scores, if they are known already, or itself, or an error."""

    digest: str | None = None
    scores: NDArray[np.float64] | None = None
    image: Any = None
    error: Exception | None = None


def software() -> dict[str, str]:
    """The versions of what can change a score or an interval, where installed."""
    installed = {}
    for name in _SOFTWARE:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _wanted(
    rows: Iterable[Mapping[str, Any]], track: Track, names: Sequence[str], label_column: str, by: Sequence[str]
) -> Iterator[_Row]:
    """Rows, checked; `value` is what the column image holds, or the error that looking it up raised."""
    shared: dict[str, str] = {}  # one copy of each column's values
    for number, row in enumerate(rows):
        _check_columns(row, ("image", label_column, *by), number)
        name = _class_name(row, label_column, number)
        if track is Track.DETECTION and name not in names:
            raise UsageError(f"row {number}: expected a label among {tuple(names)}, got {name!r}")
        path = str(row.get("path") or f"row {number}")
        texts = ((column, _text(row, column)) for column in by)
        columns = {column: shared.setdefault(text, text) for column, text in texts}
        try:
            value = row["image"]
        except _UNREADABLE as error:  # decoded when it is looked up
            value = error
        yield _Row(number, path, shared.setdefault(name, name), columns, value)


def _ahead(
    rows: Iterator[_Row], look: Callable[[Any], _Seen], num_workers: int, most: int
) -> Iterator[tuple[_Row, _Seen]]:
    """Rows in order with a look at each, by threads that are at most so many rows ahead."""
    if num_workers == 0:
        for row in rows:
            yield row, look(row.value)
        return
    pool = ThreadPoolExecutor(num_workers)
    under_way: deque[tuple[_Row, Future[_Seen]]] = deque()
    try:
        for row in rows:
            under_way.append((row, pool.submit(look, row.value)))
            if len(under_way) > most:
                first, future = under_way.popleft()
                yield first, future.result()
        for first, future in under_way:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _looked_at(
    value: Any, *, prepare: Callable[[Any], Image.Image], store: PredictionStore | None, hashed: bool
) -> _Seen:
    if isinstance(value, Exception):
        return _Seen(error=value)
    try:
        digest = None
        if hashed and isinstance(value, Mapping):
            data = value.get("bytes")
            if data is None and value.get("path"):
                data = read_bytes(value["path"])
                value = {"bytes": data, "path": value["path"]}
            if data is not None:
                digest = hashlib.sha256(data).hexdigest()
                scores = store.get(digest) if store is not None else None
                if scores is not None:
                    return _Seen(digest, scores)
        return _Seen(digest, image=prepare(value))
    except _UNREADABLE as error:
        return _Seen(error=error)


def _offer(
    mistakes: Mistakes,
    row: _Row,
    probabilities: NDArray[np.float64],
    names: Sequence[str],
    track: Track,
    threshold: float,
    image: Callable[[], Image.Image],
) -> None:
    if track is Track.DETECTION:
        synthetic = probabilities[names.index(Origin.SYNTHETIC)] >= threshold
        answer = names.index(Origin.SYNTHETIC if synthetic else Origin.REAL)
    else:
        answer = int(probabilities.argmax())
    right = names.index(row.name)
    if answer != right:
        group = row.columns.get("generator", row.name)
        likely = float(probabilities[answer])
        mistakes.offer(group, float(probabilities[right]), row.path, row.name, names[answer], likely, image)


def _unknown(
    scores: NDArray[np.float64], known: NDArray[np.bool_], n_classes: int, bootstrap: Bootstrap
) -> dict[str, Any]:
    """How well rows of other classes are told from those of the classes."""
    given = scores.shape[1] > n_classes
    unlike = scores[:, n_classes] if given else 1 - scores.max(axis=1)
    return {
        "score": "distance" if given else "1 - highest probability",
        "n_known": int(known.sum()),
        "n_unknown": int((~known).sum()),
        "auroc": unknown_auroc(known, unlike, bootstrap=bootstrap),
    }


def _preparation(crop_size: int | None, resize: int | None, equalize: str | None) -> Callable[[Any], Image.Image]:
    """What happens to an image before prediction; options are checked here, before the first row."""
    for name, pixels in (("crop_size", crop_size), ("resize", resize)):
        if pixels is not None and pixels < 1:
            raise UsageError(f"expected {name} of 1 pixel or more, got {pixels}")
    encoding, _, quality = (equalize or "").partition(":")
    if equalize is not None and not (encoding in _ENCODERS and quality.isdecimal() and 1 <= int(quality) <= 100):
        raise UsageError(f'expected equalize as "jpeg:QUALITY" or "webp:QUALITY", quality 1 to 100, got {equalize!r}')

    def prepare(image: Any) -> Image.Image:
        rgb = from_row(image)
        if resize is not None:
            rgb = resized_square(rgb, resize)
        if crop_size is not None:
            rgb = fixed_crop(rgb, crop_size)
        return rgb if equalize is None else _ENCODERS[encoding](rgb, int(quality))

    return prepare


def _predicted(predict: Predict, images: list[Image.Image], n_classes: int, track: Track) -> NDArray[np.float64]:
    scores = np.asarray(predict(images), dtype=np.float64)
    more = track is Track.IDENTIFICATION and scores.shape == (len(images), n_classes + 1)
    if scores.shape != (len(images), n_classes) and not more:
        raise UsageError(f"predict: expected an array of shape {(len(images), n_classes)}, got {scores.shape}")
    probabilities = scores[:, :n_classes]
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise UsageError(
            f"predict: expected probabilities in [0, 1], got values from {probabilities.min()} to "
            f"{probabilities.max()}: apply a softmax to logits, and look for the cause of NaN"
        )
    if more and not np.isfinite(scores).all():
        raise UsageError("predict: expected finite scores of how unlike the classes images are, got NaN or infinity")
    return scores
