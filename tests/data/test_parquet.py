"""Images in Parquet files: every way to write them, every byte accounted for, our own error from bad ones."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imaginet_hub.data.readers import parquet
from imaginet_hub.data.readers.files import LocalFile, RemoteFile
from imaginet_hub.data.readers.hosts import PlainFile
from imaginet_hub.data.readers.http import Http
from imaginet_hub.data.readers.parquet import ParquetImages
from imaginet_hub.errors import FetchError
from tests.conftest import image_bytes
from tests.data.test_zips import Memory
from tests.support.http import serve

Row = dict[str, Any] | None

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows_of(count: int, size: tuple[int, int] = (2_000, 9_000), seed: int = 1) -> list[Row]:
    """Rows with bytes that do not compress; some lack their bytes, their name or both, some are the one before."""
    chance = random.Random(seed)
    rows: list[Row] = []
    for number in range(count):
        row = {"bytes": chance.randbytes(chance.randint(*size)), "path": f"n0144_{number}_n0144.JPEG"}
        match number % 11:
            case 4:
                row["bytes"] = None
            case 5:
                row["path"] = None
            case 6:
                rows.append(None)
                continue
            case 7:
                row["bytes"] = b""
            case 9:
                row["bytes"] = rows[-1]["bytes"]  # type: ignore[index]
        rows.append(row)
    return rows


def written(rows: list[Row], type_: pa.DataType = IMAGE, group: int = 20, **options: Any) -> bytes:
    table = pa.table({"image": pa.array(rows, type=type_), "label": pa.array(range(len(rows)))})
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=group, **options)
    return stream.getvalue()


def read_all(file: Any) -> dict[tuple[int, int], tuple[str | None, bytes | FetchError]]:
    """Name and bytes of each row, by row group and row."""
    images = ParquetImages(file)
    results = {}
    for group, names in images.names():
        found = dict(images.read(group, {row: str(row) for row in range(len(names))}))
        results |= {(group, row): (name, found[str(row)]) for row, name in enumerate(names)}
    return results


def check(data: bytes, rows: list[Row], group: int = 20) -> None:
    got = read_all(Memory(data))
    assert list(got) == [divmod(number, group) for number in range(len(rows))]
    for (name, found), row in zip(got.values(), rows, strict=True):
        assert name == (row and row["path"])
        if row and row["bytes"] is not None:
            assert found == row["bytes"]
        else:
            assert isinstance(found, FetchError) and found.reason == "missing"


def only_our_error(data: bytes) -> FetchError:
    with pytest.raises(FetchError) as caught:
        read_all(Memory(data))
    assert caught.value.source == "danbooru" and caught.value.remedy
    return caught.value


# --- every kind -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["NONE", "SNAPPY", "ZSTD", "GZIP", "BROTLI", "LZ4"])
@pytest.mark.parametrize("page", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize(
    "more",
    [
        {"version": "1.0"},
        {"version": "2.4", "write_page_index": True, "write_statistics": True},
        {
            "version": "2.6",
            "write_page_checksum": True,
            "data_page_size": 4_000,
            "write_batch_size": 4,
            "dictionary_pagesize_limit": 20_000,
        },
        {"version": "2.6", "use_content_defined_chunking": True, "store_schema": False},
    ],
)
def test_kinds_of_files(compression: str, page: str, dictionary: bool, more: dict) -> None:
    rows = rows_of(50)
    data = written(rows, compression=compression, data_page_version=page, use_dictionary=dictionary, **more)
    check(data, rows)


@pytest.mark.parametrize(
    "type_",
    [
        pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
        pa.struct([("path", pa.binary()), ("bytes", pa.binary())]),
        pa.struct([("bytes", pa.binary()), ("width", pa.int32()), ("path", pa.string())]),
        pa.struct(
            [("bytes", pa.dictionary(pa.int32(), pa.binary())), ("path", pa.dictionary(pa.int8(), pa.string()))]
        ),
    ],
)
@pytest.mark.parametrize("dictionary", [False, True])
def test_kinds_of_columns(type_: pa.DataType, dictionary: bool) -> None:
    rows = rows_of(50)
    check(written(rows, type_, use_dictionary=dictionary), rows)


def test_columns_that_may_not_be_null() -> None:
    type_ = pa.struct([pa.field("bytes", pa.binary(), nullable=False), pa.field("path", pa.string(), nullable=False)])
    rows = [row for row in rows_of(50) if row and None not in row.values()]
    table = pa.table([pa.array(rows, type=type_)], schema=pa.schema([pa.field("image", type_, nullable=False)]))
    stream = io.BytesIO()
    pq.write_table(table, stream, row_group_size=20)
    check(stream.getvalue(), rows)


def test_names_that_are_not_utf_8() -> None:
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.binary())])
    names = ["größe.jpg".encode(), "größe.jpg".encode("latin-1"), b"a\0b", b""]
    data = written([{"bytes": b"x", "path": name} for name in names], type_)
    assert [name for _, (name, _) in enumerate(read_all(Memory(data)).values())] == [
        name.decode("utf-8", "surrogateescape") for name in names
    ]


def test_lengths_apart_from_values() -> None:
    rows = rows_of(50)
    data = written(rows, use_dictionary=False, column_encoding={"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"})
    check(data, rows)


def test_an_encoding_that_repeats_values_is_refused() -> None:
    data = written(rows_of(50), use_dictionary=False, column_encoding={"image.bytes": "DELTA_BYTE_ARRAY"})
    error = only_our_error(data)
    assert error.reason == "format" and "PLAIN" in error.expected


@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_rows(count: int) -> None:
    check(written(rows_of(count)), rows_of(count))


def test_a_file_of_datasets(tmp_path: Path) -> None:
    """What the library writes, down to the files' bytes, and read by it for comparison."""
    originals = {}
    for number in range(230):
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        originals[f"n{number:08d}_{number}_n{number:08d}.JPEG"] = image_bytes(number, (20, 30), kind)
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    images = [{"bytes": data, "path": name} for name, data in originals.items()]
    made = datasets.Dataset.from_dict({"image": images, "label": list(range(230))}, features=features)
    made.to_parquet(tmp_path / "a.parquet", batch_size=100)
    got = read_all(LocalFile(tmp_path / "a.parquet", "imagenet"))
    assert len(got) == len(originals) and max(group for group, _ in got) > 0
    assert dict(got.values()) == originals  # type: ignore[comparison-overlap]
    theirs = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in theirs] == [data for _, data in got.values()]


# --- bytes ----------------------------------------------------------------------------------------------------------


def _moved(file: Memory) -> int:
    return sum(end - start for start, end in file.asked)


@pytest.mark.parametrize("dictionary", [False, True])
@pytest.mark.parametrize("page", ["1.0", "2.0"])
def test_only_what_is_needed_moves(dictionary: bool, page: str) -> None:
    rows = rows_of(1000, (5_000, 15_000))
    data = written(
        rows, group=100, use_dictionary=dictionary, data_page_version=page, data_page_size=20_000, write_batch_size=8
    )
    metadata = pq.read_metadata(io.BytesIO(data))
    chunks = {c.path_in_schema: [] for c in map(metadata.row_group(0).column, range(3))}  # type: ignore[var-annotated]
    for group in range(10):
        for column in map(metadata.row_group(group).column, range(3)):
            chunks[column.path_in_schema].append(column.total_compressed_size)
    file = Memory(data)
    images = ParquetImages(file)
    assert file.asked == []
    names = dict(images.names())
    assert file.asked[0] == (len(data) - 65_536, len(data))
    assert len(file.asked) <= 1 + 10
    assert _moved(file) <= 65_536 + sum(chunks["image.path"])
    assert [name for group in range(10) for name in names[group]] == [row and row["path"] for row in rows]
    for group in (7, 2):
        before, requests = _moved(file), len(file.asked)
        found = dict(images.read(group, {3: "a", 99: "b"}))
        assert found == {"a": rows[100 * group + 3]["bytes"], "b": rows[100 * group + 99]["bytes"]}  # type: ignore[index]
        assert _moved(file) - before == chunks["image.bytes"][group] == images.bytes_of(group)
        assert len(file.asked) == requests + 1
    before = _moved(file)
    assert dict(images.read(4, {})) == {}
    assert _moved(file) == before


def test_a_small_file_takes_one_request() -> None:
    file = Memory(written(rows_of(50, (10, 500))))
    read_all(file)
    assert file.asked == [(0, file.total)]


def test_a_long_footer_takes_two_requests() -> None:
    rows = rows_of(2000, (1, 5))
    data = written(rows, group=2)
    length = int.from_bytes(data[-8:-4], "little")
    assert length > 100_000
    file = Memory(data)
    next(ParquetImages(file).names())
    assert _moved(file) <= length + 8 + 200
    assert file.asked[:2] == [(len(data) - 65_536, len(data)), (len(data) - length - 8, len(data) - 65_536)]


def test_at_a_host_and_from_threads(tmp_path: Path) -> None:
    rows = rows_of(400)
    (tmp_path / "a.parquet").write_bytes(written(rows, group=20))
    with serve(tmp_path) as server, Http() as http:
        images = ParquetImages(RemoteFile(http, PlainFile("imagenet", f"{server.url}/a.parquet")))
        wanted = {number: row["bytes"] for number, row in enumerate(rows) if row and row["bytes"] is not None}

        def job(group: int) -> dict[str, bytes | FetchError]:
            of_group = {number % 20: str(number) for number in wanted if number // 20 == group}
            return dict(images.read(group, of_group))

        with ThreadPoolExecutor(8) as pool:
            parts = list(pool.map(job, list(range(20)) * 3))
        needed = 3 * sum(images.bytes_of(group) for group in range(20))
        assert server.sent <= 1.01 * needed + 65_536 + 1
    assert {number: data for part in parts for number, data in part.items()} == {str(n): d for n, d in wanted.items()}
    assert sum(map(len, parts)) == 3 * len(wanted)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_that_are_not_there_stay_alone() -> None:
    rows = rows_of(50)
    images = ParquetImages(Memory(written(rows)))
    results = dict(images.read(2, {-1: "below", 0: "a", 9: "b", 10: "above", 2**70: "far above"}))
    assert (results.pop("a"), results.pop("b")) == (rows[40]["bytes"], rows[49]["bytes"])  # type: ignore[index]
    assert results.keys() == {"below", "above", "far above"}
    assert all(isinstance(error, FetchError) and error.reason == "missing" for error in results.values())
    for group in (-1, 3, 2**40):
        with pytest.raises(FetchError):
            images.bytes_of(group)


def test_an_image_that_is_too_large_stays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_MEMBER_BYTES", 1000)
    images = ParquetImages(Memory(written([{"bytes": b"x" * n, "path": "p"} for n in (1000, 1001, 5)])))
    results = dict(images.read(0, {0: "a", 1: "b", 2: "c"}))
    assert (results["a"], results["c"]) == (b"x" * 1000, b"x" * 5)
    assert isinstance(results["b"], FetchError) and "1,001" in str(results["b"])


def test_a_damaged_page_gives_what_is_before_it() -> None:
    rows = [{"bytes": random.Random(n).randbytes(5000), "path": f"{n}"} for n in range(100)]
    pages = {"write_page_checksum": True, "data_page_size": 20_000, "write_batch_size": 4}
    data = bytearray(written(rows, group=100, use_dictionary=False, compression="NONE", **pages))  # type: ignore[arg-type]
    data[data.find(rows[77]["bytes"]) + 2500] ^= 1
    got = []
    with pytest.raises(FetchError, match="CRC"):
        for delivery in ParquetImages(Memory(bytes(data))).read(0, {10: "10", 77: "77"}):
            got.append(delivery)
    assert got == [("10", rows[10]["bytes"])]


# --- what is none ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "word"),
    [
        (pa.table({"label": [1], "text": ["a"]}), "label: INT64, text: BYTE_ARRAY"),
        (pa.table({"image": [b"png"]}), "image: BYTE_ARRAY"),
        (pa.table({"image": [{"bytes": b"png"}]}), "image.bytes: BYTE_ARRAY"),
        (pa.table({"image": [{"bytes": 5, "path": "a"}]}), "image.bytes: INT64"),
        (pa.table({"image": [[{"bytes": b"png", "path": "a"}]]}), "image.list.element.bytes"),
        (pa.table({"image": [{"bytes": [b"png"], "path": "a"}]}), "image.bytes.list.element"),
        (pa.table([[b"a"], [b"b"], ["c"]], ["image.bytes", "image.bytes", "image.path"]), "image.bytes: BYTE_ARRAY"),
        (pa.table({}), "none"),
    ],
)
def test_other_columns(table: pa.Table, word: str) -> None:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    error = only_our_error(stream.getvalue())
    assert error.reason == "format"
    assert "image.bytes" in error.expected and word in error.got


def test_what_is_no_parquet_file() -> None:
    data = written(rows_of(50))
    for wrong in (b"", b"PAR1", b"PAR1PAR1", b"PK\3\4" * 100, b"<html>" * 20_000, data[:-1], data[1:], data[:5000]):
        assert only_our_error(wrong).reason in ("format", "corrupt"), wrong[:20]
    assert "encrypted" in str(only_our_error(data[:-4] + b"PARE"))
    for length in (2**32 - 1, 65 * 1024**2, len(data), len(data) - 11, 0):
        only_our_error(data[:-8] + struct.pack("<L", length) + b"PAR1")
    long = Memory(parts={10**9: struct.pack("<L", 65 * 1024**2) + b"PAR1"}, size=10**9 + 8)
    with pytest.raises(FetchError, match="footer of at most"):
        list(ParquetImages(long).names())
    assert _moved(long) == 65_536


# --- handmade files -------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def compact(value: Any) -> tuple[int, bytes]:
    """A value of Thrift's compact protocol and its type: int (i32), Wide (i64), bytes, list, dict of fields, Raw."""
    match value:
        case Wide():
            return 6, varint(value << 1 ^ value >> 127)
        case int():
            return 5, varint(value << 1 ^ value >> 127)
        case bytes():
            return 8, varint(len(value)) + value
        case Raw():
            return value.kind, value.data
        case list():
            items = [compact(item) for item in value]
            return 9, bytes([0xF0 | (items[0][0] if items else 12)]) + varint(len(items)) + b"".join(
                i for _, i in items
            )
        case dict():
            body = b""
            for number, item in value.items():
                kind, data = compact(item)
                body += bytes([kind]) + varint(number << 1) + data
            return 12, body + b"\0"
    raise TypeError(value)


class Wide(int):
    pass


class Raw:
    def __init__(self, kind: int, data: bytes) -> None:
        self.kind, self.data = kind, data


def page(data: bytes, count: int, *, kind: int = 0, encoding: int = 0, size: int | None = None, **more: Any) -> bytes:
    """A page of version 1, or with kind 2 a dictionary."""
    header = {1: kind, 2: len(data) if size is None else size, 3: len(data)}
    inner = {1: count, 2: encoding} | ({3: 3, 4: 3} if kind == 0 else {})
    header |= {7 if kind == 2 else 5: inner} | more.get("header", {})
    return compact(header)[1] + data


def plain(*values: bytes) -> bytes:
    return b"".join(struct.pack("<L", len(value)) + value for value in values)


SCHEMA = [
    {4: b"schema", 5: 1},
    {3: 0, 4: b"image", 5: 2},
    {1: 6, 3: 0, 4: b"bytes"},
    {1: 6, 3: 0, 4: b"path"},
]


def handmade(
    pages: bytes, rows: int, *, codec: int = 0, schema: list | None = None, footer: dict | None = None, **chunk: Any
) -> bytes:
    """A file of one row group without nulls; `pages` are those of the bytes, or if swapped of the names."""
    names = page(plain(*[b"name"] * min(rows, 10_000)), rows)
    body = b"PAR1" + pages + names
    columns = []
    first, second = (b"path", b"bytes") if chunk.get("swapped") else (b"bytes", b"path")
    for path, at, data, how in ((first, 4, pages, codec), (second, 4 + len(pages), names, 0)):
        meta = {1: 6, 2: [0], 3: [b"image", path], 4: how, 5: Wide(rows), 6: Wide(len(data)), 7: Wide(len(data))}
        meta |= {9: Wide(at)} | (chunk.get("meta", {}) if path == first else {})
        columns.append({2: Wide(0), 3: meta})
    columns = columns[::-1] if chunk.get("swapped") else columns
    group = {1: columns, 2: Wide(len(pages)), 3: Wide(rows)} | chunk.get("group", {})
    fields = {1: 1, 2: schema or SCHEMA, 3: Wide(rows), 4: [group]} | (footer or {})
    thrift = compact(fields)[1]
    return body + thrift + struct.pack("<L", len(thrift)) + b"PAR1"


def read_bytes(data: bytes, rows: int = 2) -> list[bytes | FetchError]:
    images = ParquetImages(Memory(data))
    return [found for _, found in images.read(0, {row: str(row) for row in range(rows)})]


@contextmanager
def little_memory(most: int = 64 * 1024**2) -> Iterator[None]:
    """What Arrow allocates stays below a limit."""
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        yield
        assert (pool.max_memory() or 0) <= most
    finally:
        pa.set_memory_pool(before)


@contextmanager
def traced(most: int) -> Iterator[None]:
    """What Python allocates stays below a limit."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= most
    finally:
        tracemalloc.stop()


def test_handmade_files_are_files() -> None:
    data = handmade(page(plain(b"one", b"two"), 2), 2)
    assert pq.read_table(io.BytesIO(data)).column(0).to_pylist() == [
        {"bytes": b"one", "path": b"name"},
        {"bytes": b"two", "path": b"name"},
    ]
    assert read_bytes(data) == [b"one", b"two"]
    assert dict(ParquetImages(Memory(data)).names()) == {0: ["name", "name"]}


def _refused(data: bytes, word: str, most: int = 64 * 1024**2) -> None:
    with little_memory(most), pytest.raises(FetchError, match=word):
        read_bytes(data)


@pytest.mark.parametrize("size", [400 * 1024**2, 2**31 - 1, 2**31, 2**32 + 14, -1])
@pytest.mark.parametrize("codec", ["snappy", "zstd", None])
def test_a_page_that_claims_gigabytes(size: int, codec: str | None) -> None:
    data = plain(b"one", b"two")
    packed = pa.Codec(codec).compress(data, asbytes=True) if codec else data
    _refused(handmade(page(packed, 2, size=size), 2, codec={None: 0, "snappy": 1, "zstd": 6}[codec]), "expected")


def test_bombs() -> None:
    zeros = pa.Codec("zstd").compress(bytes(400 * 1024**2), asbytes=True)
    assert len(zeros) < 100_000
    _refused(handmade(page(zeros, 2, size=400 * 1024**2), 2, codec=6), "at most 8,4[0-9]{2},[0-9]{3} bytes")
    # It claims little and would give much.
    _refused(handmade(page(zeros, 2, size=1000), 2, codec=6), "can be read")
    # Many pages that are each allowed.
    some = pa.Codec("zstd").compress(plain(bytes(50 * 1024**2)), asbytes=True)
    _refused(handmade(page(some, 1, size=50 * 1024**2 + 4) * 8, 8, codec=6), "at most 8,4[0-9]{2},[0-9]{3} bytes")


def test_a_dictionary_that_repeats_a_value_a_million_times() -> None:
    value = bytes(1024**2)
    pages = page(plain(value), 1, kind=2)
    pages += page(b"\1" + varint(1_000_000 << 1) + b"\0", 1_000_000, encoding=8)
    data = handmade(pages, 1_000_000, meta={2: [0, 8], 11: Wide(4), 9: Wide(4 + len(page(plain(value), 1, kind=2)))})
    with little_memory():
        images = ParquetImages(Memory(data))
        assert dict(images.read(0, {0: "a", 999: "b"})) == {"a": value, "b": value}


def test_a_dictionary_as_large_as_its_pages_may_be() -> None:
    """40 images of 40 MB that are one: one at a time."""
    value = bytes(40 * 1024**2)
    first = page(plain(value), 1, kind=2)
    data = handmade(first + page(b"\1" + varint(40 << 1) + b"\0", 40, encoding=8), 40)
    with little_memory(4 * len(value)):
        for _, found in ParquetImages(Memory(data)).read(0, {row: str(row) for row in range(40)}):
            assert found == value


def test_a_dictionary_that_would_be_copied_for_ever() -> None:
    first = page(plain(bytes(2 * 1024**2)), 1, kind=2)
    data = handmade(first + page(b"\1" + varint(1_000_000 << 1) + b"\0", 1_000_000, encoding=8), 1_000_000)
    _refused(data, "a dictionary of at most 1,099,511 bytes")


def test_names_that_repeat_a_long_one() -> None:
    """20,000 names of a megabyte, that are one."""
    rows, name = 20_000, b"n" * 1024**2
    first = page(plain(name), 1, kind=2)
    data = handmade(first + page(b"\1" + varint(rows << 1) + b"\0", rows, encoding=8), rows, swapped=True)
    with traced(64 * 1024**2), little_memory():
        assert dict(ParquetImages(Memory(data)).names()) == {0: [name.decode()] * rows}


def test_a_dictionary_that_claims_a_billion_values() -> None:
    first = page(plain(b"a"), 2**30, kind=2)
    data = handmade(first + page(b"\1\4\0", 2, encoding=8), 2, meta={11: Wide(4), 9: Wide(4 + len(first))})
    _refused(data, "values in a dictionary")


@pytest.mark.parametrize(
    "lies",
    [
        {"meta": {7: Wide(10**12)}},
        {"meta": {7: Wide(-5)}},
        {"meta": {9: Wide(10**12)}},
        {"meta": {9: Wide(-(2**62))}},
        {"meta": {9: Wide(0)}},
        {"meta": {11: Wide(2**62), 9: Wide(2**63 - 1)}},
        {"meta": {5: Wide(3)}},
        {"meta": {5: Wide(-1)}},
        {"meta": {5: Wide(10**9)}, "group": {3: Wide(10**9)}},
        {"group": {3: Wide(2**62)}},
        {"group": {3: Wide(-1)}},
        {"group": {1: []}},
        {"meta": {4: 99}},
        {"meta": {4: 3}},  # LZO
        {"footer": {4: []}},
        {"footer": {2: []}},
        {"schema": [{4: b"schema", 5: 2**31 - 1}]},
        {"schema": [{4: b"schema", 5: -1}]},
        {"schema": [*SCHEMA[:3], {1: 6, 3: 0, 4: b"\xff"}]},
        {"schema": [*SCHEMA[:3], {1: 6, 3: 0, 4: b"bytes"}]},
        {"schema": [*SCHEMA[:3], {1: 6, 3: 2, 4: b"path"}]},
    ],
)
def test_lies_of_the_footer(lies: dict) -> None:
    _refused(handmade(page(plain(b"one", b"two"), 2), 2, **lies), "expected")


@pytest.mark.parametrize(
    "lies",
    [
        {"meta": {1: 99}},
        {"meta": {3: []}},
        {"meta": {12: {1: b"\xff" * 100, 2: b""}}},
        {"meta": {16: {3: [Wide(1)] * 9}}},  # a histogram of another length, which ends Arrow's process
        {"footer": {3: Wide(-1)}},
        {"footer": {5: [{1: b"ARROW:schema", 2: b"/////" * 50}]}},
        {"footer": {6: b"\xff\0parquet-mr version 1.2.8"}},
    ],
)
def test_lies_that_nobody_reads(lies: dict) -> None:
    assert read_bytes(handmade(page(plain(b"one", b"two"), 2), 2, **lies)) == [b"one", b"two"]


@pytest.mark.parametrize(
    "pages",
    [
        b"",
        b"\0",
        page(plain(b"one", b"two"), 2)[:-1],
        page(plain(b"one", b"two"), 3),
        page(plain(b"one"), 1),
        page(plain(b"one")[:-1], 2),
        page(plain(b"one", b"two"), -2),
        page(plain(b"one", b"two"), 0) * 3,
        page(struct.pack("<L", 2**32 - 1) + b"one", 2),
        page(plain(b"one", b"two"), 2, encoding=4),
        page(plain(b"one", b"two"), 2, encoding=7),
        page(plain(b"one", b"two"), 2, encoding=8),  # without a dictionary
        page(plain(b"one", b"two"), 2, kind=7),
        page(plain(b"one", b"two"), 2, header={5: 7}),
        page(plain(b"one", b"two"), 2, header={3: -4}),
        page(plain(b"one", b"two"), 2, header={3: Wide(2**40)}),
        page(plain(b"one", b"two"), 2, header={65538: 2**30}),  # field 2 once more, in 16 bits
        page(plain(b"a"), 1, kind=2) * 2 + page(b"\1\4\0", 2, encoding=8),
        page(plain(b"a"), 1, kind=2) + page(b"\1\4\7", 2, encoding=8),  # beyond the dictionary
        page(plain(b"a"), 1, kind=2) + page(b"\x40\4\0", 2, encoding=8),  # 64 bits wide
        compact({1: 0, 2: 0, 3: 0, 5: {1: 0, 2: 0, 3: 3, 4: 3}})[1] * 200_000,
        b"\x19" * 100_000,  # lists in lists
        b"\x1c" * 100_000,  # structs in structs
        b"\x19\xfc" + varint(2**60),
    ],
)
def test_lies_of_pages(pages: bytes) -> None:
    _refused(handmade(pages, 2), "expected")


@pytest.mark.parametrize(
    "groups",
    [
        # Three bytes of a footer can be a column chunk, of which Arrow's description takes some 600.
        Raw(9, b"\xfc" + varint(5_000_000) + (b"\x19\xfc" + varint(300_000) + b"\x26\0\0" * 300_000 + b"\0") * 12),
        Raw(9, b"\xf8" + varint(4_000_000) + b"\0" * 4_000_000),
        Raw(9, b"\xf1" + varint(2**62) + b"\1" * 4_000_000),
    ],
)
def test_a_footer_that_would_fill_the_memory(groups: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MAX_FOOTER_VALUES", parquet._MAX_FOOTER_VALUES // 10)  # tracing takes its time
    data = handmade(page(plain(b"one", b"two"), 2), 2, footer={4: groups})
    with traced(2 * len(data) + 20 * 1024**2):
        _refused(data, "more values")


@pytest.mark.parametrize("each", [[], [{1: 1, 3: 0, 4: b"b"}]])
def test_a_schema_as_deep_as_it_may_be(each: list) -> None:
    group = {3: 0, 4: b"a", 5: 1 + len(each)}
    deep = [{4: b"schema", 5: 2}, *[group, *each] * 50_000, {1: 6, 3: 0, 4: b"b"}, *SCHEMA[1:]]
    _refused(handmade(page(plain(b"one", b"two"), 2), 2, schema=deep), "expected")


# --- damage ---------------------------------------------------------------------------------------------------------


def _damaged(data: bytes, chance: random.Random, metadata: bool) -> bytes:
    """Bits flipped, bytes replaced, inserted or left out: in the footer, or around the beginnings of pages."""
    changed = bytearray(data)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(footer, len(changed)) if metadata else chance.randrange(4, footer)
        at = min(at, len(changed) - 1)
        match chance.randrange(5):
            case 0 | 1:
                changed[at] ^= 1 << chance.randrange(8)
            case 2:
                changed[at] = chance.choice((0, 255, 127, 128))
            case 3:
                changed[at : at + chance.randint(1, 4)] = chance.randbytes(4)
            case 4:
                changed[at : at + chance.randint(1, 3)] = b""
    return bytes(changed)


@pytest.mark.parametrize("metadata", [True, False])
def test_damaged_files_raise_nothing_but_our_own(metadata: bool) -> None:
    chance = random.Random(11)
    files = [
        written(rows_of(40, (0, 12)), compression=compression, data_page_version=page, use_dictionary=dictionary)
        for compression in ("NONE", "SNAPPY", "ZSTD")
        for page in ("1.0", "2.0")
        for dictionary in (False, True)
    ]
    files.append(written(rows_of(40, (0, 12)), write_page_index=True, write_page_checksum=True))
    refused = 0
    for number in range(600):
        data = _damaged(files[number % len(files)], chance, metadata)
        try:
            read_all(Memory(data))
        except FetchError as error:
            assert error.reason in ("format", "corrupt")
            refused += 1
    assert refused > 150


def test_errors_of_the_network_pass_unchanged() -> None:
    class Broken(Memory):
        def stream(self, start: int, end: int) -> Iterator[bytes]:
            if end < self.total:
                raise self.error("network", "bytes", "none", "again")
            return super().stream(start, end)

    images = ParquetImages(Broken(written(rows_of(500))))
    with pytest.raises(FetchError) as caught:
        list(images.read(0, {0: "a"}))
    assert caught.value.reason == "network"
