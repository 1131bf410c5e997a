"""A detector and a dataset in, a results file and pictures out."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from imaginet_hub.data.images import read_bytes
from imaginet_hub.data.loading import RowStream, open_split, splits_of, track_of
from imaginet_hub.data.sources import IMAGINET
from imaginet_hub.data.upstream_lists import ProtocolLists, find_protocol_lists
from imaginet_hub.errors import AnnotationError, DataNotFoundError, FetchError, ImageError, UsageError, require
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.comparison import compare_results
from imaginet_hub.evaluation.export import check_dataset_id, eval_results, model_index, write_eval_results
from imaginet_hub.evaluation.figures import (
    comparison_figure,
    detection_figure,
    identification_figure,
    mistakes_figure,
    reliability_figure,
    roc_figure,
    save_figure,
)
from imaginet_hub.evaluation.mistakes import Mistakes
from imaginet_hub.evaluation.predictions import PredictionStore, predictions_folder
from imaginet_hub.evaluation.protocols import Scored, published_text, run_protocols, side_by_side
from imaginet_hub.evaluation.published import PublishedRow, published
from imaginet_hub.evaluation.report import Results, evaluate_rows, interval_text, software
from imaginet_hub.inference.contract import Measurable, load_measurable
from imaginet_hub.inference.detector import Detector
from imaginet_hub.inference.speed import measure_speed
from imaginet_hub.labels import Origin, Track

__all__ = ["DEFAULT_BY", "Preprocessing", "measure", "summary"]

#: Columns that results are broken down by wherever they are there.
DEFAULT_BY = {
    Track.DETECTION: ("generator_family", "generator", "content_type"),
    Track.IDENTIFICATION: ("generator", "content_type"),
}

#: Rows of each class that a detector is calibrated on, in the clean protocol, which brings no calibration.
CALIBRATION_ROWS = 500

_HEADLINES = {
    Track.DETECTION: ("balanced_accuracy", "auc", "accuracy", "eer", "tpr_at_fpr_1", "tpr_at_fpr_0_1", "ece"),
    Track.IDENTIFICATION: ("balanced_accuracy", "auc", "accuracy", "macro_f1", "ece"),
}

_FIGURES: dict[Track, dict[str, Callable[[Results], Any]]] = {
    Track.DETECTION: {"": detection_figure, "-roc": roc_figure, "-reliability": reliability_figure},
    Track.IDENTIFICATION: {"": identification_figure, "-reliability": reliability_figure},
}

_ENDINGS = ("-roc", "-reliability", "-mistakes", "-comparison")


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every image before a detector sees it; see `evaluation.report.evaluate_rows`.

    Attributes:
        crop_size: side of the fixed crop in pixels; None for what the detector says.
        resize: side that the middle square is resampled to first, or None.
        equalize: "jpeg:Q" or "webp:Q", or None.
    """

    crop_size: int | None = None
    resize: int | None = None
    equalize: str | None = None


def measure(
    model: Detector | Callable[..., Any] | str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    by: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    labels: Mapping[str, str] | None = None,
    threshold: float = 0.5,
    against: str | os.PathLike[str] | None = None,
    against_labels: Mapping[str, str] | None = None,
    annotations: str | os.PathLike[str] | None = None,
    calibrate_on: str | os.PathLike[str] | None = None,
    export: str | None = None,
    speed: bool = False,
    picture_format: str = "png",
    batch_size: int = 32,
    num_workers: int | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    cache: bool = True,
    progress: bool = True,
    show: Callable[[str], None] | None = None,
) -> Results:
    """Evaluate a detector on one split, under both protocols.

    Predictions are kept by the content of model, dataset and preprocessing (`evaluation.predictions`), so that a run
    which was stopped goes on, and one with other columns, seeds or protocols predicts nothing again.

    Args:
        model: see `contract.load_measurable`; its track decides what is measured.
        dataset: a built folder, a Hub id, a folder of images with its annotations, or "mini".
        out: results file (.json); the pictures get the same name, some with an ending.
        split: split to measure on.
        by: columns to break down by, beside generator and content type.
        preprocessing: by default the fixed crop that the detector takes, and nothing else.
        labels: what a pipeline's classes mean; see `contract.label_map`.
        threshold: lowest probability that is called synthetic.
        against: a second detector (measured on the same images), or the results file of one, to compare with.
        against_labels: what its classes mean, if it is a pipeline.
        annotations: folder of upstream's protocol lists; by default they are looked for beside the dataset and, for
            ImagiNet's test images, downloaded.
        calibrate_on: dataset whose train split the clean protocol calibrates a detector on which brings no
            calibration of its own; by default `dataset`.
        export: Hub id of the dataset; the results are also written for it beside `out`, as `.eval_results/*.yaml`
            and `NAME-model-index.yaml`.
        speed: also time the network beside a ResNet-50 (see `inference.speed`); for models of this package.
        picture_format: "png" or "svg".
        batch_size: images per forward pass.
        num_workers: threads that read and decode ahead; by default as many as cores, up to 4.
        n_resamples, seed: of the bootstrap intervals.
        device: torch device; a GPU if there is one by default.
        dtype, compile: see `Detector`; a loaded detector keeps its own.
        cache: keep predictions, and use those that are kept.
        progress: show a bar.
        show: is told what the user should know on the way: the detector, what its classes were taken for, predictions
            that were there already.

    Returns:
        The results, as written.

    Raises:
        ModelError, DataNotFoundError, UsageError: what was asked for cannot be used.
    """
    require("eval", "matplotlib", "jsonschema", "sklearn")
    target = _target(out)
    if export is not None:
        check_dataset_id(export)
    detector = load_measurable(
        model, labels=labels, device=device, dtype=dtype, compile=compile, batch_size=batch_size
    )
    if speed and detector.kind != "selfcon_resnet":
        raise UsageError(
            f"--speed: expected a model of this package, whose network can be timed, got a {detector.kind}"
        )
    rows = open_split(dataset, split, track_of(detector.label_column))
    if detector.label_column not in rows.features:
        raise UsageError(
            f"{detector.name}: expected the column {detector.label_column}, whose classes the model tells apart, "
            f"among {', '.join(rows.features)}"
        )
    unknown = [column for column in by if column not in rows.features or column == "image"]
    if unknown:
        raise UsageError(f"--by: no column {', '.join(unknown)}; the dataset has {', '.join(rows.features)}")
    columns = [column for column in dict.fromkeys((*DEFAULT_BY[detector.track], *by)) if column in rows.features]
    chosen = preprocessing or Preprocessing()
    workers = min(4, os.cpu_count() or 1) if num_workers is None else num_workers
    run = _Run(chosen, batch_size, workers, n_resamples, seed, threshold, cache, progress, show or (lambda _: None))
    run.show(f"{detector.name}: {detector.how}")
    # Whatever could be missing is looked for before the hours that predictions may take.
    protocols = detector.track is Track.DETECTION
    lists = _lists(rows, annotations, run) if protocols else None
    if protocols and not detector.calibrated:
        splits_of(calibrate_on or dataset)
    other = None if against is None else _other(against, against_labels, detector, device, dtype, batch_size, run)

    mistakes, digests = Mistakes(), set[str]()
    results = run.on(detector, rows, columns, mistakes, digests)
    if rows.meanings:
        run.show(f"labels were taken so: {', '.join(f'{own} = {meant}' for own, meant in rows.meanings.items())}")
    if protocols and all(results.class_counts.values()):
        train = None if detector.calibrated else _calibration_rows(calibrate_on or dataset, rows, digests)
        results.protocols = _protocols(detector, results, lists, train, run)
    if other is not None:
        results.comparison = compare_results(
            results, other if isinstance(other, Results) else run.on(other, rows, columns)
        )
    if speed:
        run.show("timing the network beside a ResNet-50")
        options: dict[str, Any] = {"device": device, "dtype": dtype, "compile": compile}
        results.speed = measure_speed(
            model if isinstance(model, Detector) else Detector.from_pretrained(cast(str, model), **options)
        )
    try:
        _write(results, target, picture_format, mistakes, export)
    except OSError as error:
        raise UsageError(
            f"--out: {target.parent} cannot be written ({error}); make room and run it again"
            + (": predictions are kept" if cache else "")
        ) from error
    return results


def _write(results: Results, target: Path, picture_format: str, mistakes: Mistakes, export: str | None) -> None:
    """The results file, then its pictures."""
    results.write(target)
    pictures = {ending: figure(results) for ending, figure in _FIGURES[Track(results.track)].items()}
    if mistakes.by_group():
        pictures["-mistakes"] = mistakes_figure(mistakes.by_group())
    if results.comparison is not None:
        pictures["-comparison"] = comparison_figure(results)
    for ending in ("", *_ENDINGS):
        picture = target.with_name(f"{target.stem}{ending}.{picture_format}")
        if ending in pictures:
            save_figure(pictures[ending], picture)
        else:
            picture.unlink(missing_ok=True)  # of an earlier run under this name
    if export is not None:
        _export(results, target, export)


def _export(results: Results, target: Path, dataset_id: str) -> None:
    """In the forms that the Hub reads, beside the results file; to be uploaded with the model."""
    content = results.to_json(per_image=False)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", target.stem).lstrip(".-") or "results"
    write_eval_results(target.parent, eval_results(content, dataset_id), name)
    index = {"model-index": model_index([content], [dataset_id], str(results.model["name"]))}
    text = yaml.safe_dump(index, sort_keys=False, allow_unicode=True)
    target.with_name(f"{target.stem}-model-index.yaml").write_text(text, encoding="utf-8")


def _target(out: str | os.PathLike[str]) -> Path:
    target = Path(out).expanduser()
    if target.suffix != ".json":
        raise UsageError(f"--out: expected a file name that ends in .json, got {target}")
    if target.is_dir():
        raise UsageError(f"--out: expected the name of a file, got the folder {target}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {target.parent} cannot be made ({error}); choose another folder") from error
    return target


@dataclass(frozen=True)
class _Run:
    """How detectors are run on rows, the same for all of an evaluation."""

    preprocessing: Preprocessing
    batch_size: int
    num_workers: int
    n_resamples: int
    seed: int
    threshold: float
    cache: bool
    progress: bool
    show: Callable[[str], None]

    def on(
        self,
        detector: Measurable,
        rows: RowStream | _Calibration,
        by: Sequence[str],
        mistakes: Mistakes | None = None,
        digests: set[str] | None = None,
    ) -> Results:
        record = rows.record()
        crop_size = self.preprocessing.crop_size or detector.crop_size
        given = {"crop_size": crop_size, "resize": self.preprocessing.resize, "equalize": self.preprocessing.equalize}
        store = self._store(detector, record, given)
        results = evaluate_rows(
            rows,
            detector.predict,
            track=detector.track,
            names=detector.names,
            label_column=detector.label_column,
            batch_size=self.batch_size,
            total=len(rows),
            by=by,
            threshold=self.threshold,
            seed=self.seed,
            n_resamples=self.n_resamples,
            progress=self.progress,
            num_workers=self.num_workers,
            store=store,
            mistakes=mistakes,
            digests=digests,
            **given,  # type: ignore[arg-type]
        )
        if store is not None and store.reused:
            self.show(f"{store.reused:,} predictions were there already, in {predictions_folder()}")
        named = {"name": detector.name, "kind": detector.kind, "fingerprint": detector.fingerprint}
        results.model = {**named, **detector.record}
        results.dataset = record
        return results

    def _store(
        self, detector: Measurable, dataset: Mapping[str, Any], preprocessing: Mapping[str, Any]
    ) -> PredictionStore | None:
        if not self.cache or detector.fingerprint is None:
            return None
        how = {key: detector.record.get(key) for key in ("dtype", "compiled", "device", "label_map")}
        key = {
            "model": {"fingerprint": detector.fingerprint, **how},
            "dataset": [dataset.get("fingerprint"), dataset.get("name"), dataset.get("split")],
            "preprocessing": dict(preprocessing),
            "software": software(),
        }
        return PredictionStore(key, len(detector.names) + detector.distances)


def _protocols(
    detector: Measurable, results: Results, lists: ProtocolLists | None, train: _Calibration | None, run: _Run
) -> dict[str, Any]:
    """Both protocols on the scores of an evaluation."""
    scored = None
    remarks = []
    if train is not None and len(train):
        run.show(f"calibrating on {len(train):,} rows of {train.rows.name}/{train.rows.split}, for the clean protocol")
        try:
            scored = _scored(run.on(detector, train, ()))
        except UsageError as error:  # such as a ROOT whose train images were never fetched
            run.show(f"the clean protocol goes without calibration: {error}")
            remarks.append("the training rows could not be used")
        seen = (detector.record.get("trained_on") or {}).get("fingerprint")
        if seen is not None and seen == train.record().get("fingerprint"):
            remarks.append("the detector was trained on the rows that it is calibrated with, and may be too sure")
    found = run_protocols(
        _scored(results),
        lists=lists,
        train=scored,
        calibrated=detector.calibrated,
        bootstrap=Bootstrap(n_resamples=run.n_resamples, seed=run.seed),
    )
    found["clean"]["remarks"] += remarks
    return found


def _scored(results: Results) -> Scored:
    entries = results.per_image or []
    position = results.names.index(Origin.SYNTHETIC)

    def column(name: str) -> list[str]:
        return [entry["columns"].get(name, "(none)") for entry in entries]

    return Scored(
        paths=[entry["path"] for entry in entries],
        labels=np.array([entry["label"] == Origin.SYNTHETIC for entry in entries], dtype=np.intp),
        scores=np.array([entry["scores"][position] for entry in entries]),
        families=column("generator_family"),
        generators=column("generator"),
        content_types=column("content_type"),
    )


def _lists(rows: RowStream, annotations: str | os.PathLike[str] | None, run: _Run) -> ProtocolLists | None:
    """Upstream's lists, for ImagiNet's images; where nobody named them, those that cannot be had are left out."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if annotations is not None:
        folder = Path(annotations).expanduser()
        found = find_protocol_lists(folder, store=folder, offline=True)
        if found is None:
            raise DataNotFoundError(f"--annotations: expected upstream's protocol lists in {folder}, found not all")
        return found
    if rows.record().get("corpus") != IMAGINET:
        return None
    folder, store = Path(rows.name).expanduser(), predictions_folder().parent / "annotations"
    try:
        return find_protocol_lists(folder if folder.is_dir() else None, store=store, offline=HF_HUB_OFFLINE)
    except (AnnotationError, FetchError) as error:
        run.show(f"the paper's protocol goes without upstream's lists: {error}")
        return None


class _Calibration:
    """Rows of a train split that the clean protocol calibrates on, as a stream: of each class at most so many.

    They are the first ones of a dataset that was built by this package, which are shuffled, and else chosen by a hash,
    so that rows in the order of their generators do no harm.

    Args:
        rows: the split.
        tested: SHA-256 of files that are tested on, which are left out.
        tested_rows: the rows that are tested on.
    """

    def __init__(self, rows: RowStream, tested: set[str], tested_rows: RowStream) -> None:
        self.rows, self._tested = rows, tested
        labels = rows.column("label")
        keys = self._keys(rows)
        taken = set(self._keys(tested_rows)) if keys and rows.name == tested_rows.name else set()
        taken |= {*tested}
        numbers = [n for n in range(len(labels)) if not keys or keys[n] not in taken]
        if not {"sha256", "calibration"} <= rows.features.keys():
            numbers.sort(key=lambda n: hashlib.sha256(f"calibration {keys[n] if keys else n}".encode()).digest())
        chosen: dict[str, list[int]] = {str(origin): [] for origin in Origin}
        for number in numbers:
            if len(chosen[labels[number]]) < CALIBRATION_ROWS:
                chosen[labels[number]].append(number)
        self._chosen = {number for some in chosen.values() for number in some}

    @staticmethod
    def _keys(rows: RowStream) -> list[str]:
        """What tells images apart, without reading them; empty where nothing does."""
        for column in ("sha256", "path"):
            if column in rows.features:
                values = rows.column(column)
                if None not in values:
                    return [str(value) for value in values]
        return []

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        last = max(self._chosen, default=-1)
        for number, row in enumerate(self.rows):
            if number > last:
                return
            if number in self._chosen and not self._is_tested(row["image"]):
                yield {**row, "path": row.get("path") or f"{self.rows.split} row {number}"}

    def _is_tested(self, image: Mapping[str, Any]) -> bool:
        try:
            data = image["bytes"] or read_bytes(image["path"] or "")
        except ImageError:  # said where it is decoded
            return False
        return hashlib.sha256(data).hexdigest() in self._tested

    def record(self) -> dict[str, Any]:
        return self.rows.record()


def _calibration_rows(
    dataset: str | os.PathLike[str], tested_rows: RowStream, tested: set[str]
) -> _Calibration | None:
    """Rows to calibrate on; None where there is no train split, or it is the one that is tested on."""
    if "train" not in splits_of(dataset):
        return None
    rows = open_split(dataset, "train")
    return None if rows.record() == tested_rows.record() else _Calibration(rows, tested, tested_rows)


def _other(
    against: str | os.PathLike[str],
    labels: Mapping[str, str] | None,
    detector: Measurable,
    device: str | None,
    dtype: str,
    batch_size: int,
    run: _Run,
) -> Results | Measurable:
    """The results file, or the detector, to compare with."""
    if os.fspath(against).endswith(".json"):
        return Results.read(against)
    second = load_measurable(against, labels=labels, device=device, dtype=dtype, batch_size=batch_size)
    if second.track is not detector.track or set(second.names) != set(detector.names):
        raise UsageError(
            f"--against: expected a detector of {', '.join(detector.names)}, got one of {', '.join(second.names)}"
        )
    run.show(f"{second.name}: {second.how}")
    return second


def summary(results: Results) -> str:
    """A results file as text: headline metrics with intervals, break-downs, protocols, comparison."""
    dataset = results.dataset
    lines = [f"{results.track} on {dataset.get('name', '?')}/{dataset.get('split', '?')}: {results.n:,} images"]
    for name in _HEADLINES[Track(results.track)]:
        lines.append(f"  {name:<28}{interval_text(results.metrics.get(name))}")
    majority = results.baselines.get("majority", {})
    if majority:
        lines.append(f"  {'majority baseline accuracy':<28}{majority['accuracy']:.3f}")
    for column, values in results.by.items():
        lines.append(f"  by {column}:")
        for value, facts in values.items():
            metrics = facts["metrics"]
            metric = next((metrics[m] for m in ("balanced_accuracy", "accuracy") if m in metrics), None)
            short = value if len(value) <= 60 else f"{value[:59]}…"
            lines.append(f"    {short:<25} {interval_text(metric)}  n={facts['n']}")
    if results.unknown:
        unknown = results.unknown
        lines.append(
            f"  unknown classes ({unknown['n_unknown']:,} images) told from known ones by {unknown['score']}: AUROC "
            f"{interval_text(unknown['auroc'])}"
        )
    if results.speed:
        speed = results.speed
        lines.append(
            f"  {speed['images_per_second']:.3g} images a second, {interval_text(speed['ratio'])} times as many as "
            f"{speed['yardstick']['name']} ({speed['device']}, {speed['dtype']}, {speed['threads']} threads)"
        )
    rows = _published(results)
    if results.protocols:
        lines += ["", side_by_side(results.protocols, rows).rstrip()]
    elif rows:
        lines += ["", published_text(rows)]
    if results.comparison:
        lines += ["", *_comparison_lines(results)]
    return "\n".join(lines)


def _published(results: Results) -> list[PublishedRow] | None:
    """What stands beneath a result on ImagiNet's test images."""
    if results.dataset.get("corpus") != IMAGINET:
        return None
    tables = ("3", "content", "generator") if results.track == Track.DETECTION else ("7",)
    return [row for table in tables for row in published(table=table)]


def _comparison_lines(results: Results) -> list[str]:
    comparison = results.comparison or {}
    other, mcnemar = comparison["other"], comparison["mcnemar"]
    return [
        f"{results.model.get('name')} less {other.get('name')}, on the same {comparison['n']:,} images:",
        *(f"  {name:<28}{interval_text(value)}" for name, value in comparison["differences"].items()),
        f"  McNemar: {mcnemar['only_a_right']:,} right by the first alone, {mcnemar['only_b_right']:,} by the second "
        f"alone, p = {mcnemar['p_value']:.2g}",
        *(f"  {remark}" for remark in comparison.get("remarks", ())),
    ]
