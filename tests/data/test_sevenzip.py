"""The contents of 7z archives: as 7-Zip and py7zr see them, damaged, lying, and large."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from imaginet_hub.data.readers.files import LocalFile, Volumes, read_range
from imaginet_hub.data.readers.runs import plan_runs
from imaginet_hub.data.readers.sevenzip import Entry, SevenZip
from imaginet_hub.data.ways.sevenzip import find_volumes
from imaginet_hub.demo.containers import Member, write_7z
from imaginet_hub.errors import FetchError

SEVEN = shutil.which("7z")
needs_7z = pytest.mark.skipif(SEVEN is None, reason="7-Zip is not on this machine")


class InMemory:
    """A file of these bytes, that tells what was read of it."""

    remedy = "fetch it again"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read = 0

    def size(self) -> int:
        return len(self.data)

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        if not 0 <= start <= end <= len(self.data):
            raise self.error("corrupt", f"{end:,} bytes", f"{len(self.data):,}", self.remedy)
        self.read += end - start
        yield self.data[start:end]

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return FetchError(reason, "test", "memory", expected, got, remedy)


def with_header(data: bytes, header: bytes) -> bytes:
    """An archive with another table of contents, and right checksums."""
    start = 32 + int.from_bytes(data[12:20], "little")
    begin = data[12:20] + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(4, "little")
    return data[:8] + zlib.crc32(begin).to_bytes(4, "little") + begin + data[32:start] + header


def header_of(data: bytes) -> bytes:
    return data[32 + int.from_bytes(data[12:20], "little") :]


def number(value: int) -> bytes:
    """As 7z writes it, in nine bytes."""
    return b"\xff" + value.to_bytes(8, "little")


def listed_by_7zip(file: Path) -> dict[str, tuple[int, int | None]]:
    """Name -> size and CRC-32 of what is not a folder."""
    assert SEVEN is not None
    out = subprocess.run([SEVEN, "l", "-slt", "-ba", str(file)], capture_output=True, check=True).stdout.decode()
    found = {}
    for block in out.split("\n\n"):
        fields = dict(line.split(" = ", 1) for line in block.splitlines() if " = " in line)
        if fields and not fields.get("Attributes", "").startswith("D"):
            found[fields["Path"]] = int(fields["Size"] or 0), int(fields["CRC"], 16) if fields.get("CRC") else None
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    chance = random.Random(0)
    for name in ("a/1.png", "a/2.png", "b/c d/3.jpg", "b/antã³nio.jpg", "ü/日本/😀.png", "top.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(chance.randbytes(chance.randrange(1, 3000)))
    (folder / "a" / "empty.png").write_bytes(b"")
    (folder / "none").mkdir()
    return folder


@needs_7z
@pytest.mark.parametrize("solid", ["-ms=on", "-ms=off", "-ms=2f"])
@pytest.mark.parametrize("header", ["-mhc=on", "-mhc=off"])
@pytest.mark.parametrize("method", ["Copy", "LZMA", "LZMA2", "PPMd", "BZip2", "Deflate"])
def test_as_7zip_lists_it(source: Path, tmp_path: Path, method: str, header: str, solid: str) -> None:
    assert SEVEN is not None
    file = tmp_path / "a.7z"
    command = [SEVEN, "a", "-bd", f"-m0={method}", header, solid, str(file), "."]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    archive = SevenZip(LocalFile(file, "test"))
    expected = {name: facts for name, facts in listed_by_7zip(file).items() if facts[0]}
    assert {entry.name: (entry.size, entry.crc) for entry in archive.entries} == expected
    assert len(expected) == 6
    for entry in archive.entries:
        stored = archive.blocks[entry.block].stored
        assert stored == (method == "Copy")
        if stored:
            assert read_range(archive.file, entry.offset, entry.end) == (source / entry.name).read_bytes()


@pytest.mark.parametrize("encoded", [True, False])
@pytest.mark.parametrize("solid", [True, False])
def test_as_py7zr_lists_it(encoded: bool, solid: bool, source: Path, tmp_path: Path) -> None:
    py7zr = pytest.importorskip("py7zr")
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    members = [(path.relative_to(source).as_posix(), path) for path in paths]
    (file,) = write_7z(tmp_path / "a.7z", members, encoded_header=encoded, solid=solid)
    with py7zr.SevenZipFile(file) as theirs:
        expected = {each.filename: (each.uncompressed, each.crc32) for each in theirs.list() if each.uncompressed}
    archive = SevenZip(LocalFile(file, "test"))
    assert {entry.name: (entry.size, entry.crc) for entry in archive.entries} == expected


@pytest.mark.parametrize("volume_bytes", [1, 7, 31, 32, 33, 100, 10_000_000])
def test_ranges_cross_the_borders_of_volumes(volume_bytes: int, tmp_path: Path) -> None:
    chance = random.Random(volume_bytes)
    files = {f"a/{n}.png": chance.randbytes(chance.randrange(1, 60)) for n in range(9)}
    volumes = write_7z(tmp_path / "a.7z", files.items(), volume_bytes=volume_bytes)
    archive = SevenZip(Volumes([LocalFile(volume, "test") for volume in volumes]))
    got: dict[str, bytes | FetchError] = {}
    for run in plan_runs({entry.name: entry for entry in archive.entries}):
        got.update(archive.read(run))
    assert got == files


def test_a_header_and_what_is_wanted_are_all_that_is_read(tmp_path: Path) -> None:
    files = {f"wikiart/Baroque/painter_picture-{n}.jpg": os.urandom(50_000) for n in range(40)}
    (path,) = write_7z(tmp_path / "a.7z", files.items(), encoded_header=True)
    file = InMemory(path.read_bytes())
    archive = SevenZip(file)
    assert archive.table_bytes == file.read < 3_000
    wanted = {entry.name: entry for entry in archive.entries[::3]}
    runs = plan_runs(wanted)
    assert dict(pair for run in runs for pair in archive.read(run)) == {name: files[name] for name in wanted}
    assert file.read <= 1.02 * sum(entry.size for entry in wanted.values())


def test_stored_members_that_are_damaged(tmp_path: Path) -> None:
    members: list[Member | tuple[str, bytes | Path]] = [
        ("a/1.png", b"one" * 99),
        Member("a/2.png", b"two" * 99, crc=5),
        ("a/3.png", b"three" * 99),
    ]
    (path,) = write_7z(tmp_path / "a.7z", members, solid=True)
    archive = SevenZip(LocalFile(path, "test"))
    (run,) = plan_runs({entry.name: entry for entry in archive.entries})
    results = dict(archive.read(run))
    assert results["a/1.png"] == b"one" * 99
    assert results["a/3.png"] == b"three" * 99
    error = results["a/2.png"]
    assert isinstance(error, FetchError)
    assert (error.reason, error.expected) == ("corrupt", "CRC32 00000005 (member 'a/2.png')")
    assert error.got == f"{zlib.crc32(b'two' * 99):08x}"


def test_equal_entries_hold_the_same_bytes() -> None:
    one, same = Entry("a", 0, 0, 5, 7), Entry("b", 1, 9, 5, 7)
    assert one == same
    assert hash(one) == hash(same)
    assert one != Entry("a", 0, 0, 5, 8)
    assert one != Entry("a", 0, 0, 6, 7)
    unknown = Entry("a", 0, 0, 5, None)
    assert unknown == unknown  # noqa: PLR0124
    assert unknown != Entry("a", 0, 0, 5, None)


# --- what is none ---------------------------------------------------------------------------------------------------


def test_no_archive(tmp_path: Path) -> None:
    (path,) = write_7z(tmp_path / "a.7z", [("a/1.png", b"data")])
    data = path.read_bytes()
    for cut in (0, 1, 31):
        with pytest.raises(FetchError) as raised:
            SevenZip(InMemory(data[:cut]))
        assert raised.value.reason == "format"
    for cut in range(32, len(data)):
        with pytest.raises(FetchError, match="a volume is missing") as raised:
            SevenZip(InMemory(data[:cut]))
        assert raised.value.reason == "corrupt"
    with pytest.raises(FetchError, match="its signature"):
        SevenZip(InMemory(b"PK\3\4" + data))
    with pytest.raises(FetchError, match="never finished"):
        SevenZip(InMemory(data[:8] + bytes(24) + data[32:]))
    header = bytearray(data)
    header[-3] ^= 1
    with pytest.raises(FetchError, match="a table of contents with CRC32"):
        SevenZip(InMemory(bytes(header)))


def test_empty_archives(tmp_path: Path) -> None:
    begin = bytes(20)
    nothing = b"7z\xbc\xaf\x27\x1c\0\4" + zlib.crc32(begin).to_bytes(4, "little") + begin
    assert SevenZip(InMemory(nothing)).entries == []
    (path,) = write_7z(tmp_path / "a.7z", [])
    assert SevenZip(LocalFile(path, "test")).entries == []
    (path,) = write_7z(tmp_path / "b.7z", [("a/empty.png", b""), ("folder/", b"")])
    assert SevenZip(LocalFile(path, "test")).entries == []


def test_numbers_that_lie() -> None:
    """Counts of millions and sizes of exabytes, in a few bytes."""
    base = b"7z\xbc\xaf\x27\x1c\0\4" + bytes(24)
    for many in (10**7, 2**31, 2**63):
        for header in (
            b"\x01\x05" + number(many),
            b"\x01\x04\x06\0" + number(many) + b"\x09",
            b"\x01\x04\x06\0\1\x09\1\0\x07\x0b" + number(many) + b"\0",
            b"\x01\x04\x06\0\1\x09" + number(many) + b"\0\x07\x0b\1\0\1\1\0\x0c" + number(many) + b"\0\0\0",
            b"\x01\x04\x06" + number(many) + b"\1\x09\1\0\x07\x0b\1\0\1\1\0\x0c\1\0\0\0",
            b"\x01\x04\x06\0\1\x09\1\0\x07\x0b\1\0\1\1\0\x0c\1\0\x08\x0d" + number(many) + b"\x09",
            b"\x17\x06\0\1\x09\0\0\x07\x0b\1\0\1\1\0\x0c" + number(many) + b"\0\0",
        ):
            began = time.monotonic()
            with pytest.raises(FetchError):
                SevenZip(InMemory(with_header(base, header)))
            assert time.monotonic() - began < 1


def archives(tmp_path: Path, source: Path) -> list[bytes]:
    """Small ones of every make."""
    made = []
    chance = random.Random(9)
    members = [*((f"a/{n}.png", chance.randbytes(40)) for n in range(5)), ("a/empty.png", b"")]
    for options in range(8):
        solid, encoded, compressed = (bool(options & bit) for bit in (1, 2, 4))
        name = tmp_path / f"made{options}.7z"
        write_7z(name, members, solid=solid, encoded_header=encoded, compressed=compressed)
        made.append(name.read_bytes())
    if SEVEN is not None:
        for method in ("LZMA2", "PPMd", "BCJ2", "Copy"):
            for header in ("on", "off"):
                name = tmp_path / f"{method}{header}.7z"
                command = [SEVEN, "a", "-bd", f"-m0={method}", f"-mhc={header}", "-ms=2f", str(name), "."]
                subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
                made.append(name.read_bytes())
    return made


def mutated(header: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(len(header) or 1)
        match chance.randrange(6):
            case 0 if header:
                header[at % len(header)] ^= 1 << chance.randrange(8)
            case 1 if header:
                header[at % len(header)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                header[at:at] = b"\xff" * 9
            case 3:
                del header[at : at + chance.randrange(1, 9)]
            case 4:
                header[at:at] = header[at : at + chance.randrange(1, 40)]
            case 5:
                del header[at:]
    return header


def test_mutations_raise_nothing_but_what_is_documented(source: Path, tmp_path: Path) -> None:
    """The checksums are made right again, so that what lies behind them is met."""
    chance = random.Random(20260101)
    made = archives(tmp_path, source)
    read = 0
    for _ in range(4_000):
        data = chance.choice(made)
        data = with_header(data, bytes(mutated(bytearray(header_of(data)), chance)))
        began = time.monotonic()
        try:
            archive = SevenZip(InMemory(data))
        except FetchError as error:
            assert error.reason in ("format", "corrupt")
        else:
            read += 1
            for entry in archive.entries:
                if archive.unreadable(entry) is None and archive.blocks[entry.block].stored:
                    (run,) = plan_runs({"x": entry})
                    ((_, result),) = archive.read(run)
                    assert isinstance(result, FetchError) or len(result) == entry.size
        assert time.monotonic() - began < 2
    assert 100 < read < 3_900


_CHILD = """
import json, re, sys, time
from pathlib import Path
from imaginet_hub.data.readers.files import LocalFile
from imaginet_hub.data.readers.sevenzip import SevenZip
from imaginet_hub.errors import FetchError
began = time.process_time()
try:
    archive = SevenZip(LocalFile(Path(sys.argv[1]), "test"))
    count, said = len(archive.entries), archive.entries[-1].name
except FetchError as error:
    count, said = -1, str(error)
seconds = time.process_time() - began
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(json.dumps([count, said, seconds, peak]))
"""


def measured(file: Path) -> tuple[int, str, float, int]:
    """How many entries, the last one's name (or the error), seconds, peak memory in kB."""
    command = [sys.executable, "-c", _CHILD, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    count, said, seconds, peak = json.loads(done.stdout)
    return count, said, seconds, peak


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@linux
@pytest.mark.parametrize("solid", [True, False])
def test_two_hundred_thousand_entries(solid: bool, tmp_path: Path) -> None:
    name = "wikiart/Impressionism/some-painter_some-painting-of-1893-{}.jpg"
    members = ((name.format(n), b"%06d" % n) for n in range(200_000))
    (file,) = write_7z(tmp_path / "large.7z", members, encoded_header=True, solid=solid)
    count, last, seconds, peak = measured(file)
    assert (count, last) == (200_000, name.format(199_999))
    assert seconds < 12
    assert peak < 400_000


@linux
def test_the_largest_table_that_is_read_is_bounded(tmp_path: Path) -> None:
    """Of nothing but short names and blocks of one byte."""
    many = 400_000
    blocks = b"\1\1\0" * many
    header = b"\x01\x04\x06\0" + number(many) + b"\x09" + b"\1" * many + b"\0"
    header += b"\x07\x0b" + number(many) + b"\0" + blocks + b"\x0c" + b"\1" * many + b"\0"
    header += b"\x08\x0a\1" + b"crc!" * many + b"\0\0"
    names = b"\0" + b"".join(b"%c\0%c\0\0\0" % (97 + n % 26, 97 + n // 26 % 26) for n in range(many))
    header += b"\x05" + number(many) + b"\x11" + number(len(names)) + names
    header += b"\x15" + number(2 + 4 * many) + b"\1\0" + b"\x20\x80\xa4\x81" * many + b"\0\0"
    file = tmp_path / "table.7z"
    offset = many.to_bytes(8, "little")
    data = b"7z\xbc\xaf\x27\x1c\0\4" + bytes(4) + offset + bytes(12) + bytes(many)
    file.write_bytes(with_header(data, header))
    count, _, seconds, peak = measured(file)
    assert count == many
    assert peak < 450_000
    assert seconds < 40


# --- which files are its volumes ------------------------------------------------------------------------------------

NAMES = [
    "README.md",
    "imaginet.7z.003",
    "imaginet.7z.001",
    "imaginet.7z.002",
    "other.7z.001",
    "imaginet.7z.001.sha256",
]


@pytest.mark.parametrize(
    ("names", "first", "found", "trouble"),
    [
        (NAMES, "imaginet.7z.001", ["imaginet.7z.001", "imaginet.7z.002", "imaginet.7z.003"], None),
        ([f"data/{n}" for n in NAMES], "imaginet.7z.001", [f"data/imaginet.7z.00{n}" for n in (1, 2, 3)], None),
        (["imaginet.7z"], "imaginet.7z.001", ["imaginet.7z"], None),
        (["data/imaginet.7z"], "imaginet.7z.001", ["data/imaginet.7z"], None),
        (["a.7z.001"], "a.7z.001", ["a.7z.001"], None),
        (["a.7z", "a.7z.001", "a.7z.002"], "a.7z.001", ["a.7z.001", "a.7z.002"], None),
        (["a.7z", "a.7z.001", "a.7z.002"], "a.7z", ["a.7z"], None),
        (["a.7z", "a.7z.001", "a.7z.003"], "a.7z.001", ["a.7z"], None),
        (["a.7z.001", "a.7z.003"], "a.7z.001", ["a.7z.001", "a.7z.003"], "no volume 002"),
        (["a.7z.002", "a.7z.003"], "a.7z.001", ["a.7z.002", "a.7z.003"], "no volume 001"),
        (["a.7z.001", "x/a.7z.001", "x/a.7z.002"], "x/a.7z.001", ["x/a.7z.001", "x/a.7z.002"], None),
        (["a.7z.002", "x/a.7z.001", "x/a.7z.002"], "a.7z.001", ["x/a.7z.001", "x/a.7z.002"], None),
        (["y/a.7z.001", "x/a.7z.001", "long/a.7z.001"], "a.7z.001", ["x/a.7z.001"], None),
        ([f"a.7z.{n:03d}" for n in range(1, 1101)], "a.7z.001", [f"a.7z.{n:03d}" for n in range(1, 1101)], None),
        (["A.7Z.001", "A.7Z.002"], "A.7Z.001", ["A.7Z.001", "A.7Z.002"], None),
        (["archive.bin", "b.bin"], "archive.bin", ["archive.bin"], None),
        (["b.bin"], "archive.bin", [], "no archive.bin"),
        ([], "a.7z.001", [], "no a.7z in volumes"),
        (["a.7z.999999999999", "a.7z.001", f"a.7z.{'9' * 5000}", "a.7z.٠٠٢"], "a.7z.001", ["a.7z.001"], None),
    ],
)
def test_volumes(names: list[str], first: str, found: list[str], trouble: str | None) -> None:
    assert find_volumes(names, first) == (found, trouble)
    shuffled = random.Random(1).sample(names, len(names))
    assert find_volumes(shuffled, first) == (found, trouble)
    assert not re.search("0{4}", str(trouble))
