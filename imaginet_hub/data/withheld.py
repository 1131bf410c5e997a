"""A dataset in two parts: rows that may be passed on, and a list of the others with a command that brings them back.

`write_redistributable` makes a repository of the first and a table of the second; `complete` puts what was published
into a ROOT and has the rest fetched from its sources, so that a build of that ROOT has the original's fingerprint.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imaginet_hub.data.builder import BUILD_REPORT, features_of
from imaginet_hub.data.fetch import Summary, claimed, fetch
from imaginet_hub.data.images import IMAGE_SUFFIXES, ImageFacts
from imaginet_hub.data.keeper import Keeper, disk_error
from imaginet_hub.data.ledger import FOLDER, Ledger
from imaginet_hub.data.manifest import (
    Record,
    Where,
    classes_file,
    find_annotations,
    read_annotations,
    table_record,
    write_annotations,
)
from imaginet_hub.data.partial import MISSING_LIST
from imaginet_hub.data.progress import progress_bar
from imaginet_hub.data.readers.hub import download_dataset
from imaginet_hub.data.repository import (
    ROW_GROUP_BYTES,
    SHARD_BYTES,
    Sized,
    plan_split,
    report_of,
    staged_repository,
    usable_target,
)
from imaginet_hub.data.rights import changes_forbidden, rights_of, unknown_name
from imaginet_hub.data.scan import Scan, content_fingerprint
from imaginet_hub.data.units import one_line
from imaginet_hub.errors import AnnotationError, BuildError, DataNotFoundError, UsageError
from imaginet_hub.labels import LABEL_COLUMNS, Vocabulary

__all__ = ["REBUILD", "WITHHELD", "Division", "complete", "redistributable", "write_redistributable"]

#: Beside the rows that are published: the table of the others.
WITHHELD = "withheld.csv"
#: What brings them back, with the repository's name in the place of the last word.
REBUILD = "imaginet build ROOT OUT --complete PATH_OR_REPO"
#: What the publisher may state of all rows.
_ALL = "all"
_ANNOTATIONS = "annotations.csv"
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.parquet")
#: Images in memory at a time, of a row group that may be large.
_BATCH = 32


@dataclass(frozen=True)
class Division:
    """Which rows of a dataset may be passed on.

    Attributes:
        kept, withheld: (source, license) -> images.
    """

    kept: Mapping[tuple[str, str], int]
    withheld: Mapping[tuple[str, str], int]


def redistributable(folder: str | os.PathLike[str], stated: Sequence[str] = ()) -> Division:
    """Divide the rows of a dataset by whether they may be passed on; no image is read.

    A row is withheld unless its licence clearly allows it (see `rights.rights_of`; of rendered images also without
    a licence that forbids changes) or the publisher states the right. So is a row with the same file as another that
    is withheld.

    Args:
        folder: that `imaginet build` or `imaginet perturb` wrote.
        stated: licences or sources, exactly as in the rows, that the publisher has the right to pass on; or "all".

    Raises:
        DataNotFoundError: no such folder.
        UsageError: a stated name that no row has.
    """
    terms: list[_Terms] = []
    with _reading(folder):
        for file in _files(Path(folder).expanduser()):
            with pq.ParquetFile(file) as opened:
                names = opened.schema_arrow.names
                rendered = "source_sha256" in names
                columns = ["license", "source", "source_sha256" if rendered else "sha256"]
                there = [name for name in columns if name in names]
                for group in range(opened.num_row_groups):
                    table = opened.read_row_group(group, columns=there)
                    values = [table[c].to_pylist() if c in there else [None] * len(table) for c in columns]
                    terms += (
                        _Terms(str(license_ or ""), str(source or ""), digest, rendered)
                        for license_, source, digest in zip(*values, strict=True)
                    )
    kept: Counter[tuple[str, str]] = Counter()
    withheld: Counter[tuple[str, str]] = Counter()
    for row, passes in zip(terms, _passing(terms, stated), strict=True):
        (kept if passes else withheld)[row.source, row.license] += 1
    return Division(dict(sorted(kept.items())), dict(sorted(withheld.items())))


@dataclass(frozen=True, slots=True)
class _Terms:
    """What decides on a row: its terms, its file, and whether that was made of another file."""

    license: str
    source: str
    digest: str | None
    rendered: bool = False


def _passing(rows: Sequence[_Terms], stated: Sequence[str]) -> list[bool]:
    """Which rows may go; see `redistributable`."""
    known = Counter(name for row in rows for name in {row.license, row.source})
    for word in stated:
        if word != _ALL and word not in known:
            raise UsageError(f"redistribute: {unknown_name(word, known, (_ALL,), 'licence or source')}")
    if _ALL in stated:
        return [True] * len(rows)
    words = frozenset(stated)
    licenses, sources = {row.license for row in rows}, {row.source for row in rows}
    for word in words & licenses & sources:
        others = {row.license for row in rows if row.source == word} - {word}
        if others or any(row.license == word and row.source != word for row in rows):
            raise UsageError(
                f"redistribute: {one_line(word)!r} is the name of a licence and of a source, which are not the "
                "same rows; name the sources that have it, or the licences"
            )

    def allowed(row: _Terms) -> bool:
        if row.license in words or row.source in words:
            return True
        clear = rights_of(row.license, row.source).redistribution == "yes"
        return clear and not (row.rendered and changes_forbidden(row.license))

    first = [allowed(row) for row in rows]
    stays = {row.digest for row, fine in zip(rows, first, strict=True) if not fine and row.digest is not None}
    return [fine and row.digest not in stays for row, fine in zip(rows, first, strict=True)]


# --- the rows of a built repository ----------------------------------------------------------------------------------


@contextmanager
def _reading(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever reading a dataset's files raises in here becomes one line."""
    try:
        yield
    except (AnnotationError, BuildError, DataNotFoundError, UsageError):
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowException) as error:
        raise DataNotFoundError(
            f"expected a dataset that `imaginet build` wrote at {folder}, found none that can be read ({error})"
        ) from error


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("data/*.parquet"))
    if not files:
        raise DataNotFoundError(f"expected a dataset that `imaginet build` wrote at {folder}, found no data/*.parquet")
    return files


@dataclass(frozen=True)
class _Place:
    """Where a row is."""

    file: Path
    group: int
    row: int


class _Stored:
    """A built repository: the small columns of all rows in memory, images only as they are asked for.

    Attributes:
        folder: where it is.
        report: build_report.json.
        features, vocabulary, carried_columns: of the rows.
        records: in the files' order, each with the checksum of its file.
        facts: by `Record.file`; sizes are 0, since images have not been read.
        places: by `Record.file`.

    Raises:
        DataNotFoundError: it is not such a folder.
        AnnotationError: a row that no build would have written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[Record] = []
        self.facts: dict[str, ImageFacts] = {}
        self.places: dict[str, _Place] = {}
        with _reading(folder):
            self.report = json.loads((folder / BUILD_REPORT).read_text(encoding="utf-8"))
            files = _files(folder)
            features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
            self.vocabulary = Vocabulary(**{column: tuple(features[column].names) for column in LABEL_COLUMNS})
            fixed = features_of(self.vocabulary)
            self.carried_columns = tuple(column for column in features if column not in fixed)
            self.features = features_of(self.vocabulary, self.carried_columns)
            for file in files:
                self._read(file)

    def _read(self, file: Path) -> None:
        named = _SHARD.fullmatch(file.name)
        if named is None:
            raise BuildError(f"{file}: expected a name such as data/train-00000-of-00001.parquet, as a build gives")
        with pq.ParquetFile(file) as opened:
            if datasets.Features.from_arrow_schema(opened.schema_arrow) != self.features:
                raise BuildError(f"{file}: expected the columns of a build, the same in each file; build it again")
            columns = [column for column in self.features if column != "image"]
            for group in range(opened.num_row_groups):
                for number, row in enumerate(opened.read_row_group(group, columns=columns).to_pylist()):
                    self._take(row, named[1], _Place(file, group, number))

    def _take(self, row: dict[str, Any], split: str, place: _Place) -> None:
        where = Where(str(place.file), len(self.records) + 1)
        values = {
            column: self.features[column].int2str(value)
            if column in LABEL_COLUMNS
            else ("" if value is None else str(value))
            for column, value in row.items()
        }
        record = table_record({**values, "split": split}, where)
        if record.file in self.places:
            raise where.error("path", "each image once", record.path)
        if record.sha256 is None:
            raise where.error("sha256", "64 hexadecimal digits", "")
        self.records.append(record)
        self.facts[record.file] = ImageFacts(record.sha256, row["width"], row["height"], row["format"], 0)
        self.places[record.file] = place

    def groups(self, records: Iterable[Record]) -> Iterator[tuple[Path, int, list[Record]]]:
        """Records by the row group that they are in, as far as they stand together."""

        def group_of(record: Record) -> tuple[Path, int]:
            place = self.places[record.file]
            return place.file, place.group

        for (file, group), several in itertools.groupby(records, group_of):
            yield file, group, list(several)

    def sizes(self, records: Iterable[Record]) -> dict[str, int]:
        """How many bytes each image has, by `Record.file`."""
        found: dict[str, int] = {}
        with _reading(self.folder):
            for file, group, several in self.groups(records):
                with pq.ParquetFile(file) as opened:
                    images = opened.read_row_group(group, columns=["image.bytes"])["image"]
                lengths = pc.binary_length(pc.struct_field(images, "bytes")).to_pylist()
                found |= {record.file: lengths[self.places[record.file].row] for record in several}
        return found

    def rows(self) -> Callable[[Sequence[Record]], Iterator[dict[str, Any]]]:
        """A reader of records' rows, as they are stored.

        Of each label it keeps the row group that it read last: labels have row groups of their own, in whose order
        their rows are asked for.
        """
        last: dict[str, tuple[tuple[Path, int], pa.Table]] = {}

        def rows_of(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
            for file, group, several in self.groups(records):
                label = several[0].label
                if label not in last or last[label][0] != (file, group):
                    last.pop(label, None)
                    with _reading(self.folder), pq.ParquetFile(file) as opened:
                        last[label] = ((file, group), opened.read_row_group(group))
                table = last[label][1]
                for record in several:
                    yield table.slice(self.places[record.file].row, 1).to_pylist()[0]

        return rows_of

    def images(self) -> Iterator[tuple[Record, bytes]]:
        """Every record with its image, a few in memory at a time.

        Raises:
            BuildError: an image that is not what its row says.
        """
        for file, group, several in self.groups(self.records):
            with _reading(self.folder), pq.ParquetFile(file) as opened:
                batches = opened.iter_batches(batch_size=_BATCH, row_groups=[group], columns=["image"])
                values = (value for batch in batches for value in batch.column("image").to_pylist())
                for record, value in zip(several, values, strict=True):
                    data = (value or {}).get("bytes") or b""
                    found = hashlib.sha256(data).hexdigest()
                    if found != record.sha256:
                        raise BuildError(
                            f"{file}: {record.path}: expected SHA-256 {record.sha256} as its row says, found {found}; "
                            "the file was damaged or changed: have it anew"
                        )
                    yield record, data


# --- publishing a part -----------------------------------------------------------------------------------------------


def write_redistributable(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    stated: Sequence[str],
    render_card: Callable[[dict[str, Any]], str],
    *,
    row_group_bytes: int = ROW_GROUP_BYTES,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Write a repository of the rows that may be passed on, and `withheld.csv`, a table of the others.

    Files are laid out as `build_repository` does; images go as they are. The folder appears under its name only when
    it is complete.

    Args:
        folder: that `build_repository` (or this function) wrote.
        out: the folder to write.
        stated: see `redistributable`.
        render_card: makes README.md from the report.
        row_group_bytes, shard_bytes: see `build_repository`.

    Returns:
        The report, as in `build_report.json`: as of a build of these rows alone, with `withheld` ([{source, license,
        images}]), `original` (`images` and `fingerprint` of all rows together, and `splits`: the same of each split,
        by its name), `rebuild` (the command that brings the others back) and, where something was stated, `stated`.

    Raises:
        BuildError: no row may go, or `out` cannot be written.
        DataNotFoundError, UsageError: see `redistributable`.
    """
    source = Path(folder).expanduser()
    stored = _Stored(source)
    target = usable_target(out, source, BUILD_REPORT, overwrite=False, what="the dataset")
    passes = _passing([_Terms(r.license, r.source, r.sha256) for r in stored.records], stated)
    kept = [record for record, fine in zip(stored.records, passes, strict=True) if fine]
    withheld = [record for record, fine in zip(stored.records, passes, strict=True) if not fine]
    withheld += _listed_in(stored)  # by an earlier division
    if not kept:
        raise BuildError(
            f"{source}: no row's licence is known to allow passing it on, so nothing would be left; state what you "
            "have the right to"
        )
    sizes = stored.sizes(kept)
    facts = {record.file: replace(stored.facts[record.file], size=sizes[record.file]) for record in kept}
    seed = int(stored.report.get("seed", 0))
    # In the files' order, which is that of the seed: row groups are read one after the other.
    plans = {
        split: plan_split(rows, seed=None, row_group_bytes=row_group_bytes, shard_bytes=shard_bytes)
        for split, rows in _by_split(kept, sizes).items()
    }
    with _reading(source):
        lists = [(item["file"], item["sha256"]) for item in stored.report["annotations"]]
        report = report_of(Scan(tuple(kept), facts, ()), plans, lists, stored.report["repeated_rows"], seed)
        report |= {key: stored.report[key] for key in ("left_out", "partial", "selected") if key in stored.report}
        original = {
            "images": len(stored.records),
            "fingerprint": stored.report["fingerprint"],
            "splits": _contents(stored.records),
        }
    counts = Counter((record.source, record.license) for record in withheld)
    report |= {
        "class_names": {column: list(stored.vocabulary.names(column)) for column in LABEL_COLUMNS},
        "carried_columns": list(stored.carried_columns),
        "withheld": [{"source": s, "license": name, "images": n} for (s, name), n in sorted(counts.items())],
        "original": stored.report.get("original", original),
        "rebuild": REBUILD + (f" --seed {seed}" if seed else ""),
        **({"stated": sorted(set(stated))} if stated else {}),
    }
    schema = stored.features.arrow_schema
    with staged_repository(target, report, plans, stored.rows(), schema, 1, render_card) as staging:
        if withheld:
            write_annotations(staging / WITHHELD, withheld, stored.carried_columns)
        if (source / MISSING_LIST).is_file():
            (staging / MISSING_LIST).write_bytes((source / MISSING_LIST).read_bytes())
    return report


def _listed_in(stored: _Stored) -> list[Record]:
    """What is listed beside a dataset's rows as not in it.

    Raises:
        AnnotationError: a table that cannot be read, or that has other columns than the rows.
    """
    table = stored.folder / WITHHELD
    if not table.is_file():
        return []
    manifest = read_annotations(table)
    if manifest.carried_columns != stored.carried_columns:
        expected, found = (", ".join(c) or "none" for c in (stored.carried_columns, manifest.carried_columns))
        raise AnnotationError(f"{table}: expected the rows' further columns ({expected}), found {found}; have it anew")
    return list(manifest.records)


def _fingerprint(records: Iterable[Record]) -> str:
    return content_fingerprint((str(r.sha256), r.label, r.generator_family, r.generator) for r in records)


def _contents(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """What each split holds; the fingerprint of all of them does not tell which split an image is in."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.split, []).append(record)
    return {split: {"images": len(rows), "fingerprint": _fingerprint(rows)} for split, rows in sorted(found.items())}


def _by_split(records: Iterable[Record], sizes: Mapping[str, int]) -> dict[str, list[Sized]]:
    found: dict[str, list[Sized]] = {}
    for record in records:
        found.setdefault(record.split, []).append(Sized(record, sizes[record.file]))
    usual = [split for split in ("train", "validation", "test") if split in found]
    return {split: found[split] for split in (*usual, *sorted(found.keys() - set(usual)))}


# --- bringing the rest back ------------------------------------------------------------------------------------------


def complete(
    dataset: str | os.PathLike[str],
    root: str | os.PathLike[str],
    *,
    revision: str | None = None,
    **fetch_options: Any,
) -> Summary:
    """Fill a ROOT with all images of a dataset of which a part was published.

    Published images are verified and put in their places, `annotations.csv` is written with all rows, then what is
    withheld is fetched from its sources. What is there already stays; a run that was killed goes on where it was.

    Args:
        dataset: a Hub id, or a folder that `imaginet build` (or `write_redistributable`) wrote.
        root: the folder to fill; made if absent.
        revision: of the Hub's repository.
        **fetch_options: as `fetch.fetch` takes them, but `annotations`.

    Returns:
        What came of the fetch; `build_repository(root, ...)` builds the whole once it is complete.

    Raises:
        DataNotFoundError: no such dataset.
        BuildError: the dataset is damaged, or its parts do not belong together.
        AnnotationError: a row that no build would have written.
        UsageError: ROOT carries other annotations.
        FetchError: see `fetch.fetch`.
    """
    base = Path(root).expanduser()
    stored = _Stored(_folder_of(dataset, revision))
    withheld = _listed_in(stored)
    records = [*stored.records, *withheld]
    _check(stored, records)
    with claimed(base, wait=bool(fetch_options.get("wait"))):
        try:
            _describe(base, records, stored)
            _put(base, stored)
        except DataNotFoundError:
            raise
        except OSError as error:
            raise disk_error(base, error) from error
    return fetch(base, annotations=base / _ANNOTATIONS, **fetch_options)


def _folder_of(dataset: str | os.PathLike[str], revision: str | None) -> Path:
    """The folder of a dataset, downloaded if it is on the Hub."""
    name = os.fspath(dataset)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise DataNotFoundError(
            f"no dataset at {name!r}: expected a folder that `imaginet build` wrote, or a Hub id (OWNER/NAME)"
        )
    return download_dataset(name, revision, ("data/*.parquet", WITHHELD, BUILD_REPORT))


def _check(stored: _Stored, records: Sequence[Record]) -> None:
    """That the rows and the list belong together, as far as that is on record, and that none lies where we write."""
    original = stored.report.get("original")
    contents = _contents(records)
    if isinstance(original, dict) and (
        original.get("fingerprint") != _fingerprint(records) or original.get("splits", contents) != contents
    ):  # splits were not always on record
        raise BuildError(
            f"{stored.folder}: its rows and {WITHHELD} together are not the dataset that {BUILD_REPORT} speaks of; "
            "they are of different versions: have all of it anew"
        )
    ours = (FOLDER, "annotations", _ANNOTATIONS, "annotations.parquet", classes_file(Path(_ANNOTATIONS)).name)
    for record in records:
        if record.file.partition("/")[0].casefold() in ours:
            raise BuildError(f"{stored.folder}: the path {record.path!r} is one of those that ROOT needs for itself")
        hidden = any(part.startswith(".") for part in record.file.split("/"))
        if hidden or Path(record.file).suffix.lower() not in IMAGE_SUFFIXES:
            raise BuildError(
                f"{stored.folder}: expected paths of images, got {one_line(record.path)!r}, perhaps a file of yours"
            )


def _describe(root: Path, records: Sequence[Record], stored: _Stored) -> None:
    """Write the annotations of all rows, and the class names if the rows do not show them as they are."""
    table = root / _ANNOTATIONS
    carried = find_annotations(root)
    fresh = root / FOLDER / _ANNOTATIONS
    write_annotations(fresh, records, stored.carried_columns)
    try:
        if carried is not None and (carried != table or table.read_bytes() != fresh.read_bytes()):
            raise UsageError(
                f"{root} carries annotations of its own ({carried.name}), which would speak of other images; choose "
                "another ROOT (images that you have can be given with --from), or move them away"
            )
        manifest = read_annotations(fresh)
        if len(manifest.records) != len(records):
            raise BuildError(f"{stored.folder}: {WITHHELD} lists images that are among its rows; have it anew")
        if manifest.vocabulary != stored.vocabulary:
            names = {column: stored.vocabulary.names(column) for column in LABEL_COLUMNS}
            text = json.dumps(names, indent=1, ensure_ascii=False) + "\n"
            classes_file(table).write_text(text, encoding="utf-8")
        else:
            classes_file(table).unlink(missing_ok=True)
        fresh.replace(table)
    finally:
        fresh.unlink(missing_ok=True)


def _put(root: Path, stored: _Stored) -> None:
    """Put the published images in their places, verified; those that are there and verified are left alone."""
    with closing(Ledger(root)) as ledger:
        keeper = Keeper(root, ledger, {})
        with progress_bar(total=len(stored.records), desc="published images", unit="img") as bar:
            for record, data in stored.images():
                bar.update(1)
                target = root / record.file
                try:
                    status = target.stat()
                except (FileNotFoundError, NotADirectoryError):
                    keeper.place(record, data, "published")
                    continue
                entry = ledger.entries.get(record.file)
                if entry and (entry.sha256, entry.bytes, entry.mtime_ns) == (
                    record.sha256,
                    status.st_size,
                    status.st_mtime_ns,
                ):
                    continue
                if status.st_size == len(data) and target.is_file() and target.read_bytes() == data:
                    keeper.adopt(record, data, status.st_mtime_ns)
                elif entry is None:
                    raise BuildError(
                        f"{target} is there and is not the image of that name in {stored.folder}; move it away, or "
                        "choose another ROOT"
                    )
                else:
                    keeper.place(record, data, "published")
