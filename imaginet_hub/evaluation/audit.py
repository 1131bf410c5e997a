"""The shortcut audit: how well real and synthetic images are told apart without looking at what they show.

An audit is a JSON object, version 1, with these keys; what is undefined is null, and an interval is
{"value", "low", "high"} (stratified bootstrap, see `bootstrap`):

- `schema_version`: 1.
- `dataset`: {"name", "splits": [record of each split]}; `options`: `seed`, `limit`, `n_resamples`, `confidence`.
- `counts`: `n`, `n_real`, `n_synthetic`, `unreadable`, and `by` {column: {value: {"n", "n_real", "n_synthetic"}}}.
- `unreadable`: rows that are left out of everything else, [{"split", "row", "path", "reason"}].
- `rules`: {rule: {"all", "by": {column: {value}}, "without": {content type}}} (see `RULES`), each part with `n_real`,
  `n_synthetic`, `share_real`, `share_synthetic` (rows where the rule holds), `balanced_accuracy` (interval; of calling
  synthetic where it holds, so a rule that holds for real images is below .5) and `informativeness`, max(b, 1 - b).
- `scalars`: {name: {"n_real", "n_synthetic", "auc" (interval; that higher means synthetic), "informativeness",
  "median": {label}, "by_format": {format: {"n_real", "n_synthetic", "auc", "median"}}, "histogram":
  {"edges", "real", "synthetic"}}} (rows; the outermost bins hold what lies beyond).
- `categoricals`: {name: {"of": "file" or "column", "categories", "balanced_accuracy" (interval; cross-validated, of
  naming the label that is commoner in the category for its number; a category never seen is called real),
  "largest": [{"value", "n_real", "n_synthetic"}]}}.
- `classifier`: {"metadata", "metadata_and_colours": {"features", "cross_validated", "by_source"}}; the last two are
  {"folds", "auc", "balanced_accuracy" (intervals), "roc": {"fpr", "tpr"}, "importance": {feature: loss of AUC when its
  values are shuffled}} or null. In `by_source` all images of a source are in one fold.
- `duplicates`: {"file" (equal bytes), "pixels" (equal RGB), "near"}: see `duplicates.describe_groups`.
- `model`: null, or {"names", "crop_size", "threshold", "variants": {variant: {"metrics": {metric: interval}}},
  "difference": {variant: {"balanced_accuracy", "auc"}}}: see `robustness.VARIANTS`; differences to `raw` on the same
  resamples.
- `verdict`: {"findings": [{"kind", "name", "strength", "text"}], strongest first; "baseline": {"name", "text",
  "balanced_accuracy"}, what to quote beside any score, or null}. A finding's interval, widened for as many questions
  as are asked (Bonferroni), stays `MARGIN` away from chance.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.data.images import open_image, read_bytes
from imaginet_hub.data.progress import progress_bar
from imaginet_hub.data.traits import COLOURS, METADATA, Traits, colours, perceptual_hash, thumbnail, traits
from imaginet_hub.errors import ImageError, UsageError, require
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.detection import Pair, pair_of
from imaginet_hub.evaluation.duplicates import describe_groups, exact_groups, near_groups
from imaginet_hub.evaluation.robustness import THRESHOLD, VARIANTS, Variants, metrics_of
from imaginet_hub.labels import Origin

if TYPE_CHECKING:
    from imaginet_hub.evaluation.spectra import Spectrum

__all__ = ["MARGIN", "RULES", "SCALARS", "SCHEMA_VERSION", "VARIANTS", "audit", "write_audit"]

SCHEMA_VERSION = 1

#: How far from chance an interval stays that is worth a finding.
MARGIN = 0.02

_BLOCKS = frozenset(("exif", "icc", "xmp", "c2pa", "iptc", "comment", "text"))

#: A yes or no that a file says; "synthetic" is called where it holds.
RULES: dict[str, Callable[[Traits], bool]] = {
    "sides_multiple_of_64": lambda t: t.width % 64 == 0 and t.height % 64 == 0,
    "sides_multiple_of_8": lambda t: t.width % 8 == 0 and t.height % 8 == 0,
    "square": lambda t: t.width == t.height,
    "is_png": lambda t: t.format == "PNG",
    "is_jpeg": lambda t: t.format == "JPEG",
    "is_webp": lambda t: t.format == "WEBP",
    "has_alpha": lambda t: t.alpha,
    "is_progressive": lambda t: t.progressive,
    "chroma_420": lambda t: t.subsampling == "4:2:0",
    "has_any_metadata": lambda t: not _BLOCKS.isdisjoint(t.metadata),
    **{f"has_{name}": lambda t, name=name: name in t.metadata for name in METADATA},  # type: ignore[misc]
}

#: Numbers of a file; those of its pixels are `data.traits.COLOURS`.
SCALARS: dict[str, Callable[[Traits], float]] = {
    "bits_per_pixel": lambda t: t.bits_per_pixel,
    "width": lambda t: t.width,
    "height": lambda t: t.height,
    "aspect_ratio": lambda t: t.width / t.height,
    "jpeg_quality": lambda t: math.nan if t.quality is None else t.quality,
}

_OF_FILES: dict[str, Callable[[Traits], str]] = {
    "format": lambda t: t.format,
    "quantisation": lambda t: t.quantisation or "none",
    "subsampling": lambda t: t.subsampling or "none",
    "coding": lambda t: f"{t.format} {t.coding}".strip(),
    "mode": lambda t: t.mode,
    "size": lambda t: f"{t.width} x {t.height}",
}
_COLUMNS = ("content_type", "group", "license", "source")

_FOLDS = 5
_BINS = 256  # of a scalar's values, for its interval
_MOST_CATEGORIES = 200  # of a feature, by their number; the others are one


def audit(
    dataset: str | os.PathLike[str] | Mapping[str, Iterable[Mapping[str, Any]]],
    *,
    predict: Callable[[Sequence[Image.Image]], NDArray[Any]] | None = None,
    names: Sequence[str] | None = None,
    crop_size: int = 256,
    batch_size: int = 32,
    seed: int = 0,
    splits: Sequence[str] | None = None,
    num_workers: int | None = None,
    progress: bool = True,
    limit: int | None = None,
    n_resamples: int = 1000,
) -> dict[str, Any]:
    """Read every image once, keep numbers of it, and ask what they say about its label.

    The report depends on the rows and the seed alone, not on the number of workers.

    Args:
        dataset: what `data.loading.open_split` reads; or rows by split, as `RowStream` gives them: dicts with `label`
            ("real" or "synthetic"), `image` ({"bytes", "path"}) and, where known, `path`, `content_type`, `group`,
            `license`, `source`.
        predict: RGB images in, probabilities (images, 2) out: a detector to measure on `VARIANTS`.
        names: the order of its classes, ("real", "synthetic") by default.
        crop_size: side in pixels of what it is shown.
        batch_size: images for each call of it.
        seed: of folds, classifiers and intervals.
        splits: which splits, by default all.
        num_workers: threads that look at files; one per core by default.
        progress: whether to show a progress bar.
        limit: at most so many rows of each split, drawn by the seed.
        n_resamples: of the bootstrap.

    Returns:
        The audit (see the module's description).

    Raises:
        UsageError: options that cannot be used, rows without labels or undecoded images, one class only.
        DataNotFoundError: no such dataset or split.
        MissingExtraError: scikit-learn is not installed.
    """
    require("eval", "sklearn")
    names = tuple(names or map(str, Origin))
    if sorted(names) != sorted(Origin):
        raise UsageError(f"audit: expected the class names {tuple(map(str, Origin))}, got {names}")
    for option, value in (("crop_size", crop_size), ("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"audit: expected {option} of 1 or more, got {value}")
    bootstrap = Bootstrap(n_resamples=n_resamples, seed=seed)
    streams, record = _opened(dataset, splits)
    variants = Variants(predict, crop_size, batch_size, names.index(Origin.SYNTHETIC)) if predict else None
    looks, unreadable = _looked_at(
        _rows(streams, limit, bootstrap), _total(streams, limit), variants, num_workers, progress
    )
    table = _Table(looks)
    n_real, n_synthetic = (int((table.truth == k).sum()) for k in (0, 1))
    if not (n_real and n_synthetic):
        raise UsageError(
            f"audit: expected images of both classes, got {n_real} real and {n_synthetic} synthetic "
            f"({len(unreadable)} unreadable): an audit asks what tells the two apart"
        )
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dataset": record,
        "options": {
            "seed": seed,
            "limit": limit,
            "n_resamples": bootstrap.n_resamples,
            "confidence": bootstrap.confidence,
        },
        "counts": _counts(table) | {"unreadable": len(unreadable)},
        "unreadable": unreadable,
        "rules": {name: _rule(name, table, bootstrap) for name in RULES},
        "scalars": {name: _scalar(name, values, table, bootstrap) for name, values in table.scalars.items()},
        "categoricals": {
            name: _categorical(name, values, table, bootstrap) for name, values in table.categoricals.items()
        },
        "classifier": {
            kind: _classified(table, kind == "metadata_and_colours", bootstrap)
            for kind in ("metadata", "metadata_and_colours")
        },
        "duplicates": _duplicates(table),
        "model": None if variants is None else variants.report(table.truth, names, bootstrap),
    }
    return _plain(report | {"verdict": _verdict(report)})


def write_audit(
    report: Mapping[str, Any], out: str | os.PathLike[str], *, spectra: Mapping[str, Spectrum] | None = None
) -> list[Path]:
    """Write OUT/audit.json and the pictures: OUT/audit.png and .svg (a page), OUT/pictures/*.png.

    All are made before the first takes its place, the JSON last. Pictures that an earlier audit left there and that
    this one has none of are removed.

    Args:
        report: of `audit`.
        out: folder to write into; it is made where there is none.
        spectra: mean spectra of each generator (`spectra.MeanSpectra`), for OUT/pictures/spectra.png.

    Returns:
        The files, the JSON first.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    from imaginet_hub.evaluation.audit_figures import PICTURES, write_figures

    out = Path(out)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".audit.", suffix=".partial") as folder:
        made = Path(folder)
        pictures = [path.relative_to(made) for path in write_figures(report, made, spectra)]
        (made / "audit.json").write_text(text + "\n", encoding="utf-8")
        (out / "pictures").mkdir(exist_ok=True)
        for stale in set(PICTURES) - {picture.as_posix() for picture in pictures}:
            (out / stale).unlink(missing_ok=True)
        for name in (*pictures, Path("audit.json")):
            (made / name).replace(out / name)
    return [out / "audit.json", *(out / picture for picture in pictures)]


# --- one look at each image ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Look:
    """What is kept of an image, about 1.5 kB."""

    path: str
    split: str
    label: str
    columns: tuple[str | None, ...]
    traits: Traits
    sha256: bytes
    pixels: bytes
    colours: NDArray[np.float64]
    hash: int
    thumbnail: NDArray[np.uint8]


def _opened(
    dataset: str | os.PathLike[str] | Mapping[str, Iterable[Mapping[str, Any]]], splits: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    if isinstance(dataset, Mapping):
        chosen = tuple(dataset if splits is None else splits)
        if missing := [split for split in chosen if split not in dataset]:
            raise UsageError(f"audit: expected splits among {', '.join(dataset)}, got {', '.join(missing)}")
        return {split: dataset[split] for split in chosen}, {"name": None, "splits": [{"split": s} for s in chosen]}
    from imaginet_hub.data.loading import open_split, splits_of

    streams = {s: open_split(dataset, s) for s in (splits_of(dataset) if splits is None else splits)}
    records = [stream.record() for stream in streams.values()]
    return dict(streams), {"name": records[0]["name"] if records else None, "splits": records}


def _total(streams: Mapping[str, Any], limit: int | None) -> int | None:
    """How many rows will be read, where the streams know their lengths."""
    lengths = [len(rows) for rows in streams.values() if hasattr(rows, "__len__")]
    return sum(min(n, limit or n) for n in lengths) if len(lengths) == len(streams) else None


def _looked_at(
    rows: Iterable[tuple[str, int, Mapping[str, Any]]],
    total: int | None,
    variants: Variants | None,
    num_workers: int | None,
    progress: bool,
) -> tuple[list[_Look], list[dict[str, Any]]]:
    """Every row in order; a few are under way at a time, so memory holds no more images than that."""
    looks: list[_Look] = []
    unreadable: list[dict[str, Any]] = []
    workers = max(1, num_workers or os.cpu_count() or 1)
    under_way: deque[tuple[str, int, Mapping[str, Any], Future[Any]]] = deque()

    def take() -> None:
        split, number, row, future = under_way.popleft()
        bar.update()
        try:
            look, crops = future.result()
        except ImageError as error:
            entry = {"split": split, "row": number, "path": _path(row, number), "reason": error.message}
            unreadable.append(entry)
            return
        looks.append(look)
        if variants is not None:
            variants.add(crops)

    pool = ThreadPoolExecutor(max_workers=workers)
    bar = progress_bar(total=total, desc="Looking at images", unit="img", disable=not progress)
    try:
        for split, number, row in rows:
            under_way.append((split, number, row, pool.submit(_look, row, number, split, variants)))
            if len(under_way) >= 4 * workers:
                take()
        while under_way:
            take()
    finally:
        pool.shutdown(cancel_futures=True)
        bar.close()
    if variants is not None:
        variants.flush()
    return looks, unreadable


def _rows(
    streams: Mapping[str, Any], limit: int | None, bootstrap: Bootstrap
) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """Split, number and row; of a longer split a draw without replacement, as classes may lie in any pattern."""
    for split, rows in streams.items():
        chosen = None
        if limit is not None and hasattr(rows, "__len__") and limit < len(rows):
            chosen = set(_rng(bootstrap, f"limit {split}").choice(len(rows), limit, replace=False).tolist())
        for number, row in enumerate(rows if chosen or limit is None else islice(rows, limit)):
            if chosen is None or number in chosen:
                yield split, number, row


def _look(
    row: Mapping[str, Any], number: int, split: str, variants: Variants | None
) -> tuple[_Look, list[Image.Image]]:
    label, image = row.get("label"), row.get("image")
    if label not in tuple(Origin):
        raise UsageError(
            f"{split}, row {number}: expected a label, real or synthetic, got {label!r}: "
            "an audit needs the detection track of a labelled dataset"
        )
    if not isinstance(image, Mapping):
        raise UsageError(
            f"{split}, row {number}: expected an image as its bytes or path, got {type(image).__name__}: "
            "what a file says is lost when it is decoded (cast the column with decode=False)"
        )
    path = _path(row, number)
    data = image.get("bytes")
    if data is None and image.get("path") is None:
        raise ImageError("missing", f"{path}: expected an image, found neither bytes nor a path")
    data = read_bytes(image["path"]) if data is None else bytes(data)
    found = traits(data, path)
    rgb = open_image(data, path)
    pixels = hashlib.sha256(f"{rgb.size}".encode())
    pixels.update(rgb.tobytes())
    look = _Look(
        path=path,
        split=split,
        label=str(label),
        columns=tuple(None if row.get(column) is None else str(row[column]) for column in _COLUMNS),
        traits=found,
        sha256=hashlib.sha256(data).digest(),
        pixels=pixels.digest(),
        colours=colours(rgb),
        hash=perceptual_hash(rgb),
        thumbnail=thumbnail(rgb),
    )
    return look, [] if variants is None else variants.of(rgb)


def _path(row: Mapping[str, Any], number: int) -> str:
    image = row.get("image")
    return str(row.get("path") or (isinstance(image, Mapping) and image.get("path")) or f"row {number}")


class _Table:
    """The looks as columns."""

    def __init__(self, looks: Sequence[_Look]) -> None:
        self.looks = looks
        self.truth = np.array([look.label == Origin.SYNTHETIC for look in looks], np.intp)
        self.rules = {name: np.array([rule(x.traits) for x in looks], np.bool_) for name, rule in RULES.items()}
        self.scalars = {
            name: np.array([scalar(x.traits) for x in looks], np.float64) for name, scalar in SCALARS.items()
        }
        of_pixels = np.array([look.colours for look in looks]).reshape(len(looks), len(COLOURS))
        self.scalars |= dict(zip(COLOURS, of_pixels.T, strict=True))
        self.columns = {
            column: np.array([x.columns[k] if x.columns[k] is not None else "(none)" for x in looks], object)
            for k, column in enumerate(_COLUMNS)
            if any(look.columns[k] is not None for look in looks)
        }
        self.files = {name: np.array([of(x.traits) for x in looks], object) for name, of in _OF_FILES.items()}
        self.categoricals = self.files | self.columns
        splits = np.array([look.split for look in looks], object)
        self.groups = {"split": splits} | {k: v for k, v in self.columns.items() if k == "content_type"}


# --- one thing at a time ---------------------------------------------------------------------------------------------


def _counts(table: _Table) -> dict[str, Any]:
    columns = table.groups | {"format": table.files["format"]}
    return _sizes(table.truth) | {
        "by": {
            column: {value: _sizes(table.truth[values == value]) for value in sorted(set(values))}
            for column, values in columns.items()
        }
    }


def _sizes(truth: NDArray[np.intp]) -> dict[str, int]:
    return {"n": len(truth), "n_real": int((truth == 0).sum()), "n_synthetic": int((truth == 1).sum())}


def _rule(name: str, table: _Table, bootstrap: Bootstrap) -> dict[str, Any]:
    holds = table.rules[name]

    def part(rows: NDArray[np.bool_], key: str) -> dict[str, Any]:
        return _called(table.truth[rows], holds[rows], bootstrap, f"{name} {key}")

    types = table.groups.get("content_type")
    return {
        "all": part(np.ones(len(holds), np.bool_), "all"),
        "by": {
            column: {value: part(values == value, f"{column}={value}") for value in sorted(set(values))}
            for column, values in table.groups.items()
        },
        "without": {}
        if types is None or len(set(types)) < 2
        else {value: part(types != value, f"without {value}") for value in sorted(set(types))},
    }


def _called(truth: NDArray[np.intp], synthetic: NDArray[np.bool_], bootstrap: Bootstrap, key: str) -> dict[str, Any]:
    """What calling some rows synthetic gives. How many of a class are called so in a resample is binomial."""
    sizes = _sizes(truth)
    counts = (sizes["n_real"], sizes["n_synthetic"])
    shares = [float(synthetic[truth == k].mean()) if counts[k] else math.nan for k in (0, 1)]
    value = (1 - shares[0] + shares[1]) / 2
    replicates = np.full(bootstrap.n_resamples, np.nan)
    if all(counts):
        rng = _rng(bootstrap, key)
        drawn = [rng.binomial(n, share, bootstrap.n_resamples) / n for n, share in zip(counts, shares, strict=True)]
        replicates = (1 - drawn[0] + drawn[1]) / 2
    return sizes | {
        "share_real": shares[0],
        "share_synthetic": shares[1],
        "balanced_accuracy": bootstrap.interval(value, replicates, min(counts)),
        "informativeness": max(value, 1 - value),
    }


def _rng(bootstrap: Bootstrap, key: str) -> np.random.Generator:
    """A stream of its own for each statistic, so that none depends on which others are computed."""
    return np.random.default_rng([bootstrap.seed, crc32(f"audit {key}".encode())])


def _scalar(name: str, values: NDArray[np.float64], table: _Table, bootstrap: Bootstrap) -> dict[str, Any]:
    defined = ~np.isnan(values)
    values, truth = values[defined], table.truth[defined]
    formats = table.files["format"][defined]
    auc = _auc_interval(values, truth, bootstrap, name)
    spread = np.quantile(values, [0.005, 0.995]) if len(values) else np.array([0.0, 1.0])
    edges = np.linspace(spread[0], spread[1] if spread[1] > spread[0] else spread[0] + 1, 31)
    clipped = np.clip(values, edges[0], edges[-1])
    return {
        **{k: v for k, v in _sizes(truth).items() if k != "n"},
        "auc": auc,
        "informativeness": max(auc["value"], 1 - auc["value"]),
        "median": _medians(values, truth),
        "by_format": {
            format_: {
                **{k: v for k, v in _sizes(truth[formats == format_]).items() if k != "n"},
                "auc": _auc_interval(
                    values[formats == format_], truth[formats == format_], bootstrap, f"{name} {format_}"
                ),
                "median": _medians(values[formats == format_], truth[formats == format_]),
            }
            for format_ in sorted(set(formats))
        },
        "histogram": {
            "edges": edges.tolist(),
            **{str(o): np.histogram(clipped[truth == k], edges)[0].tolist() for k, o in enumerate(Origin)},
        },
    }


def _medians(values: NDArray[np.float64], truth: NDArray[np.intp]) -> dict[str, float]:
    return {
        str(o): float(np.median(values[truth == k])) if (truth == k).any() else math.nan for k, o in enumerate(Origin)
    }


def _tally(values: NDArray[np.float64], truth: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Real and synthetic rows at each distinct value, in order."""
    distinct, places = np.unique(values, return_inverse=True)
    real, synthetic = (np.bincount(places[truth == k], minlength=len(distinct)) for k in (0, 1))
    return real, synthetic


def _ranked(values: NDArray[np.float64], truth: NDArray[np.intp], weights: NDArray[np.intp] | None = None) -> Pair:
    """Any numbers as scores of `detection`, of which what depends on their order alone is of use."""
    places = np.unique(values, return_inverse=True)[1]
    return pair_of(truth, places / max(1, places.max()), THRESHOLD, np.arange(len(truth)), weights=weights)


def _auc(values: NDArray[np.float64], truth: NDArray[np.intp]) -> float:
    """Area under the ROC curve; NaN without a class."""
    return float(_ranked(values, truth).observed["auc"][0])


def _auc_interval(
    values: NDArray[np.float64], truth: NDArray[np.intp], bootstrap: Bootstrap, key: str
) -> dict[str, float]:
    """Rows at each value are multinomial in a resample; where values are many, neighbours share a bin for that."""
    real, synthetic = _tally(values, truth)
    counts = int(real.sum()), int(synthetic.sum())
    if not all(counts):
        return bootstrap.interval(math.nan, np.zeros(0), 0)
    both = real + synthetic
    bins = (np.cumsum(both) - both) * _BINS // sum(counts) if len(both) > _BINS else np.arange(len(both))
    binned = [np.bincount(bins, weights=part).astype(np.intp) for part in (real, synthetic)]
    rng = _rng(bootstrap, key)
    drawn = [rng.multinomial(n, part / n, size=bootstrap.n_resamples) for n, part in zip(counts, binned, strict=True)]
    # A row for each class at each bin, which counts as often as rows of the class are there.
    n = len(binned[0])
    pair = _ranked(np.tile(np.arange(n), 2), np.repeat([0, 1], n), np.concatenate(binned))
    tallies = [
        side.tally(part[:, side.rows % n]) for side, part in zip((pair.real, pair.synthetic), drawn, strict=True)
    ]
    return bootstrap.interval(_auc(values, truth), pair.metrics(*tallies)["auc"], min(counts))


def _categorical(name: str, values: NDArray[Any], table: _Table, bootstrap: Bootstrap) -> dict[str, Any]:
    distinct, places = np.unique(values.astype(str), return_inverse=True)
    called = np.zeros(len(places), np.bool_)
    folds = _folds(table.truth, bootstrap)
    for rows in folds:
        rest = np.ones(len(places), np.bool_)
        rest[rows] = False
        real, made = (
            np.bincount(places[rest & (table.truth == k)], minlength=len(distinct)) / (rest & (table.truth == k)).sum()
            for k in (0, 1)
        )
        called[rows] = (made > real)[places[rows]]
    real, made = (np.bincount(places[table.truth == k], minlength=len(distinct)) for k in (0, 1))
    order = np.argsort(-(real + made), kind="stable")[:12]
    result = _called(table.truth, called, bootstrap, name) if folds else {}
    return {
        "of": "file" if name in table.files else "column",
        "categories": len(distinct),
        "balanced_accuracy": result.get("balanced_accuracy"),
        "largest": [{"value": str(distinct[k]), "n_real": int(real[k]), "n_synthetic": int(made[k])} for k in order],
    }


def _folds(truth: NDArray[np.intp], bootstrap: Bootstrap) -> list[NDArray[np.intp]]:
    """Rows in a few parts with about the same share of each class; none where a class has a single row."""
    rng = _rng(bootstrap, "folds")
    number = np.zeros(len(truth), np.intp)
    k = min(_FOLDS, *(int((truth == c).sum()) for c in (0, 1)))
    for c in (0, 1):
        rows = rng.permutation(np.flatnonzero(truth == c))
        number[rows] = np.arange(len(rows)) % max(1, k)
    return [np.flatnonzero(number == fold) for fold in range(k)] if k > 1 else []


# --- all of them together --------------------------------------------------------------------------------------------


def _classified(table: _Table, with_colours: bool, bootstrap: Bootstrap) -> dict[str, Any]:
    names, features = _features(table, with_colours)
    sources = table.columns.get("source")
    return {
        "features": names,
        "cross_validated": _cross_validated(names, features, table.truth, _folds(table.truth, bootstrap), bootstrap),
        "by_source": None
        if sources is None
        else _cross_validated(names, features, table.truth, _source_folds(sources, table.truth, bootstrap), bootstrap),
    }


def _features(table: _Table, with_colours: bool) -> tuple[list[str], NDArray[np.float64]]:
    columns = {name: table.scalars[name] for name in SCALARS} | table.rules
    for name, values in table.files.items():
        common = {value: k for k, (value, _) in enumerate(Counter(values).most_common(_MOST_CATEGORIES))}
        columns[name] = np.array([common.get(value, _MOST_CATEGORIES) for value in values])
    if with_colours:
        columns |= {name: table.scalars[name] for name in COLOURS}
    return list(columns), np.nan_to_num(np.column_stack(list(columns.values())).astype(np.float64), nan=-1)


def _source_folds(sources: NDArray[Any], truth: NDArray[np.intp], bootstrap: Bootstrap) -> list[NDArray[np.intp]]:
    """Whole sources in a few parts; none where the images of a class are all of one source."""
    from sklearn.model_selection import StratifiedGroupKFold

    k = min(_FOLDS, *(len(set(sources[truth == c])) for c in (0, 1)))
    if k < 2:
        return []
    groups = np.unique(sources.astype(str), return_inverse=True)[1]
    folds = StratifiedGroupKFold(k, shuffle=True, random_state=bootstrap.seed).split(groups, truth, groups)
    return [rows for _, rows in folds]


def _cross_validated(
    names: Sequence[str],
    features: NDArray[np.float64],
    truth: NDArray[np.intp],
    folds: Sequence[NDArray[np.intp]],
    bootstrap: Bootstrap,
) -> dict[str, Any] | None:
    """Scores of each fold by a classifier that saw the others."""
    import sklearn.ensemble  # noqa: F401 - limits are those of libraries that are loaded
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="openmp"):  # its threads wait by spinning, for each of many small steps
        return _each_fold(names, features, truth, folds, bootstrap)


def _each_fold(
    names: Sequence[str],
    features: NDArray[np.float64],
    truth: NDArray[np.intp],
    folds: Sequence[NDArray[np.intp]],
    bootstrap: Bootstrap,
) -> dict[str, Any] | None:
    scores = np.full(len(truth), np.nan)
    losses = np.zeros(len(names))
    measured = 0
    for rows in folds:
        rest = np.ones(len(truth), np.bool_)
        rest[rows] = False
        if len(set(truth[rest])) < 2:
            return None
        classifier = _classifier(bootstrap.seed).fit(features[rest], truth[rest])
        scores[rows] = classifier.predict_proba(features[rows])[:, 1]
        whole = _auc(scores[rows], truth[rows])
        if math.isnan(whole):  # a fold of sources may hold one class
            continue
        measured += 1
        rng = _rng(bootstrap, f"shuffle {measured}")
        for column in np.flatnonzero(np.ptp(features, axis=0)):
            shuffled = features[rows]
            shuffled[:, column] = rng.permutation(shuffled[:, column])
            losses[column] += whole - _auc(classifier.predict_proba(shuffled)[:, 1], truth[rows])
    if not folds:
        return None
    metrics = metrics_of(truth, scores, bootstrap)
    order = np.argsort(-losses, kind="stable")
    return {
        "folds": len(folds),
        "auc": metrics["auc"],
        "balanced_accuracy": metrics["balanced_accuracy"],
        "roc": _roc(scores, truth),
        "importance": {names[k]: float(losses[k] / max(1, measured)) for k in order},
    }


def _classifier(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=15, class_weight="balanced", random_state=seed)


def _roc(scores: NDArray[np.float64], truth: NDArray[np.intp]) -> dict[str, list[float]]:
    real, made = (counts[::-1] for counts in _tally(scores, truth))
    fpr, tpr = (np.concatenate([[0.0], np.cumsum(counts) / counts.sum()]) for counts in (real, made))
    shown = np.unique(np.linspace(0, len(fpr) - 1, 200).astype(np.intp))
    return {"fpr": fpr[shown].round(5).tolist(), "tpr": tpr[shown].round(5).tolist()}


def _duplicates(table: _Table) -> dict[str, Any]:
    looks = table.looks
    columns: dict[str, Sequence[Any]] = {
        "path": [look.path for look in looks],
        "split": [look.split for look in looks],
        "label": [look.label for look in looks],
    }
    hashes = np.array([look.hash for look in looks], np.uint64)
    groups = {
        "file": exact_groups([look.sha256 for look in looks]),
        "pixels": exact_groups([look.pixels for look in looks]),
        "near": near_groups(hashes, np.array([look.thumbnail for look in looks])),
    }
    described = {kind: describe_groups(found, columns) for kind, found in groups.items()}
    for example in described["near"]["examples"]:  # enough to draw them by: 16 x 16 luma, in hexadecimal
        for row in example["rows"]:
            row["thumbnail"] = looks[row["row"]].thumbnail.tobytes().hex()
    return described


# --- in words --------------------------------------------------------------------------------------------------------


def _verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    candidates: list[tuple[str, str, Mapping[str, float], str]] = []

    def add(kind: str, name: str, interval: Mapping[str, float] | None, text: str) -> None:
        # What was fitted and does worse than chance on other rows has found nothing.
        if interval is not None and (kind in ("rule", "scalar") or interval["value"] > 0.5):
            candidates.append((kind, name, interval, text))

    for name, rule in report["rules"].items():
        found = rule["all"]["balanced_accuracy"]
        what = Origin.SYNTHETIC if found["value"] >= 0.5 else Origin.REAL
        add("rule", name, found, f"{name} predicts {what} with balanced accuracy {_text(found, what)}")
    scalars = dict(report["scalars"])
    for name in SCALARS:  # within a format as well: of PNGs and JPEGs together, bits per pixel may say little
        by_format = report["scalars"][name]["by_format"]
        scalars |= {f"{name} of {format_}": part for format_, part in by_format.items() if len(by_format) > 1}
    for name, scalar in scalars.items():
        found, median = scalar["auc"], scalar["median"]
        way = "higher" if found["value"] >= 0.5 else "lower"
        what = Origin.SYNTHETIC if found["value"] >= 0.5 else Origin.REAL
        medians = f"median {median[Origin.SYNTHETIC]:.3g} against {median[Origin.REAL]:.3g}"
        add("scalar", name, found, f"{name} is {way} in synthetic images ({medians}), AUC {_text(found, what)}")
    for name, part in report["categoricals"].items():
        found = part["balanced_accuracy"]
        kind = "categorical" if part["of"] == "file" else "column"
        text = f"{name} tells the label with balanced accuracy {_text(found)} (cross-validated)" if found else ""
        add(kind, name, found, text)
    for kind, classifier in report["classifier"].items():
        for way, how in (("cross_validated", "images"), ("by_source", "sources")):
            part = classifier[way]
            if part is not None:
                numbers = f"balanced accuracy {_text(part['balanced_accuracy'])}, AUC {_text(part['auc'])}"
                text = f"a classifier of {kind.replace('_', ' ')} reaches {numbers} on {how} it has not seen"
                add("classifier", f"{kind} {way}", part["balanced_accuracy"], text)
    tail, normal = (1 - report["options"]["confidence"]) / 2, NormalDist()
    widened = normal.inv_cdf(tail / max(1, len(candidates))) / normal.inv_cdf(tail)
    findings: list[dict[str, Any]] = [
        {"kind": kind, "name": name, "strength": max(interval["value"], 1 - interval["value"]), "text": text}
        for kind, name, interval, text in candidates
        if _clear(interval, widened)
    ]
    findings.sort(key=lambda finding: -finding["strength"])
    near = report["duplicates"]["near"]
    for across in ("splits", "labels"):
        if near[f"across_{across}"]:
            text = f"groups of near duplicates that span {across}: {near[f'across_{across}']:,}"
            findings.append({"kind": "duplicates", "name": f"across_{across}", "strength": None, "text": text})
    return {"findings": findings, "baseline": _baseline(report, findings)}


def _baseline(report: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The best that was found of files' headers alone, in balanced accuracy."""
    for finding in findings:
        name = finding["name"]
        if finding["kind"] in ("rule", "categorical") or name == "metadata cross_validated":
            if finding["kind"] == "rule":
                interval = report["rules"][name]["all"]["balanced_accuracy"]
            elif finding["kind"] == "categorical":
                interval = report["categoricals"][name]["balanced_accuracy"]
            else:
                interval = report["classifier"]["metadata"]["cross_validated"]["balanced_accuracy"]
            return {"name": name, "text": finding["text"], "balanced_accuracy": interval}
    return None


def _clear(interval: Mapping[str, float], widened: float) -> bool:
    """Whether an interval, so many times as wide, stays away from chance."""
    value = interval["value"]
    low, high = (value + widened * (interval[end] - value) for end in ("low", "high"))
    return low > 0.5 + MARGIN or high < 0.5 - MARGIN


def _text(interval: Mapping[str, float], of: Origin = Origin.SYNTHETIC) -> str:
    """An interval in words; for "real" as seen from its side."""
    value, *ends = (interval[key] if of is Origin.SYNTHETIC else 1 - interval[key] for key in ("value", "low", "high"))
    return f"{value:.3f}" + ("" if math.isnan(ends[0]) else f" [{min(ends):.3f}, {max(ends):.3f}]")


def _plain(value: Any) -> Any:
    """Containers copied for JSON, with None in place of NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value
