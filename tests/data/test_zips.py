"""Members by range: every kind of archive, every byte accounted for, and nothing but our own error from a bad one."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imaginet_hub.data.readers import zips
from imaginet_hub.data.readers.files import LocalFile, RemoteFile
from imaginet_hub.data.readers.hosts import Endpoints, PlainFile, remote_for
from imaginet_hub.data.readers.http import Http
from imaginet_hub.data.readers.local import tars_in
from imaginet_hub.data.readers.runs import plan_runs
from imaginet_hub.data.readers.zips import Member, ZipFile
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import DRIVE_IDS, write_zip
from imaginet_hub.demo.staging import Member as Made
from imaginet_hub.errors import FetchError
from tests.support.http import FileServer, serve


class Memory:
    """Bytes at places, zeros between them. Strict about what may be asked for, like a careful host."""

    def __init__(self, data: bytes = b"", *, parts: dict[int, bytes] | None = None, size: int | None = None) -> None:
        self.parts = {0: data} if parts is None else parts
        self.total = len(data) if size is None else size
        self.remedy = "fetch it again"
        self.asked: list[tuple[int, int]] = []

    def size(self) -> int:
        return self.total

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        assert 0 <= start <= end <= self.total, (start, end, self.total)
        self.asked.append((start, end))
        for at in range(start, end, 50_000):
            piece = bytearray(min(50_000, end - at))
            for where, data in self.parts.items():
                low, high = max(at, where), min(at + len(piece), where + len(data))
                if low < high:
                    piece[low - at : high - at] = data[low - where : high - where]
            yield bytes(piece)

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return FetchError(reason, "danbooru", "archive", expected, got, remedy)


class Wants:
    """A finder that takes the names it is told, or all; of members with one name the first."""

    def __init__(self, names: set[bytes] | None = None) -> None:
        self.names = names
        self.members: dict[str, Member] = {}

    def may_want(self, name: bytes) -> bool:
        return self.names is None or name in self.names

    def offer(self, name: str | bytes, handle: Member) -> list[str]:
        shown = name if isinstance(name, str) else name.decode("latin-1")
        self.members.setdefault(shown, handle)
        return [shown]

    def found(self) -> dict[str, Member]:
        return self.members

    def ambiguous(self) -> dict[str, tuple[str, str]]:
        return {}


def unpack(file: object, names: set[bytes] | None = None) -> dict[str, bytes | FetchError]:
    """Every member as the fetch would read it."""
    archive = ZipFile(file)  # type: ignore[arg-type]
    found = archive.find(Wants(names))  # type: ignore[arg-type]
    results: dict[str, bytes | FetchError] = {}
    good = {}
    for name, member in found.items():
        error = archive.unreadable(member)
        if error is None:
            good[name] = member
        else:
            results[name] = error
    for run in plan_runs(good):
        results |= archive.read(run)
    assert results.keys() == found.keys()
    return results


def made(*members: Made, **options: object) -> bytes:
    """An archive's bytes, by the project's own writer."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return write_zip(Path(folder, "a.zip"), members, **options).read_bytes()  # type: ignore[arg-type]


def by_library(members: dict[str, bytes], **options: object) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


# --- handmade archives ----------------------------------------------------------------------------------------------


def local(name: bytes, data: bytes, *, method: int = 0, extra: bytes = b"", magic: bytes = b"PK\3\4") -> bytes:
    fields = (20, 0, method, 0, 0, zlib.crc32(data), len(data), len(data), len(name), len(extra))
    return struct.pack("<4s5H3I2H", magic, *fields) + name + extra + data


def central(
    name: bytes,
    data: bytes,
    offset: int,
    *,
    method: int = 0,
    flags: int = 0,
    crc: int | None = None,
    compressed: int | None = None,
    size: int | None = None,
    extra: bytes = b"",
    mode: int = 0o100644,
) -> bytes:
    compressed = len(data) if compressed is None else compressed
    size = len(data) if size is None else size
    crc = zlib.crc32(data) if crc is None else crc
    fields = (798, 20, flags, method, 0, 0, crc, compressed, size, len(name), len(extra), 0, 0, 0, mode << 16, offset)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name + extra


def ending(count: int, length: int, offset: int, comment: bytes = b"", *, disk: int = 0) -> bytes:
    fields = (disk, disk, min(count, 65535), min(count, 65535), length, offset, len(comment))
    return struct.pack("<4s4H2IH", b"PK\5\6", *fields) + comment


def ending64(count: int, length: int, offset: int, at: int, more: bytes = b"") -> bytes:
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44 + len(more), 45, 45, 0, 0, count, count, length, offset) + more
    return record + struct.pack("<4sIQI", b"PK\6\7", 0, at, 1) + ending(65535, 0xFFFFFFFF, 0xFFFFFFFF)


def archive_of(body: bytes, directory: bytes, count: int) -> bytes:
    return body + directory + ending(count, len(directory), len(body))


def hostile(**lies: object) -> bytes:
    """Three members, of which the directory lies about the second one."""
    body, directory = b"", b""
    for name in (b"a", b"b", b"c"):
        data = name * 1000
        directory += central(name, data, len(body), **(lies if name == b"b" else {}))  # type: ignore[arg-type]
        body += local(name, data)
    return archive_of(body, directory, 3)


# --- every kind -----------------------------------------------------------------------------------------------------

CONTENT = {"a/0.jpg": b"0" * 10, "a/1.jpg": random.Random(1).randbytes(70_000), "b/2.jpg": b"", "c.jpg": b"\0" * 3000}


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("unix", [False, True])
@pytest.mark.parametrize("descriptor", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize(
    "around",
    [
        {},
        {"comment": b"a backup"},
        {"comment": b"c" * 65535},
        {"prefix": b"MZ" + b"\x90" * 5000},
        {"prefix": b"PK\5\6 before", "comment": b"no PK\5\6, no PK\6\7 and no PK\1\2 in a comment is meant"},
    ],
)
def test_kinds_of_archives(zip64: bool, unix: bool, descriptor: bool, deflate: bool, around: dict) -> None:
    members = [Made(name, data, deflate, descriptor, unix) for name, data in CONTENT.items()]
    assert unpack(Memory(made(*members, zip64=zip64, **around))) == CONTENT


@pytest.mark.parametrize("where", range(22))
def test_a_comment_that_ends_like_an_archive(where: int) -> None:
    """A whole end record inside the comment, exactly at its end or before it."""
    fake = ending(0, 0, 0)
    comment = b"x" * 30 + fake + b"y" * where
    assert unpack(Memory(made(Made("a.jpg", b"data"), comment=comment))) == {"a.jpg": b"data"}
    fake = ending(1, 46, 5, b"y" * where)
    comment = b"x" * 90 + fake
    assert unpack(Memory(made(Made("a.jpg", b"data"), comment=comment))) == {"a.jpg": b"data"}


def test_other_bytes_after_the_end() -> None:
    data = made(Made("a.jpg", b"data"), comment=b"short")
    assert unpack(Memory(data + b"\r\n" * 300)) == {"a.jpg": b"data"}


def test_long_extra_fields_of_local_headers() -> None:
    """Much longer than in the directory, so that the bytes that were asked for end too early."""
    body, directory = b"", b""
    content = {}
    for number, length in enumerate((0, 512, 513, 60_000, 65_535)):
        data = bytes([number]) * 500
        content[f"{number}"] = data
        directory += central(b"%d" % number, data, len(body))
        body += local(b"%d" % number, data, extra=b"e" * length)
    assert unpack(Memory(archive_of(body, directory, 5))) == content
    assert unpack(Memory(archive_of(body, directory, 5)), {b"2", b"3"}) == {"2": content["2"], "3": content["3"]}


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ("<Q", {"offset"}),
        ("<2Q", {"size", "compressed"}),
        ("<3Q", {"size", "compressed", "offset"}),
        ("<Q", {"size"}),
        ("<Q", {"compressed"}),
    ],
)
def test_each_64_bit_field_alone(values: str, fields: set[str]) -> None:
    """Extra field 1 holds those values only that do not fit, in this order: size, compressed, offset."""
    data, at = b"picture" * 100, 5 << 30 if "offset" in fields else 1000
    wide = [v for key, v in (("size", len(data)), ("compressed", len(data)), ("offset", at)) if key in fields]
    extra = struct.pack("<2H", 0x5455, 1) + b"t" + struct.pack("<2H", 1, 8 * len(wide)) + struct.pack(values, *wide)
    lies = {key: 0xFFFFFFFF for key in fields if key != "offset"}
    directory = central(b"a", data, 0xFFFFFFFF if "offset" in fields else at, extra=extra, **lies)
    start = 6 << 30
    tail = directory + ending64(1, len(directory), start, start + len(directory))
    file = Memory(parts={at: local(b"a", data), start: tail}, size=start + len(tail))
    assert unpack(file) == {"a": data}
    assert max(end - begin for begin, end in file.asked) < 2000  # nobody reads the gigabytes


def test_an_extensible_end_record() -> None:
    body = local(b"a", b"data")
    directory = central(b"a", b"data", 0)
    end = ending64(1, len(directory), len(body), len(body + directory), more=b"vendor's own" * 20)
    assert unpack(Memory(body + directory + end)) == {"a": b"data"}


def test_a_signed_directory() -> None:
    body, directory = local(b"a", b"data"), central(b"a", b"data", 0) + b"PK\5\5" + struct.pack("<H", 5) + b"signs"
    assert unpack(Memory(archive_of(body, directory, 1))) == {"a": b"data"}


def test_a_large_archive_of_a_tool_without_zip64() -> None:
    """Offsets are what 32 bits keep of them."""
    content = {b"%d" % number: b"%d" % number * 400 for number in range(6)}
    parts, directory, at = {}, b"", 0
    for name, data in content.items():
        parts[at] = local(name, data)
        directory += central(name, data, at % 2**32)
        at += 3 << 30
    tail = directory + ending(6, len(directory), at % 2**32)
    parts[at] = tail
    assert unpack(Memory(parts=parts, size=at + len(tail))) == {n.decode(): d for n, d in content.items()}


def test_more_members_than_16_bits_count() -> None:
    stream = io.BytesIO()
    directory = io.BytesIO()
    for number in range(65_540):
        name = b"%06d" % number
        directory.write(central(name, b"", stream.tell()))
        stream.write(local(name, b""))
    body, entries = stream.getvalue(), directory.getvalue()
    whole = body + entries + ending64(65_540, len(entries), len(body), len(body) + len(entries))
    assert len(unpack(Memory(whole))) == 65_540
    # The same of a tool without ZIP64: the count is what 16 bits keep of it.
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert len(archive.namelist()) == 65_540
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65_540 % 65_536, 65_540 % 65_536, len(entries), len(body), 0)
    assert len(unpack(Memory(body + entries + end), {b"065539"})) == 1


def test_an_empty_archive() -> None:
    assert unpack(Memory(made())) == {}
    assert unpack(Memory(made(zip64=True))) == {}


@pytest.mark.parametrize(
    ("stored", "flags", "name"),
    [
        ("größe.jpg".encode(), 0x800, "größe.jpg"),
        ("größe.jpg".encode(), 0, "größe.jpg".encode()),
        ("größe.jpg".encode("cp437"), 0, "größe.jpg".encode("cp437")),
        ("größe.jpg".encode("latin-1"), 0x800, "größe.jpg".encode("latin-1")),  # says UTF-8 and is not
    ],
)
def test_names_as_stored(stored: bytes, flags: int, name: str | bytes) -> None:
    body = local(stored, b"data")
    file = Memory(archive_of(body, central(stored, b"data", 0, flags=flags), 1))
    archive = ZipFile(file)  # type: ignore[arg-type]
    (member,) = archive.find(Wants()).values()  # type: ignore[arg-type]
    assert member.name == name
    (run,) = plan_runs({"x": member})
    assert dict(archive.read(run)) == {"x": b"data"}


_NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/\\\0"), min_size=1, max_size=12)
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_MEMBERS = st.dictionaries(_PATHS, st.tuples(st.binary(max_size=3000), st.booleans(), st.booleans()), max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_MEMBERS, st.booleans(), st.binary(max_size=40), st.binary(max_size=40), st.booleans(), st.data())
def test_any_archive_reads_as_by_the_standard_library(
    members: dict[str, tuple[bytes, bool, bool]],
    zip64: bool,
    comment: bytes,
    prefix: bytes,
    ours: bool,
    data: st.DataObject,
) -> None:
    if ours:
        whole = made(
            *(
                Made(name, body, deflate, descriptor, descriptor)
                for name, (body, deflate, descriptor) in members.items()
            ),
            zip64=zip64,
            comment=comment,
            prefix=prefix,
        )
    else:
        stream = io.BytesIO(prefix)
        with zipfile.ZipFile(stream, "a") as archive:
            archive.comment = comment
            for name, (body, deflate, _) in members.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
                with archive.open(info, "w", force_zip64=zip64) as out:
                    out.write(body)
        whole = stream.getvalue()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        expected = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
    wanted = {name: body for name, body in expected.items() if data.draw(st.booleans())}
    assert unpack(Memory(whole)) == expected
    assert unpack(Memory(whole), {name.encode() for name in wanted}) == wanted


# --- bytes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An origin with 300 members of 20 to 100 KB, on Drive (with a comment) and at COCO's."""
    origin = tmp_path_factory.mktemp("origin")
    chance = random.Random(7)
    members = [
        Made(
            f"danbooru2021/{n:07d}.jpg",
            chance.randbytes(chance.randint(20_000, 100_000)),
            n % 3 == 1,
            n % 4 == 2,
            True,
        )
        for n in range(300)
    ]
    write_zip(origin / "drive" / DRIVE_IDS["danbooru"], members, comment=b"backup", zip64=True)
    write_zip(origin / "coco" / "zips" / "val2017.zip", members)
    return origin


def _wanted(which: str) -> list[int]:
    chance = random.Random(3)
    return {
        "all": list(range(300)),
        "none": [],
        "one": [150],
        "last": [299],
        "tenth": sorted(chance.sample(range(300), 30)),
        "half": sorted(chance.sample(range(300), 150)),
        "neighbours": list(range(100, 130)),
    }[which]


@pytest.mark.parametrize("address", [f"drive:{DRIVE_IDS['danbooru']}", "coco:/zips/val2017.zip"])
@pytest.mark.parametrize("which", ["all", "none", "one", "last", "tenth", "half", "neighbours"])
def test_bytes_that_cross_the_network(large: Path, address: str, which: str) -> None:
    names = {b"danbooru2021/%07d.jpg" % n for n in _wanted(which)}
    with Mirror(large) as mirror, Http() as http:
        remote = remote_for(address, "danbooru", Endpoints.resolve(mirror.endpoints))
        archive = ZipFile(RemoteFile(http, remote))
        found = archive.find(Wants(names))  # type: ignore[arg-type]
        runs = plan_runs(found)
        results = {path: data for run in runs for path, data in archive.read(run)}
        pages = sum(r.sent for r in mirror.requests if r.host == "drive" and r.status == 200)
        moved = mirror.sent - pages
    assert len(results) == len(names)
    assert all(zlib.crc32(data) == found[path].crc for path, data in results.items())  # type: ignore[arg-type]
    needed = archive.directory_bytes + sum(member.compressed for member in found.values())
    assert moved <= 1.02 * needed
    assert pages < 10_000
    if which in ("all", "neighbours"):
        assert len(runs) <= 1 + sum(m.compressed for m in found.values()) // (3 << 20)


class Counting(FileServer):
    """Counts connections."""

    connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


@pytest.mark.parametrize("which", ["all", "tenth"])
def test_runs_share_a_connection(large: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.http.FileServer", Counting)
    names = {b"danbooru2021/%07d.jpg" % n for n in _wanted(which)}
    with serve(large / "coco") as server, Http() as http:
        assert isinstance(server, Counting)
        archive = ZipFile(RemoteFile(http, PlainFile("danbooru", f"{server.url}/zips/val2017.zip")))
        runs = plan_runs(archive.find(Wants(names)))  # type: ignore[arg-type]
        results = [data for run in runs for _, data in archive.read(run)]
        assert not any(isinstance(data, FetchError) for data in results)
        assert len(results) == len(names)
        assert len(runs) > 4
        assert server.connections == 1


def test_what_is_left_of_a_run_is_read_if_it_is_little() -> None:
    """And is nobody's loss if it cannot be."""

    class Counted(Memory):
        taken, fails = 0, False

        def stream(self, start: int, end: int) -> Iterator[bytes]:
            for at in range(start, end, 1000):
                if self.fails and at + 1000 > end:
                    raise self.error("network", "the rest", "nothing", self.remedy)
                self.taken += min(1000, end - at)
                yield from super().stream(at, min(at + 1000, end))

    body = random.Random(5).randbytes(100_000)
    whole = made(Made("a", body), Made("b", body))
    for rest, read, fails in ((3_000, True, False), (50_000, False, False), (3_000, True, True)):
        file = Counted(whole)
        archive = ZipFile(file)  # type: ignore[arg-type]
        (run,) = plan_runs(archive.find(Wants({b"a"})))  # type: ignore[arg-type]
        run = replace(run, end=run.end + rest)
        file.taken, file.fails = 0, fails
        assert dict(archive.read(run)) == {"a": body}
        taken = run.end - run.start
        assert (file.taken == taken) == (read and not fails)
        assert file.taken > taken - (1001 if read else rest)


_LAYOUT = st.lists(
    st.tuples(st.integers(0, 300_000), st.integers(0, 2_000_000), st.booleans(), st.integers(0, 200)), max_size=60
)


@settings(max_examples=200, deadline=None)
@given(_LAYOUT)
def test_runs_are_a_law(layout: list[tuple[int, int, bool, int]]) -> None:
    """Every wanted member once, in a run that covers it; at most 1 % in vain; runs small enough to share."""
    members, at = {}, 0
    for number, (gap, compressed, wanted, slack) in enumerate(layout):
        at += gap if number % 3 else 0
        end = at + 30 + compressed + slack
        if wanted:
            members[str(number)] = Member(str(number), 0, 0, 0, compressed, compressed, at, 0, end)
        at = end
    runs = plan_runs(members)
    assert sorted(path for run in runs for path, _ in run.members) == sorted(members)
    in_vain = 0
    for run in runs:
        position = run.start
        for _, member in run.members:
            assert run.start <= position <= member.offset <= member.end <= run.end
            in_vain += member.offset - position
            position = member.end
        assert position == run.end
        assert len(run.members) == 1 or run.end - run.start <= 4 << 20
    assert in_vain <= 0.01 * sum(member.compressed for member in members.values())
    assert [run.start for run in runs] == sorted(run.start for run in runs)


def test_runs_are_small_enough_to_share() -> None:
    members = {str(n): Member(str(n), 0, 0, 0, 10**6, 10**6, n * 10**6, 0, (n + 1) * 10**6) for n in range(100)}
    members["large"] = Member("large", 0, 0, 0, 10**8, 10**8, 10**8, 0, 2 * 10**8)
    runs = plan_runs(members)
    assert len(runs) == 26
    assert max(run.end - run.start for run in runs[:-1]) <= 4 << 20


def test_equal_gaps_do_not_add_up() -> None:
    """A hundred gaps of the same length, of which 1 % allows ten."""
    members = {str(n): Member(str(n), 0, 0, 0, 10_000, 10_000, n * 11_000, 0, n * 11_000 + 10_000) for n in range(100)}
    runs = plan_runs(members)
    assert sum(run.end - run.start for run in runs) <= 1.01 * 1_000_000
    assert len(runs) == 90


def test_overlapping_members_are_read_apart() -> None:
    members = {str(n): Member(str(n), 0, 0, 0, 500, 500, n * 100, 0, n * 100 + 600) for n in range(10)}
    members["same"] = members["3"]
    runs = plan_runs(members)
    assert len(runs) == 11
    assert {path for run in runs for path, _ in run.members} == set(members)


def test_a_page_instead_of_the_bytes_fails_the_run_and_nothing_else() -> None:
    """What breaks the stream is not the first member's fault, and not an excuse to misread the others."""

    class Breaks(Memory):
        broken = False

        def stream(self, start: int, end: int) -> Iterator[bytes]:
            if self.broken:
                raise self.error("format", "the file", "a web page", "try again")
            yield from super().stream(start, end)

    file = Breaks(made(*(Made(f"{n}.jpg", b"data") for n in range(3))))
    archive = ZipFile(file)  # type: ignore[arg-type]
    (run,) = plan_runs(archive.find(Wants()))  # type: ignore[arg-type]
    file.broken = True
    with pytest.raises(FetchError) as caught:
        list(archive.read(run))
    assert caught.value.reason == "format"


# --- hostile --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lies", "word"),
    [
        ({"flags": 1}, "encrypted"),
        ({"flags": 0x41}, "encrypted"),
        ({"mode": 0o120777}, "symbolic link"),
        ({"method": 12}, "compression method 12"),
        ({"method": 99}, "compression method 99"),
        ({"size": 999}, "two sizes"),
        ({"size": 999, "compressed": 999}, "CRC32"),
        ({"size": 1200, "compressed": 1200}, "CRC32"),
        ({"crc": 1}, "CRC32"),
        ({"size": 4_294_967_294, "compressed": 4_294_967_294}, "4,294,967,294 bytes"),
        ({"size": 0xFFFFFFFF, "compressed": 0xFFFFFFFF}, "4,294,967,295 bytes"),
        ({"size": 2**31, "method": 8}, "2,147,483,648 bytes"),
        ({"size": 200 << 20, "compressed": 200 << 20}, "beyond the archive's end"),
        ({"method": 8}, "1,000 bytes"),
        ({"extra": struct.pack("<2H3Q", 1, 24, 1 << 60, 1 << 60, 1 << 63), "size": 0xFFFFFFFF}, "bytes"),
        ({"extra": struct.pack("<2H", 1, 65000), "size": 0xFFFFFFFF}, "bytes"),
    ],
)
def test_a_member_that_lies_stays_alone(lies: dict, word: str) -> None:
    results = unpack(Memory(hostile(**lies)))
    assert results["a"] == b"a" * 1000
    assert results["c"] == b"c" * 1000
    error = results["b"]
    assert isinstance(error, FetchError)
    assert error.reason == "corrupt"
    assert word in str(error)
    assert "'b'" in str(error)


def test_an_offset_beyond_the_end_stays_alone() -> None:
    body = local(b"a", b"data")
    directory = central(b"a", b"data", 0) + central(b"b", b"data", 0xFFFFFFF0) + central(b"c", b"data", len(body))
    extra = struct.pack("<2HQ", 1, 8, 2**64 - 1)
    directory += central(b"d", b"data", 0xFFFFFFFF, extra=extra)
    results = unpack(Memory(archive_of(body, directory, 4)))
    assert results.pop("a") == b"data"
    assert all("beyond the archive's end" in str(error) for error in results.values())
    assert len(results) == 3


def test_an_extra_field_beyond_the_end_stays_alone() -> None:
    body = local(b"a", b"a" * 100) + local(b"b", b"b" * 100)
    directory = central(b"a", b"a" * 100, 0) + central(b"b", b"b" * 100, len(body) // 2)
    bad = bytearray(body)
    bad[len(body) // 2 + 28 : len(body) // 2 + 30] = b"\xff\xff"
    results = unpack(Memory(archive_of(bytes(bad), directory, 2)))
    assert results["a"] == b"a" * 100
    assert "beyond its end" in str(results["b"])


def test_a_bomb_is_not_inflated() -> None:
    """Sixty-four megabytes of zeros that claim to be ten bytes, and a claim of 200 MB that is less."""
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = press.compress(bytes(64 << 20)) + press.flush()
    body = local(b"a", packed, method=8) + local(b"b", packed, method=8)
    directory = central(b"a", packed, 0, method=8, size=10)
    directory += central(b"b", packed, len(body) // 2, method=8, size=200 << 20)
    file = Memory(archive_of(body, directory, 2))
    tracemalloc.start()
    assert "got more" in str(unpack(file, {b"a"})["a"])
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert "got 67,108,864" in str(unpack(file, {b"b"})["b"])


@pytest.mark.parametrize("same", [True, False])
def test_two_members_of_one_name(same: bool) -> None:
    from imaginet_hub.data.matching import Finder
    from imaginet_hub.data.sources import source_named

    first, second = b"1" * 50, b"1" * 50 if same else b"2" * 50
    body = local(b"7.jpg", first) + local(b"7.jpg", second)
    directory = central(b"7.jpg", first, 0) + central(b"7.jpg", second, len(body) // 2)
    source = source_named("danbooru")
    assert source is not None
    finder: Finder[Member] = Finder(source, ["danbooru2021/7.jpg"])
    found = ZipFile(Memory(archive_of(body, directory, 2))).find(finder)  # type: ignore[arg-type]
    assert len(found) == same
    assert bool(finder.ambiguous()) != same


def test_the_same_bytes_stored_and_deflated_are_no_two_files() -> None:
    one = Member("a", 0, 0, 5, 100, 100, 0, 0)
    assert one == replace(one, method=8, compressed=60, offset=70)
    assert one != replace(one, crc=6)


def _format_error(data: bytes) -> FetchError:
    with pytest.raises(FetchError) as caught:
        unpack(Memory(data))
    assert caught.value.reason == "format"
    return caught.value


def test_what_is_no_archive() -> None:
    whole = made(*(Made(f"{n}.jpg", b"data" * 50) for n in range(30)))
    assert "an empty file" in str(_format_error(b""))
    assert "7z" in str(_format_error(b"7z\xbc\xaf\x27\x1c" + bytes(100)))
    assert "without its end" in str(_format_error(whole[:3000]))
    assert "without its end" in str(_format_error(whole[:-1][: len(whole) // 2]))
    assert "3c 68 74 6d 6c 3e" in str(_format_error(b"<html>" + b" " * 100))
    assert "several volumes" in str(_format_error(ending(1, 0, 0, disk=3)))
    assert "outside the file" in str(_format_error(b"x" * 50 + ending(1, 60, 0)))
    assert "outside the file" in str(_format_error(b"x" * 50 + ending(1, 20, 200)))
    body, directory = local(b"a", b"data"), central(b"a", b"data", 0)
    assert "got 1;" in str(_format_error(archive_of(body, directory, 2)))
    assert "got 1;" in str(_format_error(archive_of(body, directory + directory[:20], 2)))
    assert "entry of the central directory" in str(_format_error(archive_of(body, b"?" * 60, 1)))
    broken64 = struct.pack("<4sIQI", b"PK\6\7", 0, 2**63, 1) + ending(65535, 0xFFFFFFFF, 0xFFFFFFFF)
    assert "ZIP64" in str(_format_error(body + directory + broken64))


def test_a_truncated_local_file(tmp_path: Path) -> None:
    """Cut while it is being read: our error, whatever was asked for."""
    file = write_zip(tmp_path / "a.zip", [Made(f"{n}.jpg", bytes([n]) * 5000) for n in range(4)])
    archive = ZipFile(LocalFile(file, "coco"))
    (run,) = plan_runs(archive.find(Wants()))  # type: ignore[arg-type]
    with file.open("r+b") as stream:
        stream.truncate(6000)
    results = []
    with pytest.raises(FetchError, match="the end of the file"):
        results += archive.read(run)


def test_mutated_archives_raise_nothing_but_our_own() -> None:
    """Bit-flips, cuts, copies and insertions, mostly where the structures are."""
    chance = random.Random(2024)
    seeds = [
        made(*(Made(f"a/{n}.jpg", chance.randbytes(60), n % 2 == 1, n % 3 == 1, True) for n in range(6))),
        made(*(Made(f"b/{n}.jpg", b"z" * 90, n % 2 == 1) for n in range(4)), zip64=True, comment=b"PK\5\6" * 9),
        made(Made("größe.jpg", b"q" * 400, True), Made("x" * 60, b"r" * 40), prefix=b"MZ" * 40),
        by_library({f"{n}.png": bytes([n]) * 200 for n in range(5)}, compression=zipfile.ZIP_DEFLATED),
        hostile(),
    ]
    special = [b"\xff" * 4, b"\xff" * 8, bytes(4), bytes(8), b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\3\4"]
    slowest, read = 0.0, 0
    for _ in range(8000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 3)):
            # Two in three in the last half, where the directory is.
            at = chance.randrange(len(data)) if chance.random() < 0.34 else -chance.randint(1, len(data) // 2)
            at %= len(data)
            match chance.randrange(6):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
                case 2:
                    piece = chance.choice(special)
                    data[at : at + len(piece)] = piece
                case 3:
                    del data[at : at + chance.randint(1, 30)]
                case 4:
                    data[at:at] = chance.choice((chance.randbytes(chance.randint(1, 30)), bytes(data[at:])))
                case 5:
                    data[at : at + 4] = struct.pack("<I", chance.choice((len(data), 2**31, 2**32 - 2, at)))
            if not data:
                break
        started = time.monotonic()
        with contextlib.suppress(FetchError):
            read += any(isinstance(result, bytes) for result in unpack(Memory(bytes(data))).values())
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < 5
    assert 1000 < read < 7000  # the mutations are neither too gentle nor too rough to reach every corner


def test_random_bytes_raise_nothing_but_our_own() -> None:
    chance = random.Random(5)
    for _ in range(500):
        data = chance.randbytes(chance.randint(0, 300))
        with pytest.raises(FetchError):
            unpack(Memory(data))
        with pytest.raises(FetchError):
            unpack(Memory(chance.randbytes(60) + data + ending(chance.randint(1, 9), chance.randint(1, 60), 0)))


def test_the_limit_of_a_member_is_what_it_says() -> None:
    file = Memory(hostile(size=zips.MAX_MEMBER_BYTES + 1, compressed=zips.MAX_MEMBER_BYTES + 1))
    assert f"{zips.MAX_MEMBER_BYTES:,}" in str(unpack(file)["b"])


@pytest.mark.parametrize("deflate", [False, True])
def test_a_large_member_as_a_file(deflate: bool, tmp_path: Path) -> None:
    """A tar archive inside a ZIP archive, read from any place."""
    inner = random.Random(1).randbytes(3_000_000)
    write_zip(tmp_path / "a.zip", [Made("x", b"x"), Made("inner.tar", inner, deflate), Made("y", b"y")])
    archive = ZipFile(LocalFile(tmp_path / "a.zip", "imagenet"))
    member = tars_in(archive)["inner.tar"]
    file = archive.data(member)
    assert file.size() == len(inner)
    for start, end in ((0, len(inner)), (0, 1), (1_999_999, 2_000_001), (len(inner) - 5, len(inner)), (7, 7)):
        assert b"".join(file.stream(start, end)) == inner[start:end]
    with pytest.raises(FetchError):
        list(file.stream(0, len(inner) + 1))


def test_a_large_member_that_cannot_be_read(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", [Made("zeros.tar", bytes(5_000_000), True)])
    archive = ZipFile(LocalFile(tmp_path / "a.zip", "imagenet"))
    with pytest.raises(FetchError, match=r"5,000,000 bytes packed into"):
        archive.data(tars_in(archive)["zeros.tar"])
    inner = random.Random(1).randbytes(100_000)
    write_zip(tmp_path / "b.zip", [Made("inner.tar", inner, True)])
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[50_000:50_100] = bytes(100)
    (tmp_path / "b.zip").write_bytes(data)
    archive = ZipFile(LocalFile(tmp_path / "b.zip", "imagenet"))
    file = archive.data(tars_in(archive)["inner.tar"])
    try:  # deflate has no checksum of its own; what reads the stream has
        assert b"".join(file.stream(0, len(inner))) != inner
    except FetchError as error:
        assert error.reason == "corrupt"
