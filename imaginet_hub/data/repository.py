"""A ROOT becomes a dataset repository that the Hub, and plain `datasets`, can load without this package.

Every image is stored once, as its original bytes. A row group holds one label, and groups of the two labels alternate
in proportion, so that the `identification` config can read the same files through a filter on `label` and skip
(almost) half the bytes, while a shuffle buffer of `shuffle_buffer_size` rows mixes the labels again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from threading import Event, Lock
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils import tqdm

from imaginet_hub.data import folders
from imaginet_hub.data.builder import BUILD_REPORT, features_of, open_root, row_of
from imaginet_hub.data.ledger import known_facts
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.partial import partial_report, write_missing
from imaginet_hub.data.rights import NOTICE, names_of, notice, rights_rows, select
from imaginet_hub.data.scan import Scan, content_fingerprint, scan
from imaginet_hub.data.sources import corpus_of
from imaginet_hub.errors import BuildError, UsageError
from imaginet_hub.labels import LABEL_COLUMNS, Origin, Track

__all__ = [
    "ROW_GROUP_BYTES",
    "SHARD_BYTES",
    "Sized",
    "build_repository",
    "card_configs",
    "encoded",
    "plan_split",
    "report_of",
    "shard_writer",
    "shuffle_buffer_size",
    "staged_repository",
    "usable_target",
]

ROW_GROUP_BYTES = 25_000_000
SHARD_BYTES = 500_000_000
#: Unless the user asks for more: a thread more is a row group more in memory, and no disk keeps up with many.
_MOST_WRITERS = 8
_CARD = "README.md"
_REPORT_SCHEMA = 1


@dataclass(frozen=True)
class Sized:
    """A record and the bytes that it will take."""

    record: Record
    size: int


def plan_split(
    rows: Sequence[Sized], *, seed: int | None, row_group_bytes: int = ROW_GROUP_BYTES, shard_bytes: int = SHARD_BYTES
) -> list[list[list[Record]]]:
    """Decide where every row of one split goes: shards of row groups of records.

    Rows are ordered by a hash of (seed, path), so that the order depends neither on the annotations' order nor on
    which other images are there; without a seed they stay in their order. Each label's rows are cut into groups of
    about equal bytes, at least `row_group_bytes` each (a label with fewer bytes than that has one group); groups are
    dealt so that after any number of them each label is as close as possible to its share.

    Returns:
        Shards; a shard is a list of row groups, a row group a list of records of one label.
    """
    queues: dict[str, list[list[Sized]]] = {}
    for label in Origin:
        mine = [row for row in rows if row.record.label == label]
        if seed is not None:
            mine.sort(key=lambda row: _order(row.record, seed))
        if mine:
            queues[str(label)] = _cut(mine, row_group_bytes)
    totals = {label: len(groups) for label, groups in queues.items()}
    dealt = dict.fromkeys(queues, 0)
    shards: list[list[list[Record]]] = []
    room = 0
    for _ in range(sum(totals.values())):
        best = min(
            (x for x in queues if dealt[x] < totals[x]), key=lambda x: ((dealt[x] + 1) / (totals[x] + 1), totals[x])
        )
        group = queues[best][dealt[best]]
        dealt[best] += 1
        size = sum(row.size for row in group)
        if size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append([row.record for row in group])
        room -= size
    return shards


def _order(record: Record, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{record.file}".encode()).digest()


def _cut(rows: Sequence[Sized], row_group_bytes: int) -> list[list[Sized]]:
    """Rows cut into consecutive groups of about equal bytes, none of them much below `row_group_bytes`."""
    total = sum(row.size for row in rows)
    count = max(1, min(len(rows), total // row_group_bytes))
    groups: list[list[Sized]] = [[] for _ in range(count)]
    before = 0
    for row in rows:
        # A row belongs to the group in which its middle byte falls.
        groups[min(count - 1, (2 * before + row.size) * count // (2 * max(1, total)))].append(row)
        before += row.size
    return [group for group in groups if group]


def shuffle_buffer_size(shards: Sequence[Sequence[Sequence[Any]]]) -> int:
    """How many rows a stream's shuffle buffer must hold to mix the labels: twice the longest run of two groups."""
    sizes = [len(group) for shard in shards for group in shard]
    return 2 * max((a + b for a, b in zip(sizes, sizes[1:] or [0], strict=False)), default=0)


def card_configs(splits: Mapping[str, bool], build_id: str) -> list[dict[str, Any]]:
    """The `configs:` entry of a dataset card.

    Args:
        splits: split name -> whether it holds synthetic images.
        build_id: a name for this very build. `datasets` keeps one cache for all local folders of a name whose
            configs read the same, so without it a rebuilt folder would give its old rows.
    """

    def files(names: Sequence[str]) -> list[dict[str, str]]:
        return [{"split": name, "path": f"data/{name}-*.parquet"} for name in names]

    configs: list[dict[str, Any]] = [
        {
            "config_name": Track.DETECTION.value,
            "default": True,
            "description": f"real and synthetic images; build {build_id}",
            "data_files": files(list(splits)),
        }
    ]
    synthetic = [name for name, has in splits.items() if has]
    if synthetic:
        only_synthetic = [["label", "==", list(Origin).index(Origin.SYNTHETIC)]]
        configs.append(
            {
                "config_name": Track.IDENTIFICATION.value,
                "description": f"synthetic images by generator; build {build_id}",
                "data_files": files(synthetic),
                "filters": only_synthetic,
            }
        )
    return configs


def build_repository(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    licenses: str | Sequence[str] | None = None,
    on_error: str = "raise",
    allow_partial: bool = False,
    seed: int = 0,
    num_proc: int | None = None,
    overwrite: bool = False,
    row_group_bytes: int = ROW_GROUP_BYTES,
    shard_bytes: int = SHARD_BYTES,
    render_card: Callable[[dict[str, Any]], str],
) -> dict[str, Any]:
    """Write a hub-ready dataset repository: `data/*.parquet`, `README.md`, `NOTICE`, `build_report.json`.

    The folder appears under its name only when it is complete; whatever goes wrong before leaves nothing there.
    With `allow_partial` and images missing there is also `missing.txt`, their paths, one a line.

    Args:
        root: the folder that the annotations' paths are relative to.
        out: the repository to write.
        annotations: see `builder.open_root`.
        licenses: only images whose licence clearly allows this, "commercial" or "redistributable", or is one of
            these, see `rights.selection`. Classes keep the ids that they have without.
        on_error: "raise" or "skip", see `scan.scan`.
        allow_partial: build what is there of a ROOT that is not complete, see `scan.scan`.
        seed: of the row order.
        num_proc: threads that look at the images, and then threads that read and write row groups (about as many
            row groups are in memory). Default: one per core, for writing at most 8. The files are the same whatever
            the number.
        overwrite: replace `out` if it is a repository that this function wrote.
        row_group_bytes: least bytes of a row group (a label's rest aside).
        shard_bytes: most bytes of a Parquet file (a larger row group aside).
        render_card: makes README.md from the report.

    Returns:
        The report, as in `build_report.json`. `fingerprint` names the labelled images, in whichever splits they are,
        see `scan.content_fingerprint`. Of images that are not in the build, `left_out` lists each that is damaged (or
        missing, with on_error="skip") with its reason; those that `allow_partial` let pass may be most of a corpus,
        so they are in `missing.txt` and only counted here. `partial` is there if any image is not in the build for
        whatever reason: the counts, and the published rows that are no longer comparable, see
        `partial.partial_report`. `rights` is what `rights.rights_rows` says; `selected` is there with `licenses`:
        `{licenses, left_out: [{source, license, images}]}`.

    Raises:
        UsageError: `licenses` that no image has, or that leave none.
        BuildError: images that cannot go in, an `out` that may not be replaced, or too little disk.
        DataNotFoundError, AnnotationError: see `open_root`.
    """
    root_path, manifest = open_root(root, annotations)
    records, not_selected = select(manifest.records, licenses)
    manifest = replace(manifest, records=records)
    target = usable_target(out, root_path, BUILD_REPORT, overwrite)  # now, not after hours of looking at images
    if row_group_bytes < 1 or shard_bytes < 1:
        raise UsageError("row_group_bytes and shard_bytes: expected positive numbers of bytes")
    result = scan(
        root_path,
        manifest,
        on_error=on_error,
        allow_partial=allow_partial,
        num_proc=num_proc,
        known=known_facts(root_path, manifest.records),
    )
    plans = {
        split: plan_split(rows, seed=seed, row_group_bytes=row_group_bytes, shard_bytes=shard_bytes)
        for split, rows in _by_split(result, manifest.splits).items()
    }
    report = report_of(result, plans, manifest.lists, manifest.repeated_rows, seed)
    partial = partial_report(manifest.records, result.kept)
    if partial is not None:
        report["partial"] = partial
    if licenses is not None:
        report["selected"] = {"licenses": list(names_of(licenses)), "left_out": not_selected}
    report["class_names"] = {column: list(manifest.vocabulary.names(column)) for column in LABEL_COLUMNS}
    report["carried_columns"] = list(manifest.carried_columns)
    features = features_of(manifest.vocabulary, manifest.carried_columns)

    def rows_of(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
        for record in records:
            row = row_of(record, root_path, manifest.carried_columns, result.facts[record.file])
            yield encoded(row, features)

    threads = num_proc or min(_MOST_WRITERS, os.cpu_count() or 1)
    with staged_repository(target, report, plans, rows_of, features.arrow_schema, threads, render_card) as staging:
        write_missing(staging, result.missing)
    return report


@contextmanager
def staged_repository(
    target: Path,
    report: dict[str, Any],
    plans: Mapping[str, Sequence[Sequence[Sequence[Record]]]],
    rows_of: Callable[[Sequence[Record]], Iterable[dict[str, Any]]],
    schema: pa.Schema,
    threads: int,
    render_card: Callable[[dict[str, Any]], str],
) -> Iterator[Path]:
    """Write a repository beside its place; after the body, which may add files, it gets its name.

    Args:
        target: its place, see `usable_target`.
        report: what is known of it; `build_id` and `parquet_bytes` are added.
        plans: by split, see `plan_split`.
        rows_of: reads the rows of a row group, in its order.
        schema: of the rows.
        threads: see `_write_shards`.
        render_card: makes README.md from the report.

    Raises:
        BuildError: too little disk, or it cannot be written; nothing is left there.
    """
    report["build_id"] = hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()[:16]
    try:
        with folders.staged(target) as staging:
            needed, free = int(report["bytes"] * 1.02), shutil.disk_usage(target.parent).free
            if needed > free:
                raise BuildError(
                    f"{target} needs {needed:,} bytes, {free:,} are free there; free some or choose another disk"
                )
            (staging / "data").mkdir()
            shards = {
                staging / "data" / f"{split}-{number:05d}-of-{len(plan):05d}.parquet": groups
                for split, plan in plans.items()
                for number, groups in enumerate(plan)
            }
            with tqdm(total=report["images"], desc="Writing Parquet", unit="img") as bar:
                _write_shards(shards, rows_of, schema, threads, bar)
            report["parquet_bytes"] = sum(file.stat().st_size for file in (staging / "data").iterdir())
            (staging / BUILD_REPORT).write_text(
                json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            terms = notice(report["rights"], stated=report.get("stated", ()), withheld=report.get("withheld", ()))
            (staging / NOTICE).write_text(terms, encoding="utf-8")
            (staging / _CARD).write_text(render_card(report), encoding="utf-8")
            yield staging
            folders.put_in_place(target)
    except OSError as error:
        raise BuildError(f"{target} could not be written ({error}); nothing was left there") from error


def usable_target(
    out: str | os.PathLike[str], source: Path | None, report: str, overwrite: bool, what: str = "ROOT"
) -> Path:
    """The folder that may be written, or written again, through links: so the data lands on the disk that was meant.

    Args:
        out: as the user names it.
        source: a folder that must not be in it, if there is one.
        report: the file by which a folder is known as one that the same command wrote.
        overwrite: whether such a folder may be replaced.
        what: what to call `source` in errors.

    Raises:
        BuildError: it may not be replaced, or cannot be written.
    """
    target = Path(out).expanduser().resolve()
    try:
        folders.restore(target)
        if source is not None and target in (source.resolve(), *source.resolve().parents):
            raise BuildError(f"{target} is {what} or holds it; choose another folder for the built dataset")
        folders.check_writable(target)
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            if not (target / report).is_file():
                raise BuildError(
                    f"{target} is there and is not a dataset that was built by this command; choose another name"
                )
            if not overwrite:
                raise BuildError(f"{target} already holds a built dataset; choose another name, or pass --overwrite")
    except OSError as error:
        raise BuildError(f"{target} cannot be written ({error}); choose another folder") from error
    return target


def _by_split(result: Scan, splits: Sequence[str]) -> dict[str, list[Sized]]:
    found: dict[str, list[Sized]] = {split: [] for split in splits}
    for record in result.kept:
        found[record.split].append(Sized(record, result.facts[record.file].size))
    return {split: rows for split, rows in found.items() if rows}


def report_of(
    result: Scan,
    plans: Mapping[str, list[list[list[Record]]]],
    lists: Sequence[tuple[str, str]],
    repeated_rows: int,
    seed: int,
) -> dict[str, Any]:
    """The report of a build, as far as its rows tell; see `build_repository`."""

    def counts(column: str, split: str) -> dict[str, int]:
        values = Counter(getattr(record, column) for record in result.kept if record.split == split)
        return dict(sorted(values.items()))

    kept_rows = [(result.facts[r.file].sha256, r.label, r.generator_family, r.generator) for r in result.kept]
    columns = ("label", "content_type", "generator_family", "generator", "source", "license")
    return {
        "schema_version": _REPORT_SCHEMA,
        "imaginet_hub": version("imaginet_hub"),
        "corpus": corpus_of(record.source for record in result.kept),
        "fingerprint": content_fingerprint(kept_rows),
        "annotations": [{"file": Path(name).name, "sha256": digest} for name, digest in lists],
        "seed": seed,
        "images": len(result.kept),
        "bytes": sum(result.facts[r.file].size for r in result.kept),
        "formats": dict(sorted(Counter(result.facts[r.file].format for r in result.kept).items())),
        "splits": {
            split: {
                "images": sum(len(group) for shard in shards for group in shard),
                "shards": len(shards),
                "row_groups": sum(len(shard) for shard in shards),
                "shuffle_buffer_size": shuffle_buffer_size(shards),
                **{column: counts(column, split) for column in columns},
            }
            for split, shards in plans.items()
        },
        "rights": rights_rows(Counter((r.license, r.source) for r in result.kept)),
        "repeated_rows": repeated_rows,
        "left_out": result.left_out_json(),
    }


def _write_shards(
    shards: Mapping[Path, Sequence[Sequence[Record]]],
    rows_of: Callable[[Sequence[Record]], Iterable[dict[str, Any]]],
    schema: pa.Schema,
    threads: int,
    bar: Any,
) -> None:
    """Write Parquet files, with more than one thread two at each file: one reads a row group, one writes the last.

    Args:
        shards: file -> its row groups.
        rows_of: reads the rows of a row group, in its order.
        schema: of the files.
        threads: about as many row groups are in memory.
        bar: told of every row.

    Raises:
        Exception: the first that a thread met; no thread is left when it is raised.
    """
    stop, lock = Event(), Lock()

    def load(group: Sequence[Record]) -> pa.Table:
        rows = []
        for row in rows_of(group):
            if stop.is_set():
                raise CancelledError
            rows.append(row)
            with lock:
                bar.update(1)
        return pa.Table.from_pylist(rows, schema=schema)

    if threads == 1:
        for file, groups in shards.items():
            _write_shard(file, map(load, groups), schema)
        return
    at_once = min(len(shards), -(-threads // 2))
    with ThreadPoolExecutor(at_once) as readers, ThreadPoolExecutor(at_once) as writers:

        def write(file: Path, groups: Sequence[Sequence[Record]]) -> None:
            _write_shard(file, _one_ahead(readers, load, groups), schema)

        try:
            futures = [writers.submit(write, file, groups) for file, groups in shards.items()]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # Ctrl-C as well: what is in flight ends with the image it is at
            stop.set()
            writers.shutdown(cancel_futures=True)
    errors = (future.exception() for future in futures if not future.cancelled())
    for error in errors:
        if error is not None and not isinstance(error, CancelledError):
            raise error


def _one_ahead(
    pool: ThreadPoolExecutor, load: Callable[[Sequence[Record]], pa.Table], groups: Sequence[Sequence[Record]]
) -> Iterator[pa.Table]:
    """The table of each group; while the caller is at one, the pool is at the next."""
    following = pool.submit(load, groups[0])
    for group in groups[1:]:
        table = following.result()
        following = pool.submit(load, group)
        yield table
    yield following.result()


def _write_shard(file: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with shard_writer(file, schema) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=table.num_rows)


def shard_writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet file of rows with images; to be told of every row group's size."""
    small = [name for name in schema.names if name != "image"]
    return pq.ParquetWriter(
        file,
        schema,
        # Image bytes do not compress; statistics of `label` are what lets a filter skip row groups.
        compression={"image.bytes": "none", "image.path": "snappy", **dict.fromkeys(small, "snappy")},
        use_dictionary=small,
        write_statistics=small,
        # Byte ranges cut by content: an edited dataset re-uploads only what changed.
        use_content_defined_chunking=True,
    )


def encoded(row: dict[str, Any], features: datasets.Features) -> dict[str, Any]:
    """A row with the ids of its classes in place of their names, as it is stored."""
    return {
        column: features[column].str2int(value)
        if isinstance(features[column], datasets.ClassLabel) and value is not None
        else value
        for column, value in row.items()
    }
