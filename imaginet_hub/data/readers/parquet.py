"""Images in Parquet files by range: the footer, then the names of the rows, then the bytes of wanted row groups.

`datasets` stores images as they are: a column `image` of struct<bytes: binary, path: string>. A row group holds all
its bytes in one column chunk, which is the least that can be asked for.

Arrow decodes pages, and is shown nothing else: some footers end the process in which Arrow reads them, or fill its
memory. So the footer is read here, what it says is checked, and Arrow gets each column chunk as a file of its own with
a footer written here. Of pages, the headers are checked first: one may be said to hold gigabytes, and a dictionary may
repeat one value for ever. (Format: README.md and parquet.thrift of apache/parquet-format; Thrift's compact protocol.)
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from imaginet_hub.data.readers.files import File
from imaginet_hub.data.readers.runs import MAX_MEMBER_BYTES
from imaginet_hub.errors import FetchError

__all__ = ["ParquetImages"]

_BYTES, _PATH = "image.bytes", "image.path"

#: Footers of files with images have some 10 KB.
_TAIL_BYTES = 64 * 1024
_MAX_FOOTER_BYTES = 64 * 1024**2
#: In the footer, or it would take a hundred times its size in memory; a row group of three columns has about 200.
_MAX_FOOTER_VALUES = 1_000_000
#: Of a row group. `datasets` writes 100 rows or 100 MB; more than this is not an image's neighbourhood.
_MAX_ROWS = 1_000_000
#: A column chunk, and all of its pages, uncompressed. Images do not compress.
_MAX_CHUNK_BYTES = {_BYTES: 128 * 1024**2, _PATH: 32 * 1024**2}
_MAX_PAGE_BYTES = {_BYTES: 160 * 1024**2, _PATH: 64 * 1024**2}
#: Pages of images that expand more than this are bombs. Decoding takes several times what they expand to, in as many
#: threads as what is moved leaves room for.
_MAX_RATIO, _HARMLESS_BYTES = 2, 8 * 1024**2
_MAX_PAGES = 100_000
_MAX_HEADER_VALUES = 1_000
#: Images that are decoded together: each is a copy, and with a dictionary all may be copies of one that fills it.
_BATCH_ROWS = 32
_BATCH_BYTES = 24 * 1024**2
#: What decoding may copy, if every image is as large as the dictionary.
_MAX_COPIED_BYTES = 2**40

_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_BYTE_ARRAY, _REPEATED = 6, 2
_DATA, _INDEX, _DICTIONARY, _DATA_2 = range(4)
#: PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY, DELTA_LENGTH_BYTE_ARRAY: whose values are no larger than their pages
#: (dictionaries are read as such). In DELTA_BYTE_ARRAY a value may repeat a long one before it at no cost.
_ENCODINGS = {0: "PLAIN", 2: "PLAIN_DICTIONARY", 8: "RLE_DICTIONARY", 6: "DELTA_LENGTH_BYTE_ARRAY"}

_HOSTILE = (pa.ArrowException, OSError, ValueError, TypeError, ArithmeticError, LookupError, MemoryError)


class ParquetImages:
    """A Parquet file with images, somewhere. Threads may read different row groups of one at once.

    Raises (everywhere):
        FetchError: reason "format" if it is no Parquet file with images as `datasets` writes them, "corrupt" if it is
            not what it says of itself; and whatever reading its bytes raises.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._footer: _Footer | None = None
        self._opening = threading.Lock()

    def names(self) -> Iterator[tuple[int, list[str | None]]]:
        """Each row group's number and the names stored for its rows (None: no name). Moves the footer, once, and of
        each row group the column chunk of names.

        Names that are not UTF-8 have escaped bytes, like those of tar members.
        """
        for group in range(len(self._opened().groups)):
            chunk = self._chunk(group, _PATH)
            if chunk.rows == 0:
                yield group, []
                continue
            reader, _ = self._reader(chunk)
            with self._decoding(f"names in row group {group}"):
                names = [name for leaf in _leaves(reader.read(use_threads=False)) for name in _texts(leaf)]
            if len(names) != chunk.rows:
                raise self._corrupt(f"{chunk.rows:,} names in row group {group}", f"{len(names):,}")
            yield group, names

    def bytes_of(self, group: int) -> int:
        """What reading a row group moves. Where all of it is one page, reading holds three times that in memory."""
        return self._chunk(group, _BYTES).length

    def read(self, group: int, rows: Mapping[int, str]) -> Iterator[tuple[str, bytes | FetchError]]:
        """Images of one row group, as they were before they were stored.

        Args:
            group: its number.
            rows: wanted paths by the row's number within the group.

        Yields:
            (path, its bytes or what is wrong with its row), by rows.
        """
        chunk = self._chunk(group, _BYTES)
        for row, path in rows.items():
            if not 0 <= row < chunk.rows:
                yield path, self._row_error("missing", group, row, f"none of {chunk.rows:,} rows")
        wanted = sorted((row for row in rows if 0 <= row < chunk.rows), reverse=True)
        if not wanted:
            return
        try:
            yield from self._images(chunk, rows, wanted)
        finally:
            pa.default_memory_pool().release_unused()

    def _images(
        self, chunk: _Chunk, rows: Mapping[int, str], wanted: list[int]
    ) -> Iterator[tuple[str, bytes | FetchError]]:
        """Those of `wanted`, which has the last row first."""
        group = chunk.group
        reader, dictionary_bytes = self._reader(chunk)
        together = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, dictionary_bytes)))
        batches = reader.iter_batches(together, use_threads=False)
        end = 0
        while wanted:
            with self._decoding(f"images in row group {group}"):
                batch = next(batches, None)
                if batch is None:
                    raise self._corrupt(f"{chunk.rows:,} images in row group {group}", f"{end:,}")
                start, end = end, end + batch.num_rows
                (leaf,) = _leaves(batch)
            while wanted and wanted[-1] < end:
                row = wanted.pop()
                with self._decoding(f"image {row} of row group {group}"):
                    value = leaf[row - start].as_buffer()
                if value is None:
                    yield rows[row], self._row_error("missing", group, row, "none")
                elif value.size > MAX_MEMBER_BYTES:
                    yield rows[row], self._row_error("corrupt", group, row, f"one of {value.size:,} bytes")
                else:
                    yield rows[row], value.to_pybytes()

    # --- the footer -------------------------------------------------------------------------------------------------

    def _opened(self) -> _Footer:
        with self._opening:
            if self._footer is None:
                self._footer = self._open()
            return self._footer

    def _open(self) -> _Footer:
        size = self.file.size()
        tail = self._range(max(0, size - _TAIL_BYTES), size)
        if tail[-4:] != b"PAR1" or size < 12:
            got = "one with an encrypted footer" if tail[-4:] == b"PARE" else "a file with another end"
            raise self._format("a Parquet file", got)
        length = int.from_bytes(tail[-8:-4], "little")
        start = size - 8 - length
        if length > _MAX_FOOTER_BYTES or start < 4:
            raise self._format(f"a footer of at most {min(_MAX_FOOTER_BYTES, size - 12):,} bytes", f"{length:,}")
        if length + 8 > len(tail):
            tail = self._range(start, size - len(tail)) + tail
        with self._decoding("a footer"):
            described = _Thrift(memoryview(tail)[len(tail) - 8 - length : -8], _MAX_FOOTER_VALUES).struct()
            columns = _columns(_list(described.get(2)))
            groups = _list(described.get(4, []))
        for wanted in (_BYTES, _PATH):
            found = [column for column in columns if column.path == wanted]
            if len(found) != 1 or found[0].type != "BYTE_ARRAY" or _REPEATED in found[0].repetitions:
                got = ", ".join(f"{_shown(column.path)}: {column.type}" for column in columns[:12]) or "none"
                raise self._format(f"one column {_BYTES} and one {_PATH}, of byte strings", got[:300])
        numbers = {column.path: number for number, column in enumerate(columns) if column.path in (_BYTES, _PATH)}
        with self._decoding("descriptions of row groups"):
            places = [{path: _described(group, number) for path, number in numbers.items()} for group in groups]
        return _Footer(
            places, {path: columns[number] for path, number in numbers.items()}, size - len(tail), tail, start
        )

    # --- column chunks ----------------------------------------------------------------------------------------------

    def _chunk(self, group: int, column: str) -> _Chunk:
        """Where a column chunk lies, if that can be."""
        footer = self._opened()
        if not 0 <= group < len(footer.groups):
            raise self._corrupt(f"a row group {group}", f"{len(footer.groups):,} row groups")
        description = footer.columns[column]
        rows, codec, values, length, start, dictionary = footer.groups[group][column]
        if rows == values == 0:
            return _Chunk(group, description, footer.start, 0, 0, codec)  # the rest may be anything
        if 0 < dictionary < start:
            start = dictionary
        if not 0 <= rows <= _MAX_ROWS or values != rows:
            got = f"{rows:,} rows, {values:,} values"
            raise self._corrupt(f"at most {_MAX_ROWS:,} rows in row group {group}, and a value for each", got)
        if not (0 <= length <= _MAX_CHUNK_BYTES[column] and 4 <= start <= start + length <= footer.start):
            expected = (
                f"at most {_MAX_CHUNK_BYTES[column]:,} bytes before the footer for {column} of row group {group}"
            )
            raise self._corrupt(expected, f"{length:,} from byte {start:,}")
        return _Chunk(group, description, start, length, rows, codec)

    def _reader(self, chunk: _Chunk) -> tuple[pq.ParquetFile, int]:
        """What decodes a column chunk, once nothing speaks against it, and how large its dictionary is."""
        footer, end = chunk.footer(), 4 + chunk.length
        alone = mmap.mmap(-1, end + len(footer))  # which goes back to the system, as the heaps of threads do not
        alone[:4], alone[end:] = b"PAR1", footer
        data = memoryview(alone)[4:end]
        self._read_into(data, chunk.start)
        with self._decoding(f"pages of {chunk.column.path} in row group {chunk.group}"):
            dictionary_bytes = self._check_pages(chunk, data)
            reader = pq.ParquetFile(
                pa.BufferReader(pa.py_buffer(alone)),
                # Or each use of a name would be a copy of it. (Images are not read all at once.)
                read_dictionary=[chunk.column.arrow_path] if dictionary_bytes and chunk.column.path == _PATH else None,
                pre_buffer=False,
                page_checksum_verification=True,
            )
        return reader, dictionary_bytes

    def _check_pages(self, chunk: _Chunk, data: memoryview) -> int:
        """Walk over the page headers; return how large the dictionary is, uncompressed."""
        position = values = unpacked = pages = dictionary_bytes = 0
        most = _MAX_PAGE_BYTES[chunk.column.path]
        if chunk.column.path == _BYTES:
            most = min(most, _MAX_RATIO * len(data) + _HARMLESS_BYTES)
        where = f"{chunk.column.path} of row group {chunk.group}"
        while values < chunk.rows:
            thrift = _Thrift(data[position:], _MAX_HEADER_VALUES)
            header = thrift.struct()
            kind, size, length = (_number(header.get(field)) for field in (1, 2, 3))
            position += thrift.position + length
            unpacked += size
            pages += 1
            if position > len(data):
                raise self._corrupt(f"pages of {where} in {len(data):,} bytes", "one that lies beyond them")
            if unpacked > most or pages > _MAX_PAGES:
                expected = f"at most {most:,} bytes in {_MAX_PAGES:,} pages of {where}"
                raise self._corrupt(expected, f"{unpacked:,} in {pages:,} and more")
            if kind not in (_DATA, _DATA_2, _DICTIONARY):
                if kind != _INDEX:
                    raise self._corrupt(f"pages of {where}", f"a page of kind {kind}")
                continue
            inner = _fields(header.get({_DATA: 5, _DATA_2: 8, _DICTIONARY: 7}[kind]))
            count, encoding = _number(inner.get(1)), _number(inner.get(4 if kind == _DATA_2 else 2))
            if encoding not in _ENCODINGS:
                expected = f"{where} encoded as {', '.join(_ENCODINGS.values())}"
                raise self._format(expected, f"encoding {encoding}")
            if kind == _DICTIONARY:
                dictionary_bytes += size
                if count > _MAX_ROWS:
                    raise self._corrupt(f"at most {_MAX_ROWS:,} values in a dictionary of {where}", f"{count:,}")
            else:
                values += count
        if values != chunk.rows:
            raise self._corrupt(f"{chunk.rows:,} values in the pages of {where}", f"{values:,}")
        if dictionary_bytes * chunk.rows > _MAX_COPIED_BYTES:
            expected = f"a dictionary of at most {_MAX_COPIED_BYTES // chunk.rows:,} bytes in {where}"
            raise self._corrupt(expected, f"{dictionary_bytes:,}")
        return dictionary_bytes

    # --- bytes and errors -------------------------------------------------------------------------------------------

    def _range(self, start: int, end: int) -> bytearray:
        data = bytearray(end - start)
        self._read_into(memoryview(data), start)
        return data

    def _read_into(self, view: memoryview, start: int) -> None:
        """A range, in one request and without a second copy of it; none for what was read with the footer."""
        held = self._footer
        if held is not None and start >= held.tail_start:
            view[:] = held.tail[start - held.tail_start :][: len(view)]
            return
        position = 0
        for piece in self.file.stream(start, start + len(view)):
            view[position : position + len(piece)] = piece
            position += len(piece)

    @contextlib.contextmanager
    def _decoding(self, what: str) -> Iterator[None]:
        try:
            yield
        except _HOSTILE as error:
            raise self._corrupt(f"{what} that can be read", f"{type(error).__name__} ({str(error)[:200]})") from error

    def _row_error(self, reason: str, group: int, row: int, got: str) -> FetchError:
        expected = f"an image of at most {MAX_MEMBER_BYTES:,} bytes in row {row:,} of row group {group}"
        return self.file.error(reason, expected, got, self.file.remedy)

    def _corrupt(self, expected: str, got: str) -> FetchError:
        return self.file.error("corrupt", expected, got, self.file.remedy)

    def _format(self, expected: str, got: str) -> FetchError:
        return self.file.error("format", expected, got, f"it may be another kind of file; {self.file.remedy}")


@dataclass(frozen=True)
class _Column:
    """A column of the schema.

    Attributes:
        repetitions: of the groups around it and of itself: 0 (required), 1 (may be null) or 2 (repeated).
    """

    path: str
    type: str
    repetitions: tuple[int, ...]

    @property
    def arrow_path(self) -> str:
        return ".".join("c" for _ in self.repetitions)


@dataclass(frozen=True)
class _Footer:
    """What the footer says.

    Attributes:
        groups: what it says of each row group's columns, unchecked (see `_described`).
        columns: by path.
        tail_start, tail: the end of the file, which was read for it.
        start: where it begins; no column chunk reaches beyond.
    """

    groups: list[dict[str, tuple[int, ...]]]
    columns: dict[str, _Column]
    tail_start: int
    tail: bytearray
    start: int


@dataclass(frozen=True)
class _Chunk:
    """A column chunk: one column of one row group."""

    group: int
    column: _Column
    start: int
    length: int
    rows: int
    codec: int

    def footer(self) -> bytes:
        """The end of a file that holds this column chunk alone, from byte 4 on."""
        *groups, own = self.column.repetitions
        rows, length = _Wide(self.rows), _Wide(self.length)
        schema = [{4: b"c", 5: 1}, *({3: group, 4: b"c", 5: 1} for group in groups)]
        schema.append({1: _BYTE_ARRAY, 3: own, 4: b"c"})
        path = [b"c" for _ in self.column.repetitions]
        meta = {1: _BYTE_ARRAY, 2: [0], 3: path, 4: self.codec, 5: rows, 6: length, 7: length, 9: _Wide(4)}
        group = {1: [{2: _Wide(4), 3: meta}], 2: length, 3: rows}
        _, thrift = _written({1: 2, 2: schema, 3: rows, 4: [group]})
        return thrift + len(thrift).to_bytes(4, "little") + b"PAR1"


class _Thrift:
    """A walk over Thrift's compact protocol, with a limit to how much there is.

    Raises:
        ValueError, IndexError: it is none, or has more values than it may.
    """

    def __init__(self, data: memoryview, most: int) -> None:
        self._data = data
        self._left = most
        self.position = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Fields by number: integers, bytes, lists and structs as such, anything else as None."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            if number in fields or not 0 <= number < 2**15:
                raise ValueError(f"field {number}, or two of them")
            kind = head & 15
            fields[number] = None if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > 16:
            raise ValueError("more values, or deeper ones, than there can be")
        match kind:
            case 1 | 2 | 3:  # a boolean in a list, a byte
                self._skip(1)
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                self._skip(8)
            case 8:
                count = self._varint()
                self._skip(count)
                return bytes(self._data[self.position - count : self.position])
            case 9 | 10:
                head = self._byte()
                count = self._varint() if head >> 4 == 15 else head >> 4
                return [self._value(head & 15, depth + 1) for _ in range(count)]
            case 12:
                return self.struct(depth + 1)
            case _:
                raise ValueError(f"a value of kind {kind}")
        return None

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.position - 1]

    def _skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self._data):
            raise ValueError("it ends too soon")

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)


class _Wide(int):
    """An integer that is written with 64 bits."""


def _written(value: Any) -> tuple[int, bytes]:
    """A value in Thrift's compact protocol: its kind, its bytes."""
    match value:
        case int():
            return 6 if isinstance(value, _Wide) else 5, _varint(value << 1)
        case bytes():
            return 8, _varint(len(value)) + value
        case list():
            items = [_written(item) for item in value]
            return 9, bytes((0xF0 | items[0][0],)) + _varint(len(items)) + b"".join(data for _, data in items)
        case _:
            fields = ((number, *_written(item)) for number, item in value.items())
            return 12, b"".join(bytes((kind,)) + _varint(number << 1) + data for number, kind, data in fields) + b"\0"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _columns(schema: list[Any]) -> list[_Column]:
    """The columns of a schema, which lists groups before what they hold."""
    columns: list[_Column] = []
    around: list[tuple[str, int]] = []
    left = [_number(_fields(schema[0]).get(5, 0))]
    for element in map(_fields, schema[1:]):
        while left and left[-1] == 0:
            left.pop()
            del around[len(left) - 1 if left else 0 :]
        if not left or len(left) > 16:
            raise ValueError("more columns, or deeper ones, than there can be")
        left[-1] -= 1
        trail = [*around, (_bytes(element.get(4)).decode(), _number(element.get(3, 0)))]
        children = _number(element.get(5, 0))
        if children:
            around = trail
            left.append(children)
        else:
            type_ = _TYPES[_number(element.get(1, 0))]
            columns.append(_Column(".".join(name for name, _ in trail), type_, tuple(r for _, r in trail)))
    if any(left):
        raise ValueError("fewer columns than it says")
    return columns


def _described(group: Any, number: int) -> tuple[int, ...]:
    """Of a column chunk: rows, codec, values, length, and where its data pages and its dictionary begin (0: none)."""
    fields = _fields(group)
    meta = _fields(_fields(_list(fields.get(1))[number]).get(3))
    codec, values, length, start = (_number(meta.get(field)) for field in (4, 5, 7, 9))
    return _number(fields.get(3)), codec, values, length, start, _number(meta.get(11, 0))


def _number(value: Any) -> int:
    """What has to be a count, a place or a code."""
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} for a number")
    return value


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError(f"{type(value).__name__} for a name")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{type(value).__name__} for a list")
    return value


def _fields(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{type(value).__name__} for a struct")
    return value


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _leaves(table: pa.Table | pa.RecordBatch) -> Iterator[pa.Array]:
    """The arrays of its only column, out of the structs around them."""
    (column,) = table.columns
    for array in column.chunks if isinstance(column, pa.ChunkedArray) else (column,):
        leaf = array
        while pa.types.is_struct(leaf.type):
            leaf = leaf.field(0)
        yield leaf


def _texts(leaf: pa.Array) -> list[str | None]:
    """All values; equal ones of a dictionary are one object."""
    if pa.types.is_dictionary(leaf.type):
        words = _texts(leaf.dictionary)
        return [None if number is None else words[number] for number in leaf.indices.to_pylist()]
    values = leaf.to_pylist()
    return [None if value is None else value.decode("utf-8", errors="surrogateescape") for value in values]
