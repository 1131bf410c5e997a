"""The perturbed test set of a dataset: rendered into a repository for the Hub, and verified by rendering it again.

What an image gets depends on the seed and on its path alone (`perturbations.Perturbation.drawn`). So any machine with
the same encoders and decoders makes the same pixels, with any number of workers, in any order, of all or of some.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from imaginet_hub.data import folders
from imaginet_hub.data.images import open_image
from imaginet_hub.data.loading import RowStream, open_split
from imaginet_hub.data.progress import progress_bar
from imaginet_hub.data.rendering import FORMAT, Rendered, Task, render_all
from imaginet_hub.data.repository import ROW_GROUP_BYTES, SHARD_BYTES, encoded, shard_writer, usable_target
from imaginet_hub.errors import BuildError, DataNotFoundError, ImageError, UsageError
from imaginet_hub.labels import Origin
from imaginet_hub.perturbations import (
    COMPRESSION_SHARE,
    COMPRESSIONS,
    MAX_SIDE,
    MIN_SIDE,
    QUALITIES,
    SIZE,
    Perturbation,
    encoder_versions,
    simple_path,
)

__all__ = ["PERTURB_REPORT", "perturb", "perturbed_split", "summary", "verify"]

PERTURB_REPORT = "perturb_report.json"
_CARD = "README.md"
_REPORT_SCHEMA = 1
_LAW = {
    "size": SIZE,
    "crop_side": [MIN_SIDE, MAX_SIDE],
    "resampling": "lanczos",
    "compressions": list(COMPRESSIONS),
    "compression_share": COMPRESSION_SHARE[0] / COMPRESSION_SHARE[1],
    "quality": list(QUALITIES),
}

_TEXT, _NUMBER = datasets.Value("string"), datasets.Value("int32")
#: Columns that are of the rendered image where the original has them.
_REPLACED = {
    "image": datasets.Image(),
    "label": datasets.ClassLabel(names=[str(origin) for origin in Origin]),
    "path": _TEXT,
    "sha256": _TEXT,
    "width": _NUMBER,
    "height": _NUMBER,
    "format": _TEXT,
}
#: Columns that are added.
_ADDED = {
    "pixel_sha256": _TEXT,
    "source_sha256": _TEXT,
    "crop_side": _NUMBER,
    "crop_left": _NUMBER,
    "crop_top": _NUMBER,
    "compression": _TEXT,
    "quality": _NUMBER,
}
#: Columns whose values the report counts.
_COUNTED = ("label", "compression", "license")
#: Columns that say whose a row is; without them there is nothing to compare.
_IDENTITY = ("path", "image", "sha256", "pixel_sha256", "source_sha256", "label")
#: What `verify` goes by in a report.
_RECORDED: dict[str, tuple[str, tuple[type, ...]]] = {
    "split": ("text", (str,)),
    "seed": ("an integer", (int,)),
    "limit": ("an integer or null", (int, type(None))),
    "encoders": ("an object", (dict,)),
    "rows": ("an integer", (int,)),
    "digest": ("text", (str,)),
}
#: A WebP file of one lossless picture and nothing else: no other frames, no EXIF that would turn it.
_BARE_LOSSLESS = b"WEBPVP8L"
_SHOWN = 10
_DIFFERENCES = {
    "different": "rows with other pixels or parameters (source_sha256: of another original)",
    "columns": "rows whose labels or other columns are not those of the dataset",
    "damaged": "rows whose stored file is not what its sha256 and pixel_sha256 say",
    "report": "values of perturb_report.json that are not those of the rows stored",
    "only_stored": "rows stored that the dataset does not have, or not readable",
    "not_stored": "rows of the dataset that are not stored",
}


def perturbed_split(split: str) -> str:
    """The name of the split that holds the rendered images of another."""
    return f"{split}_perturbed"


def perturb(
    dataset: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "test",
    seed: int = 0,
    num_workers: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    render_card: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """Render a split into `out`: `data/*.parquet`, `README.md` and `perturb_report.json`.

    A row keeps its columns of text, numbers and classes. `image` is a lossless WebP of 256 x 256 pixels, `sha256`,
    `width`, `height` and `format` are of that file; `pixel_sha256` is of its RGB samples row by row, `source_sha256`
    of the file that it was made of, and `crop_side`, `crop_left`, `crop_top` (pixels), `compression` ("jpeg", "webp"
    or null) and `quality` (or null) say what it got. A row group holds one label; in a label the order is that of the
    dataset. Rows without a path go by "sha256:" and the digest of their file.

    The folder appears under its name only when it is complete.

    Args:
        dataset, split: see `loading.RowStream`.
        out: the folder to write.
        seed: any integer, see `Perturbation.drawn`.
        num_workers: processes that render. Default: one per core. Nothing depends on it but the time.
        limit: the first so many rows only.
        overwrite: replace `out` if this function wrote it.
        progress: whether to show a bar.
        render_card: makes README.md from the report.

    Returns:
        The report, as in `perturb_report.json`: schema_version, imaginet_hub (its version), dataset (name, split,
        images, fingerprint, corpus as far as known), split (the new one), seed, limit, rows, label and compression
        (value -> rows), license (terms -> rows, where the dataset says), left_out ([{path, reason, message}]),
        columns_left_out (of other kinds), encoders (and decoders: library -> version), law (its bounds), digest (one
        line that two machines compare: SHA-256 over the lines "path in its simplest form, tab, pixel_sha256,
        newline" in the order of their bytes), parquet_bytes, build_id.

    Raises:
        BuildError: no row is fit to go in, a worker ended, or `out` may not be replaced or cannot be written.
        DataNotFoundError: no such dataset or split.
        UsageError: a number that cannot be used, or a dataset that was perturbed before.
    """
    workers = _checked(num_workers, limit)
    Perturbation.drawn(seed, "", SIZE, SIZE)  # that the seed is one, now
    source = Path(dataset).expanduser()
    target = usable_target(out, source if source.is_dir() else None, PERTURB_REPORT, overwrite, "the dataset")
    rows = open_split(dataset, split)
    if taken := [column for column in _ADDED if column in rows.features]:
        raise UsageError(
            f"{rows.name!r} has {', '.join(taken)} already, as a perturbed dataset has: perturb the original one, or "
            "rename its columns"
        )
    features = _features(rows.features)
    left_out: list[dict[str, str]] = []
    said: list[dict[str, Any]] = []

    def stored() -> Iterator[dict[str, Any]]:
        with closing(_rendered(rows, seed, workers, limit, progress)) as results:
            for row, result in results:
                if isinstance(result, ImageError):
                    path = str(row.get("path") or (row["image"] or {}).get("path") or "")
                    left_out.append({"path": path, "reason": result.reason, "message": result.message})
                    continue
                new = {**{column: row.get(column) for column in features}, **_columns(result)}
                said.append({column: new.get(column) for column in ("path", "pixel_sha256", *_COUNTED)})
                yield encoded(new, features)

    try:
        with folders.staged(target) as staging:
            (staging / "data").mkdir()
            _write(staging / "data", perturbed_split(split), stored(), features.arrow_schema)
            if not said:
                first = f", the first: {left_out[0]['message']}" if left_out else ""
                raise BuildError(
                    f"none of the {len(left_out):,} images of {rows.name!r}, split {split}, can be rendered{first}; "
                    "nothing was written"
                )
            report = {
                "schema_version": _REPORT_SCHEMA,
                "imaginet_hub": version("imaginet_hub"),
                "dataset": rows.record(),
                "split": perturbed_split(split),
                "seed": seed,
                "limit": limit,
                **_stated(said),
                "left_out": left_out,
                "columns_left_out": [column for column in rows.features if column not in features],
                "encoders": encoder_versions(),
                "law": _LAW,
                "parquet_bytes": sum(file.stat().st_size for file in (staging / "data").iterdir()),
            }
            report["build_id"] = hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()[:16]
            (staging / PERTURB_REPORT).write_text(
                json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            (staging / _CARD).write_text(render_card(report), encoding="utf-8")
            folders.put_in_place(target)
    except OSError as error:
        if isinstance(error, DataNotFoundError):
            raise
        raise BuildError(f"{target} could not be written ({error}); nothing was left there") from error
    return report


def verify(
    dataset: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Render a dataset again and compare it, row by row, with what `perturb` wrote; nothing is changed.

    Everything stored is looked at: the pixels of each file are decoded and hashed, each column is compared with the
    dataset's row or the fresh render, and the report with the rows. Rows that share a path are told apart by
    source_sha256, then by their label. README.md is not looked at.

    Args:
        dataset: the one that `out` was made of; the split, the seed and the limit are those on record.
        out: the folder that `perturb` wrote.
        num_workers, progress: see `perturb`.
        limit: compare the first so many rows of the dataset only; others that are stored are not asked for.

    Returns:
        `same`: whether everything is as stored; `rows`: that were compared; `encoders`: library -> {"stored", "here"}
        of those on record whose versions differ (which explains other pixels, and alone is no difference); and, each
        as {"count", "first": the first ten by path, in its simplest form}:
        `different` ([{path, columns}]: which of the hashes and parameters are others now; source_sha256 among them
        says that the original file is another), `columns` ([{path, columns}]: which of the other columns are not
        what the dataset says, classes being compared by name), `damaged` (paths whose stored file is not what its
        sha256 says, or no lossless WebP of the 256 x 256 pixels that pixel_sha256 says), `report` (which of rows,
        digest, label, compression and license on record are not those of the rows stored), `only_stored` (paths
        that the dataset does not have, or not as a readable image), `not_stored` (paths of the dataset that are not
        in `out`).

    Raises:
        DataNotFoundError: `out` is no such folder, its report lacks something, or there is no such dataset.
        UsageError: a number that cannot be used.
        BuildError: a worker ended.
    """
    workers = _checked(num_workers, limit)
    folder = Path(out).expanduser()
    try:
        report = _recorded(folder / PERTURB_REPORT)
        known, damaged = _stored(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise DataNotFoundError(
            f"expected a folder that `imaginet perturb` wrote at {folder}, found none that can be read ({error})"
        ) from error
    stated = _stated(row for stored in known.values() for row in stored)
    rows = open_split(dataset, report["split"].removesuffix(perturbed_split("")))
    most, encoders = report["limit"], report["encoders"]
    _checked(None, most)
    different: list[dict[str, Any]] = []
    columns: list[dict[str, Any]] = []
    only_stored: list[str] = []
    later: list[dict[str, Any]] = []
    compared = 0

    def compare(now: dict[str, Any], alike: list[dict[str, Any]]) -> None:
        """With the row of these that has its label, if there is one, or else the first."""
        nonlocal compared
        compared += 1
        then = alike.pop(next((n for n, row in enumerate(alike) if row["label"] == now["label"]), 0))
        others = [column for column in {**now, **then} if not _equal(now, then, column)]
        for found, added in ((different, True), (columns, False)):
            if some := [column for column in others if (column in _ADDED) is added]:
                found.append({"path": now["path"], "columns": some})

    features = _features(rows.features)
    unreadable: list[str] = []
    limits = [value for value in (limit, most) if value is not None]
    with closing(_rendered(rows, report["seed"], workers, min(limits, default=None), progress)) as results:
        for row, result in results:
            if isinstance(result, ImageError):
                unreadable.append(simple_path(row.get("path") or ""))
                continue
            now = _said({**{column: row.get(column) for column in features}, **_columns(result)})
            if alike := known.get((now["path"], now["source_sha256"])):
                compare(now, alike)
            else:
                later.append(now)
    # What is stored under a path and of another original: nobody else's by now.
    left: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (path, _), stored in known.items():
        left[path] += stored
    not_stored = []
    for now in later:
        if alike := left[now["path"]]:
            compare(now, alike)
        else:
            not_stored.append(now["path"])
    for path in unreadable:
        if left[path]:
            left[path].pop()
            only_stored.append(path)
    if limit is None or limit == most:
        only_stored += [path for path, stored in left.items() for _ in stored]
    here = encoder_versions()
    found = {
        "different": _first(different, lambda row: row["path"]),
        "columns": _first(columns, lambda row: row["path"]),
        "damaged": _first(damaged),
        "report": _first([name for name, value in stated.items() if report.get(name) != value]),
        "only_stored": _first(only_stored),
        "not_stored": _first(not_stored),
    }
    return {
        "same": not any(part["count"] for part in found.values()),
        "rows": compared,
        "encoders": {
            name: {"stored": version, "here": here.get(name)}
            for name, version in encoders.items()
            if version != here.get(name)
        },
        **found,
    }


def summary(report: Mapping[str, Any]) -> str:
    """What `perturb` or `verify` reports, in a few lines for people."""
    if "same" in report:
        lines = [
            f"{report['rows']:,} rows rendered again: " + ("all is as stored" if report["same"] else "not the same")
        ]
        lines += [
            f"  {name}: {v['stored']} when it was stored, {v['here']} here" for name, v in report["encoders"].items()
        ]
        for kind, said in _DIFFERENCES.items():
            count, first = report[kind]["count"], report[kind]["first"]
            shown = [row if isinstance(row, str) else f"{row['path']} ({', '.join(row['columns'])})" for row in first]
            lines += [f"  {count:,} {said}:"] * bool(count) + [f"    {row}" for row in shown]
            lines += ["    ..."] * (count > len(first))
        return "\n".join(lines)
    kinds = ", ".join(f"{count:,} {name}" for name, count in report["compression"].items())
    rows, name = f"{report['rows']:,} images", report["dataset"]["name"]
    lines = [
        f"{rows} of {name} as {report['split']}, seed {report['seed']} ({kinds})",
        f"  digest {report['digest']}",
        "  " + ", ".join(f"{name} {version}" for name, version in report["encoders"].items()),
    ]
    if left_out := report["left_out"]:
        lines.append(f"  {len(left_out):,} left out; {PERTURB_REPORT} lists all:")
        lines += [f"    {left['path']}: {left['reason']}" for left in left_out[:_SHOWN]]
        lines += ["    ..."] * (len(left_out) > _SHOWN)
    return "\n".join(lines)


def _checked(num_workers: int | None, limit: int | None) -> int:
    """The number of workers."""
    for name, value in (("num_workers", num_workers), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"{name}: expected 1 or more, got {value}")
    return num_workers or os.cpu_count() or 1


def _features(given: datasets.Features) -> datasets.Features:
    """The columns of the rendered rows: the given ones in their order, then what is new."""
    kept = {
        column: _REPLACED.get(column, feature)
        for column, feature in given.items()
        if column in _REPLACED or isinstance(feature, datasets.Value | datasets.ClassLabel)
    }
    return datasets.Features({**kept, **{c: f for c, f in _REPLACED.items() if c not in kept}, **_ADDED})


def _rendered(
    rows: RowStream, seed: int, num_workers: int, limit: int | None, progress: bool
) -> Generator[tuple[dict[str, Any], Rendered | ImageError]]:
    """Rows (without the bytes of their images), each with what was made of it."""

    def tasks() -> Iterator[Task]:
        for row in islice(rows, limit):
            image = row["image"] or {}
            yield Task(
                {**row, "image": {"path": image.get("path")}}, row.get("path"), image.get("bytes"), image.get("path")
            )

    total = len(rows) if limit is None else min(len(rows), limit)
    with (
        progress_bar(total=total, desc="Rendering", unit="img", disable=not progress) as bar,
        closing(render_all(tasks(), seed, num_workers)) as results,
    ):
        for task, result in results:
            bar.update(1)
            yield task.row, result


def _columns(result: Rendered) -> dict[str, Any]:
    """What a row says of its rendered image."""
    crop = result.perturbation
    return {
        "image": {"bytes": result.data, "path": None},
        "path": result.path,
        "sha256": result.sha256,
        "width": SIZE,
        "height": SIZE,
        "format": FORMAT,
        "pixel_sha256": result.pixel_sha256,
        "source_sha256": result.source_sha256,
        "crop_side": crop.side,
        "crop_left": crop.left,
        "crop_top": crop.top,
        "compression": crop.compression,
        "quality": crop.quality,
    }


def _row_groups(rows: Iterable[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows in tables of one label each, so that the identification track can skip the others."""
    waiting: dict[Any, list[dict[str, Any]]] = {}
    sizes: Counter[Any] = Counter()
    for row in rows:
        label = row["label"]
        waiting.setdefault(label, []).append(row)
        sizes[label] += len(row["image"]["bytes"])
        if sizes[label] >= ROW_GROUP_BYTES:
            yield pa.Table.from_pylist(waiting.pop(label), schema=schema)
            del sizes[label]
    for label in sorted(waiting, key=str):
        yield pa.Table.from_pylist(waiting[label], schema=schema)


def _write(folder: Path, split: str, rows: Iterable[dict[str, Any]], schema: pa.Schema) -> None:
    """Parquet files of a split; how many there are is known, and in their names, at the end."""
    files: list[Path] = []
    writer: pq.ParquetWriter | None = None
    room = 0
    try:
        for table in _row_groups(rows, schema):
            if writer is None or table.nbytes > room:
                if writer is not None:
                    writer.close()
                files.append(folder / f"{len(files)}.parquet")
                writer, room = shard_writer(files[-1], schema), SHARD_BYTES
            writer.write_table(table, row_group_size=table.num_rows)
            room -= table.nbytes
    finally:
        if writer is not None:
            writer.close()
    for number, file in enumerate(files):
        file.rename(folder / f"{split}-{number:05d}-of-{len(files):05d}.parquet")


def _recorded(file: Path) -> dict[str, Any]:
    """A report that can be gone by."""
    report = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(report, dict):
        raise ValueError(f"{file.name}: expected a JSON object, got {type(report).__name__}")
    for name, (kind, types) in _RECORDED.items():
        if name not in report or not isinstance(report[name], types):
            got = f"{report[name]!r:.80}" if name in report else "nothing"
            raise ValueError(f"{file.name}: expected {kind} as {name}, got {got}")
    return report


def _stored(folder: Path) -> tuple[dict[tuple[str, str], list[dict[str, Any]]], list[str]]:
    """(Simple path, source_sha256) -> what its rows say; the paths whose file is not what its row says."""
    known: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    damaged = []
    for file in sorted((folder / "data").glob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            features = datasets.Features.from_arrow_schema(parquet.schema_arrow)
            if missing := [column for column in _IDENTITY if column not in features]:
                raise ValueError(f"{file.name} has no column {', '.join(missing)}")
            for batch in parquet.iter_batches(batch_size=64):
                for stored in batch.to_pylist():
                    row = _said({column: _named(value, features[column]) for column, value in stored.items()})
                    known[row["path"], row["source_sha256"]].append(row)
                    if not _intact(stored):
                        damaged.append(row["path"])
    return known, damaged


def _intact(row: Mapping[str, Any]) -> bool:
    """Whether the file is the one, and the picture the one, that the row says."""
    data = (row["image"] or {}).get("bytes") or b""
    if hashlib.sha256(data).hexdigest() != row["sha256"] or data[8:16] != _BARE_LOSSLESS:
        return False
    try:
        image = open_image(data)
    except ImageError:
        return False
    return image.size == (SIZE, SIZE) and hashlib.sha256(image.tobytes()).hexdigest() == row["pixel_sha256"]


def _named(value: Any, feature: Any) -> Any:
    """The name of a class, if there is one."""
    known = isinstance(feature, datasets.ClassLabel) and value is not None and 0 <= value < feature.num_classes
    return feature.names[value] if known else value


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says apart from its file, whose bytes are the encoder's."""
    said = {column: value for column, value in row.items() if column not in ("image", "sha256")}
    return {**said, "path": simple_path(row["path"])}


def _equal(one: Mapping[str, Any], other: Mapping[str, Any], column: str) -> bool:
    """Whether both have a column, with one value; what is not a number is one."""
    if column not in one or column not in other:
        return False
    a, b = one[column], other[column]
    return bool(a == b or (a != a and b != b))  # noqa: PLR0124


def _stated(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a report says of these rows: how many, of each kind, and the digest."""
    lines: list[bytes] = []
    counts: dict[str, Counter[str]] = {column: Counter() for column in _COUNTED}
    for row in rows:
        lines.append(f"{simple_path(row['path'])}\t{row['pixel_sha256']}\n".encode("utf-8", "surrogatepass"))
        for column in _COUNTED:
            counts[column][str(row.get(column) or "none")] += 1
    return {
        "rows": len(lines),
        **{column: dict(sorted(count.items())) for column, count in counts.items()},
        "digest": hashlib.sha256(b"".join(sorted(lines))).hexdigest(),
    }


def _first(found: list[Any], key: Callable[[Any], str] = str) -> dict[str, Any]:
    return {"count": len(found), "first": sorted(found, key=key)[:_SHOWN]}
