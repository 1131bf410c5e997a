"""Annotation lists in, records out.

Two formats are read wherever annotations are asked for:

- upstream's lists (`*.txt`): `path,origin,content_type,model,specific_model` with upstream's integers, no header; the
  split comes from the file's name. Also a folder of them (`train_annotations.txt`, `test_annotations.txt` and, for
  the `calibration` column, `calibration.txt`).
- tables with a header (`*.csv`, `*.parquet`): `path` and `label`, and as far as they are there `content_type,
  generator_family, generator, split, license, source`; further columns are carried along as strings. Class names are
  whatever occurs, so people can bring generators that nobody has heard of. Two more columns are read if they are
  there: `sha256`, a checksum to verify, and `calibration`, a flag (true/false). Beside `x.csv` there may be
  `x.classes.json`, a JSON object of class column -> names in the order of their ids, for rows that do not show all.

Paths are relative to ROOT and are kept exactly as they are written.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from imaginet_hub.data.sources import SOURCES, source_of
from imaginet_hub.errors import AnnotationError, DataNotFoundError, UsageError
from imaginet_hub.labels import LABEL_COLUMNS, ContentType, Origin, Vocabulary

__all__ = [
    "COMPUTED_COLUMNS",
    "TABLE_COLUMNS",
    "Manifest",
    "Record",
    "Where",
    "classes_file",
    "find_annotations",
    "looks_like_root",
    "read_annotations",
    "table_record",
    "write_annotations",
]

#: Columns of our own table format that have a meaning; anything else is carried along.
TABLE_COLUMNS = ("path", "label", "content_type", "generator_family", "generator", "split", "license", "source")
#: Columns that a build computes from the files. In a table, `sha256` is a checksum to verify, `calibration` a flag
#: (true/false); the others are ignored in favour of what the file itself says.
COMPUTED_COLUMNS = ("image", "sha256", "width", "height", "format", "calibration")

UPSTREAM_LISTS = {"train_annotations.txt": "train", "test_annotations.txt": "test"}
CALIBRATION_LIST = "calibration.txt"
_TABLES = ("annotations.parquet", "annotations.csv")

UNKNOWN = "unknown"
_SPLIT = re.compile(r"\w+(\.\w+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FLAGS = {"true": True, "1": True, "false": False, "0": False, "": False}

_UPSTREAM = Vocabulary.upstream()
#: Which generators upstream's encoding allows for each family (facts of its released lists).
_FAMILY_OF_GENERATOR = (0, 0, 0, 1, 1, 1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Record:
    """One annotated image.

    Attributes:
        path: as written in the list, byte for byte.
        label, content_type, generator_family, generator: class names.
        split: train, test or another split name.
        source, license: where it comes from and under which terms.
        calibration: whether upstream's calibration list names it.
        sha256: the checksum that the list promises, or None.
        carried: values of the manifest's `carried_columns`.
    """

    path: str
    label: str
    content_type: str
    generator_family: str
    generator: str
    split: str
    source: str
    license: str
    calibration: bool = False
    sha256: str | None = None
    carried: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The path below ROOT in its simplest form: `./ffhq/x.png` and `ffhq/x.png` are the same file."""
        short = self.path.removeprefix("./")
        if "./" in short or "//" in short or short.startswith("/") or short.endswith(("/", "/.")):
            return str(PurePosixPath(self.path))
        return short  # as nearly all are; this is asked a million times


@dataclass(frozen=True)
class Manifest:
    """Every annotated image of a ROOT.

    Attributes:
        records: in the order of the lists; each file once.
        vocabulary: the class names and their ids.
        carried_columns: further columns of the table, in its order.
        lists: (file name, SHA-256) of each annotation file that was read.
        repeated_rows: how many rows said the same thing again and were merged (upstream's per-group test lists
            name some real images several times).
    """

    records: tuple[Record, ...]
    vocabulary: Vocabulary
    carried_columns: tuple[str, ...]
    lists: tuple[tuple[str, str], ...]
    repeated_rows: int = 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The split names that occur: train and test first, then the others alphabetically."""
        present = {record.split for record in self.records}
        usual = [name for name in ("train", "validation", "test") if name in present]
        return (*usual, *sorted(present.difference(usual)))


@dataclass(frozen=True)
class Where:
    """A place in a list or a table, for error messages."""

    file: str
    line: int

    def error(self, column: str, expected: str, found: str) -> AnnotationError:
        shown = found if len(found) <= 200 else found[:200] + "..."
        return AnnotationError(
            f"{self.file}, line {self.line}, column {column!r}: expected {expected}, found {shown!r}; "
            "correct the row, or leave the row out"
        )


def find_annotations(root: str | os.PathLike[str]) -> Path | None:
    """The annotations that a ROOT carries with it, or None.

    Looked for, in this order: `annotations.parquet`, `annotations.csv`, upstream's `annotations/` folder, upstream's
    lists in ROOT itself.
    """
    root = Path(root)
    for name in _TABLES:
        if (root / name).is_file():
            return root / name
    for folder in (root / "annotations", root):
        if any((folder / name).is_file() for name in UPSTREAM_LISTS):
            return folder
    return None


def looks_like_root(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is laid out as a ROOT: it carries annotations, or has a top folder that only ImagiNet has."""
    folder = Path(folder)
    if not folder.is_dir():
        return False
    return find_annotations(folder) is not None or any((folder / top).is_dir() for s in SOURCES for top in s.folders)


def read_annotations(path: str | os.PathLike[str], splits: Collection[str] | None = None) -> Manifest:
    """Read a list, a table, or a folder of either.

    Args:
        path: upstream's `.txt`, our `.csv` or `.parquet`, or a folder that holds them.
        splits: keep these splits only; of a folder of lists, only the lists that they need are read.

    Raises:
        AnnotationError: naming file, line, column, what was expected and what was found.
        DataNotFoundError: there is nothing to read at `path`.
        UsageError: a file of another kind.
    """
    path = Path(path)
    if path.is_dir():
        table = next((path / name for name in _TABLES if (path / name).is_file()), None)
        if table is None:
            return _read_upstream_folder(path, splits)
        path = table
    if not path.is_file():
        raise DataNotFoundError(
            f"no annotations at {path}: expected upstream's list (.txt), a table (.csv, .parquet) or a folder of them"
        )
    reader = {".txt": _read_list, ".csv": _read_csv, ".parquet": _read_parquet}.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: expected annotations as .txt (upstream's lists), .csv or .parquet")
    listed = reader(path)
    return _assemble([listed], splits, None if listed.upstream else classes_file(path))


def write_annotations(path: Path, records: Iterable[Record], carried_columns: Sequence[str]) -> None:
    """A table (.csv) of records, whole or not at all; `read_annotations` gives the same records.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.incomplete")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow([*_WRITTEN, *carried_columns])
            for record in records:
                values = [getattr(record, column) for column in _WRITTEN[:-2]]
                flag = str(record.calibration).lower()
                writer.writerow([*values, record.sha256 or "", flag, *record.carried])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


#: The columns of a table that we write, before those that are carried along.
_WRITTEN = (*TABLE_COLUMNS, "sha256", "calibration")


def classes_file(path: Path) -> Path:
    """Where the class names of a table are, if its rows do not show all of them."""
    return path.with_suffix(".classes.json")


def _with_classes(vocabulary: Vocabulary, file: Path, data: bytes) -> Vocabulary:
    """The vocabulary of a table's rows, as the file beside it completes and orders it.

    Raises:
        AnnotationError: the file is not as documented, or lacks a name that occurs.
    """

    def error(column: str, expected: str, found: object) -> AnnotationError:
        return AnnotationError(f"{file}, {column!r}: expected {expected}, found {found!r:.200}; correct the file")

    try:
        given = json.loads(data)
    except (ValueError, RecursionError) as failed:
        raise error("class names", "a JSON object", str(failed)) from failed
    if not isinstance(given, dict) or not given.keys() <= LABEL_COLUMNS.keys():
        raise error("class names", f"an object with some of {', '.join(LABEL_COLUMNS)}", given)
    for column, names in given.items():
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise error(column, "a list of names", names)
        if len(set(names)) != len(names):
            raise error(column, "each name once", names)
        if absent := set(vocabulary.names(column)).difference(names):
            raise error(column, f"all names that occur, such as {min(absent)!r}", names)
        if column == "label" and tuple(names) != vocabulary.label:
            raise error(column, " and ".join(vocabulary.label), names)
        if Origin.REAL in names and column != "label" and names[-1] != Origin.REAL:
            raise error(column, f"{Origin.REAL} as the last name", names)
    return replace(vocabulary, **{column: tuple(names) for column, names in given.items()})


@dataclass(frozen=True)
class _Listed:
    """One annotation file, read."""

    file: str
    digest: str
    rows: list[tuple[Where, Record]]
    carried_columns: tuple[str, ...] = ()
    upstream: bool = False


def _assemble(lists: list[_Listed], splits: Collection[str] | None, classes: Path | None = None) -> Manifest:
    """Merge files into one manifest: each image once, no contradictions.

    Args:
        classes: where more is said of the class names, if it is there.
    """
    first: dict[str, tuple[Where, Record]] = {}
    repeated = 0
    for listed in lists:
        for where, record in listed.rows:
            known = first.setdefault(record.file, (where, record))
            if known[0] is where:
                continue
            if replace(known[1], path=record.path) != record:
                raise AnnotationError(
                    f"{where.file}, line {where.line}, column 'path': expected each image once, found "
                    f"{record.path!r} again with other values than in {known[0].file}, line {known[0].line}; "
                    "an image has one split and one set of labels"
                )
            repeated += 1
    everything = [record for _, record in first.values()]
    if not everything:
        raise AnnotationError(f"{', '.join(x.file for x in lists)}: expected at least one row, found none")
    if all(listed.upstream for listed in lists):
        vocabulary = Vocabulary.upstream()
    else:  # from every row, whatever the split: ids must not depend on which split is asked for
        vocabulary = Vocabulary.from_values(
            **{c: {getattr(r, c) for r in everything} for c in LABEL_COLUMNS if c != "label"}
        )
    named: tuple[tuple[str, str], ...] = ()
    if classes is not None and classes.is_file():
        data = classes.read_bytes()
        vocabulary = _with_classes(vocabulary, classes, data)
        named = ((str(classes), hashlib.sha256(data).hexdigest()),)
    records = tuple(r for r in everything if splits is None or r.split in splits)
    if not records:
        raise DataNotFoundError(
            f"{', '.join(x.file for x in lists)}: no row of split {' or '.join(sorted(splits or ()))}; "
            f"splits that occur: {', '.join(sorted({r.split for r in everything}))}"
        )
    return Manifest(
        records=records,
        vocabulary=vocabulary,
        carried_columns=lists[0].carried_columns,
        lists=(*((listed.file, listed.digest) for listed in lists), *named),
        repeated_rows=repeated,
    )


# --- upstream's lists ------------------------------------------------------------------------------------------------


def _read_upstream_folder(folder: Path, splits: Collection[str] | None) -> Manifest:
    wanted = [
        (folder / name, split) for name, split in UPSTREAM_LISTS.items() if splits is None or split in set(splits)
    ]
    if not wanted:
        raise UsageError(f"split: upstream's lists have train and test, got {' and '.join(map(repr, splits or ()))}")
    present = [(file, split) for file, split in wanted if file.is_file()]
    if not present:
        raise DataNotFoundError(
            f"no annotations in {folder}: expected {' or '.join(file.name for file, _ in wanted)}"
            f", or a table {' or '.join(_TABLES)}"
        )
    lists = [_read_list(file, split) for file, split in present]
    calibration = folder / CALIBRATION_LIST
    if calibration.is_file() and any(split == "train" for _, split in present):
        flagged = _read_list(calibration, "train")
        train = {record.file for listed in lists for _, record in listed.rows if record.split == "train"}
        for where, record in flagged.rows:
            if record.file not in train:
                raise where.error("path", "an image of the train list", record.path)
        names = {record.file for _, record in flagged.rows}
        lists = [
            replace(x, rows=[(w, replace(r, calibration=r.split == "train" and r.file in names)) for w, r in x.rows])
            for x in lists
        ]
        manifest = _assemble(lists, splits)
        return replace(manifest, lists=(*manifest.lists, (flagged.file, flagged.digest)))
    return _assemble(lists, splits)


def _split_of_file_name(path: Path) -> str:
    """The split that a list's name tells, in the way datasets reads split names from file names; else train."""
    words = re.split(r"[\W_]+", path.stem.lower())
    for split, keywords in (("test", ("test", "testing", "eval")), ("validation", ("val", "valid", "validation"))):
        if any(keyword in words for keyword in keywords):
            return split
    return "train"


def _read_list(path: Path, split: str | None = None) -> _Listed:
    data = path.read_bytes()
    split = split or _split_of_file_name(path)
    rows = []
    for number, line in enumerate(_decoded(data, str(path)).removeprefix("\ufeff").split("\n"), start=1):
        text = line.removesuffix("\r")
        if text.strip():
            where = Where(str(path), number)
            rows.append((where, _upstream_record(text, where, split)))
    return _Listed(str(path), hashlib.sha256(data).hexdigest(), rows, upstream=True)


def _upstream_record(text: str, where: Where, split: str) -> Record:
    fields = text.rsplit(",", 4)  # from the right: a path may hold commas
    if len(fields) != 5:
        raise where.error("path", "path,origin,content_type,model,specific_model", text)
    path, *numbers = fields
    _check_path(path, where)
    columns = ("origin", "content_type", "model", "specific_model")
    ids = []
    for column, names, number in zip(columns, LABEL_COLUMNS.values(), numbers, strict=True):
        if not (len(number) == 1 and number.isascii() and number.isdigit() and int(number) < len(names)):
            raise where.error(column, f"an integer from 0 to {len(names) - 1}", number)
        ids.append(int(number))
    origin, content, model, specific = ids
    if (model == 4) != (origin == 0):
        raise where.error("model", "4 for a real image" if origin == 0 else "0 to 3 for a synthetic image", str(model))
    if _FAMILY_OF_GENERATOR[specific] != model:
        allowed = " or ".join(str(s) for s, m in enumerate(_FAMILY_OF_GENERATOR) if m == model)
        raise where.error("specific_model", f"{allowed} for model {model}", str(specific))
    source, license_ = source_of(str(PurePosixPath(path)))
    return Record(
        path=path,
        label=_UPSTREAM.label[origin],
        content_type=_UPSTREAM.content_type[content],
        generator_family=_UPSTREAM.generator_family[model],
        generator=_UPSTREAM.generator[specific],
        split=split,
        source=source,
        license=license_,
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> _Listed:
    data = path.read_bytes()
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))  # what is in memory may be a field
    reader = csv.reader(io.StringIO(_decoded(data, str(path)).removeprefix("\ufeff"), newline=""), strict=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise Where(str(path), reader.line_num).error("row", "well-formed CSV", str(error)) from error
            if row is None:
                return
            if row:
                yield start, row

    lines = rows()
    header = next(lines, (1, []))[1]
    _check_header(header, str(path))
    parsed = []
    for line, values in lines:
        where = Where(str(path), line)
        if len(values) != len(header):
            column = header[len(values)] if len(values) < len(header) else header[-1]
            raise where.error(column, f"{len(header)} fields as in the header", f"{len(values)} fields")
        parsed.append((where, table_record(dict(zip(header, values, strict=True)), where)))
    return _Listed(str(path), hashlib.sha256(data).hexdigest(), parsed, _carried(header))


def _read_parquet(path: Path) -> _Listed:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        header = list(schema.names)
        _check_header(header, str(path))
        table = pq.read_table(path, columns=[name for name in header if name != "image"])
        # A built dataset stores class ids; its own metadata names them.
        features = datasets.Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else {}
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(f"{path}: expected a Parquet table, but it cannot be read ({error})") from error
    parsed = []
    for number, row in enumerate(table.to_pylist(), start=1):
        where = Where(str(path), number)
        values = {}
        for column, value in row.items():
            feature = features.get(column)
            if isinstance(feature, datasets.ClassLabel) and isinstance(value, int):
                values[column] = feature.int2str(value)
            else:
                values[column] = "" if value is None else str(value)
        parsed.append((where, table_record(values, where)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return _Listed(str(path), digest, parsed, _carried(header))


def _check_header(header: list[str], file: str) -> None:
    where = Where(file, 1)
    for column in ("path", "label"):
        if column not in header:
            raise AnnotationError(
                f"{file}, line 1, column {column!r}: expected a header with path and label "
                f"({','.join(TABLE_COLUMNS)}), found {','.join(header)!r}; add the header line"
            )
    for position, column in enumerate(header):
        if not column.strip():
            raise where.error(f"number {position + 1}", "a column name", column)
        if column in header[:position]:
            raise where.error(column, "each column once", column)
        meant = column.strip().casefold()
        if meant != column and meant in (*TABLE_COLUMNS, *COMPUTED_COLUMNS):
            raise where.error(column, f"the column name {meant!r}", column)


def _carried(header: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in header if name not in TABLE_COLUMNS and name not in COMPUTED_COLUMNS)


def table_record(row: Mapping[str, str], where: Where) -> Record:
    """A record of a table's row, every value a text.

    Raises:
        AnnotationError: naming the column.
    """
    path, label = row["path"], row["label"]
    _check_path(path, where)
    for column in (*LABEL_COLUMNS, "split", "source", "license"):
        if row.get(column, "") != row.get(column, "").strip():
            raise where.error(column, "no spaces around the value", row[column])
    if label not in set(Origin):
        raise where.error("label", "real or synthetic", label)
    generators = {}
    for column in ("generator_family", "generator"):
        name = row.get(column, Origin.REAL if label == Origin.REAL else UNKNOWN)
        if label == Origin.REAL and name not in (Origin.REAL, ""):
            raise where.error(column, "real (or nothing) for a real image", name)
        if label == Origin.SYNTHETIC and name.casefold() in (Origin.REAL, ""):
            raise where.error(column, f"a name for a synthetic image ({UNKNOWN!r} if nobody knows)", name)
        generators[column] = str(name or Origin.REAL)
    content_type = row.get("content_type", ContentType.UNCATEGORIZED)
    if not content_type:
        raise where.error("content_type", "a name (uncategorized if none fits)", content_type)
    split = row.get("split", "train")
    if not _SPLIT.fullmatch(split) or split == "all":
        raise where.error("split", "a split name such as train, validation or test", split)
    calibration = row.get("calibration", "").lower()
    if calibration not in _FLAGS:
        raise where.error("calibration", "true or false", calibration)
    sha256 = row.get("sha256", "").lower()
    if sha256 and not _SHA256.fullmatch(sha256):
        raise where.error("sha256", "64 hexadecimal digits", sha256)
    source, license_ = source_of(str(PurePosixPath(path)))
    return Record(
        path=path,
        label=label,
        content_type=str(content_type),
        generator_family=generators["generator_family"],
        generator=generators["generator"],
        split=split,
        source=row.get("source") or source,
        license=row.get("license") or license_,
        calibration=_FLAGS[calibration],
        sha256=sha256 or None,
        carried=tuple(row[column] for column in _carried(row)),
    )


# --- both ------------------------------------------------------------------------------------------------------------


def _decoded(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = Where(file, data.count(b"\n", 0, error.start) + 1)
        raise where.error("path", "UTF-8 text", data[error.start : error.start + 8].hex(" ")) from error


def _check_path(path: str, where: Where) -> None:
    pure = PurePosixPath(path)
    if not path.strip() or not pure.parts:
        raise where.error("path", "a path relative to ROOT", path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or re.match(r"[A-Za-z]:", path):
        raise where.error("path", "a path inside ROOT with forward slashes, neither absolute nor with '..'", path)
