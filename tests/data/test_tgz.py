"""Compressed tars as streams: every member against tarfile, real kills, nothing but our own error from a bad one."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from imaginet_hub.data.readers import deflate, stream_state, tgz
from imaginet_hub.data.readers.files import Inflated, LocalFile, RemoteFile, Span
from imaginet_hub.data.readers.hosts import PlainFile
from imaginet_hub.data.readers.http import Cancelled, Http
from imaginet_hub.data.readers.tgz import GzipTar
from imaginet_hub.demo.mirror import Fault, Mirror, Request
from imaginet_hub.errors import FetchError
from tests.conftest import image_bytes
from tests.support.http import serve
from tests.support.published import ACCOUNTS, GATES, Published

Results = dict[str, bytes | FetchError]


class Watched:
    """Bytes in pieces, which remembers what was read."""

    remedy = "fetch it again"

    def __init__(self, data: bytes, piece: int = 16 * 1024, act: Callable[[int], None] = lambda at: None) -> None:
        self.data, self.piece, self.act = data, piece, act
        self.ranges: list[list[int]] = []

    def size(self) -> int:
        return len(self.data)

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        self.ranges.append([start, start])
        mine = self.ranges[-1]
        for at in range(start, end, self.piece):
            self.act(at)
            mine[1] = min(at + self.piece, end)
            yield self.data[at : mine[1]]

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return FetchError(reason, "journeydb", "000.tgz", expected, got, remedy)

    @property
    def read(self) -> int:
        return sum(end - start for start, end in self.ranges)


def go_on() -> None:
    pass


def run(file: object, wanted: Iterable[str], state: Path | None = None, version: str = "v") -> tuple[Results, GzipTar]:
    """All that comes of the names themselves."""
    archive = GzipTar(file, version, state, go_on)  # type: ignore[arg-type]
    names = set(wanted)
    results: Results = {}
    for path, result in archive.read(lambda name: [name] if name in names else [], sorted(names)):
        assert path not in results
        results[path] = result
    assert not inflating()
    return results, archive


def inflating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "imaginet-inflate" and thread.is_alive()]


def packed(members: dict[str, bytes], format_: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive by Python's tarfile."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def header(name: str, size: int, type_: bytes = b"0", data: bytes = b"") -> bytes:
    """A member with a size that need not be true."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, type_
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


@pytest.fixture(scope="module")
def members() -> dict[str, bytes]:
    """JPEGs, which gzip can hardly press, text that it can, nothing, and noise that it stores."""
    made = {f"000/{number:04d}.jpg": image_bytes(number, (160, 120), "JPEG") for number in range(320)}
    made |= {f"000/{number}.txt": f"{number} of many words ".encode() * 20_000 for number in range(4)}
    made |= {"000/empty": b"", "000/noise": random.Random(1).randbytes(300_000)}
    names = sorted(made)
    random.Random(2).shuffle(names)
    return {name: made[name] for name in names}


@pytest.fixture(scope="module")
def archive(members: dict[str, bytes]) -> bytes:
    return gzip.compress(packed(members), 6)


@pytest.fixture
def close_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points as often as small archives need them."""
    make_small(monkeypatch.setattr)


SMALL = {"SPACING": 256 * 1024, "PIECE": 32 * 1024, "BLOCK": 64 * 1024, "_REACHED": 32 * 1024, "_WAITING": 4}


def make_small(put: Callable[[object, str, int], None] = setattr) -> None:
    """All modules that know a size learn the small one."""
    for name, value in SMALL.items():
        for module in (deflate, stream_state, tgz):
            if hasattr(module, name):
                put(module, name, value)


# --- what is right --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_member_is_what_tarfile_reads(format_: int) -> None:
    long = "d" * 90 + "/" + "e" * 60 if format_ == tarfile.USTAR_FORMAT else "/".join(["d" * 90] * 8)
    names = ["./plain.jpg", f"{long}/x.jpg", "ümlaut/é.jpg", b"latin-\xe9.jpg".decode("utf-8", "surrogateescape")]
    data = packed({name: name.encode("utf-8", "surrogateescape") * 300 for name in names}, format_)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        truth = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert len(truth) == len(names)
    assert run(Watched(gzip.compress(data)), truth)[0] == truth


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=pax"], ["--format=oldgnu"], ["--format=v7"]])
@pytest.mark.parametrize("level", ["-1", "-9"])
def test_archives_of_gnu_tar_and_gzip(tmp_path: Path, options: list[str], level: str) -> None:
    (tmp_path / "in" / "folder").mkdir(parents=True)
    truth = {f"in/folder/{number}.jpg": image_bytes(number, format_="JPEG") for number in range(20)}
    if options != ["--format=v7"]:
        truth["in/" + "n" * 200] = b"long"
    for name, data in truth.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "in" / "link").symlink_to("folder")
    pressed = subprocess.run(
        f"tar {options[0]} -c in | gzip {level}", shell=True, cwd=tmp_path, check=True, capture_output=True
    )
    results, _ = run(Watched(pressed.stdout), [*truth, "in/link", "in/folder"])
    refused = results.pop("in/link")
    assert isinstance(refused, FetchError) and refused.got == "a link"
    assert results == truth


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("cut", [None, 70_001, 1_500_000])
def test_levels_and_gzip_members(
    members: dict[str, bytes], close_points: None, tmp_path: Path, level: int, cut: int | None
) -> None:
    data = packed(members)
    parts = [data[at : at + (cut or len(data))] for at in range(0, len(data), cut or len(data))]
    pressed = b"".join(gzip.compress(part, level) for part in parts)
    state = tmp_path / "folder" / "state"
    results, archive = run(Watched(pressed + bytes(1000)), [*members, "not there"], state)
    assert results == members
    assert (archive.resumed_at, archive.repeated) == (0, 0)
    points = [point["point"] for point in map(unpacked, state.read_bytes().splitlines()) if "point" in point]
    assert len(points) >= len(data) / SMALL["SPACING"] / 3, "too few points to go on from"
    # Each is true: from there on zlib inflates what the tar archive has.
    for at, bit, out, crc, length, window in points:
        if length:
            inflate, feed = deflate._resumed(base64.b64decode(window), bit, pressed[at:])
            found = inflate.decompress(feed, 100_000)
            assert found and found == data[out : out + len(found)]
            assert crc == zlib.crc32(data[out - length : out])


def unpacked(line: bytes) -> dict:  # type: ignore[type-arg]
    assert int(line[:8], 16) == zlib.crc32(line[9:])
    return json.loads(line[9:])  # type: ignore[no-any-return]


@pytest.mark.parametrize("bit", range(8))
def test_inflating_begins_at_any_bit(bit: int) -> None:
    truth = random.Random(bit).randbytes(3000) + b"abc" * 300
    press = zlib.compressobj(6, zlib.DEFLATED, -15, zdict=b"before" * 100)
    pressed = press.compress(truth) + press.flush()
    shifted = (int.from_bytes(pressed, "little") << bit | (1 << bit) - 1).to_bytes(len(pressed) + 1, "little")
    inflate, feed = deflate._resumed(b"before" * 100, bit, shifted)
    assert inflate.decompress(feed) == truth
    assert inflate.eof


def test_headers_of_gzip_with_everything(members: dict[str, bytes]) -> None:
    raw = gzip.compress(packed({"a": b"data"}))[10:]
    head = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x03\x00abc" + b"name\0" + b"comment\0" + b"\x12\x34"
    for piece in (1, 7, 10_000):
        assert run(Watched(head + raw, piece), ["a", "b"])[0] == {"a": b"data"}


def test_it_stops_early_and_over_http(archive: bytes, members: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "000.tgz").write_bytes(archive)
    first = list(members)[:3]
    truth = {name: members[name] for name in first}
    watched = Watched(archive)
    assert run(watched, first)[0] == truth
    assert watched.read < len(archive)
    assert run(LocalFile(tmp_path / "000.tgz", "journeydb"), members)[0] == members
    (tmp_path / "zip").write_bytes(b"PK..." + archive + b"more")
    assert run(Span(LocalFile(tmp_path / "zip", "imagenet"), 5, len(archive)), members)[0] == members
    with serve(tmp_path) as server, Http() as http:
        assert run(RemoteFile(http, PlainFile("journeydb", f"{server.url}/000.tgz")), members)[0] == members


def test_of_members_with_one_name_the_first_counts() -> None:
    data = packed({"a": b"first", "b": b"b"})[:2048] + packed({"a": b"second", "c": b"c"})
    assert run(Watched(gzip.compress(data)), ["a", "b", "c"])[0] == {"a": b"first", "b": b"b", "c": b"c"}


def test_one_name_may_be_several_wanted_paths() -> None:
    archive = GzipTar(Watched(gzip.compress(packed({"a": b"data"}))), "v", None, go_on)
    assert dict(archive.read(lambda name: ["x", "y", "never wanted"], ["x", "y"])) == {"x": b"data", "y": b"data"}


# --- what is wrong --------------------------------------------------------------------------------------------------


def ends(data: bytes, truth: dict[str, bytes], *, exact: bool = True) -> FetchError | None:
    """The error at the end, having made sure that what came before it is right."""
    found: Results = {}
    archive = GzipTar(Watched(data), "v", None, go_on)
    try:
        for path, result in archive.read(lambda name: [name] if name in truth else [], [*truth, "not there"]):
            found[path] = result
            assert not exact or result == truth[path]
    except FetchError as error:
        return error
    finally:
        assert not inflating()
    assert found == truth
    return None


def test_truncated_anywhere(archive: bytes, members: dict[str, bytes]) -> None:
    rng = random.Random(3)
    cuts = {0, 1, 9, 10, 11, len(archive) - 1, len(archive) - 4, len(archive) - 8, len(archive) - 9}
    for cut in sorted(cuts | {rng.randrange(len(archive)) for _ in range(25)}):
        error = ends(archive[:cut], members)
        assert error is not None and error.reason == "corrupt", cut
        assert f"of {cut:,} bytes" in error.got and "truncated or damaged" in error.remedy


def test_flipped_bytes_are_noticed(archive: bytes, members: dict[str, bytes]) -> None:
    rng = random.Random(4)
    for at in [0, 1, 2, *(rng.randrange(10, len(archive)) for _ in range(30)), len(archive) - 1, len(archive) - 8]:
        damaged = bytearray(archive)
        damaged[at] ^= 1 << rng.randrange(8)
        error = ends(bytes(damaged), members, exact=False)
        assert error is not None and error.reason == "corrupt", at


def test_tars_that_end_too_soon() -> None:
    """Correct gzip around half a tar archive."""
    truth = {"a": b"a" * 700, "b": b"b" * 700}
    data = packed(truth)
    for cut in (100, 512, 600, 1500, 1536, 2047, 2048, 2560, 3000, 3072):
        error = ends(gzip.compress(data[:cut]), truth)
        assert error is not None and error.reason == "corrupt", cut
    assert ends(gzip.compress(data[: 3072 + 512]), truth) is None  # one block of zeros is an end


#: By name: gzip writes the time into what it makes, so the bytes name no test.
OTHER = {
    "a zip": b"PK\3\4" + bytes(100),
    "a page": b"<html>",
    "zeros": bytes(1000),
    "nothing": gzip.compress(b""),
    "no tar": gzip.compress(b"x" * 5000),
    "garbage after it": gzip.compress(packed({"a": b""})) + b"garbage",
    "an endless name": b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 3_000_000,
    "a size below zero": gzip.compress(header("a", -5)),
    "a long name of 10 GiB": gzip.compress(header("long", 10 * 1024**3, b"L") + b"x" * 100_000),
    "a pax header of 10 GiB": gzip.compress(header("pax", 10 * 1024**3, b"x") + b"x" * 100_000),
    "a pax length too long": gzip.compress(header("pax", 9, b"x", b"99 path=a") + header("a", 0)),
    "a pax line without one": gzip.compress(header("pax", 9, b"x", b"nonsense!") + header("a", 0)),
    "a pax line without a space": gzip.compress(header("pax", 9, b"x", b"no space\n") + header("a", 0)),
    "a pax size that is none": gzip.compress(header("pax", 13, b"x", b"13 size=99-9\n") + header("a", 0)),
    "a pax header of nothing": gzip.compress(header("pax", 10, b"x", b"10 size=9\n") + bytes(1024)),
    "a size of 2**62": gzip.compress(header("a", 2**62)),
}


@pytest.mark.parametrize("data", OTHER.values(), ids=OTHER)
def test_other_bytes(data: bytes) -> None:
    error = ends(data, {})
    assert error is not None and error.reason == "corrupt"


def test_members_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tgz, "MAX_MEMBER_BYTES", 100_000)
    with (tmp_path / "holes").open("wb") as file:
        for at in range(0, 4_000_000, 100_000):  # more pieces than fit the first header
            file.seek(at)
            file.write(b"data")
    for format_ in ("gnu", "pax --sparse-version=0.1", "pax --sparse-version=1.0"):
        sparse = subprocess.run(
            f"tar -S --format={format_} -c holes", shell=True, cwd=tmp_path, check=True, capture_output=True
        ).stdout
        after = sparse.rstrip(b"\0")
        after += bytes(-len(after) % 512)
        tar = after + b"".join(
            [
                header("big", 200_000, data=b"x" * 200_000),
                header("link", 0, tarfile.SYMTYPE),
                header("hard", 500, tarfile.LNKTYPE),
                header("device", 0, tarfile.CHRTYPE),
                header("pipe", 0, tarfile.FIFOTYPE),
                header("new", 700, b"Z", bytes(700)),
                header("good", 4, data=b"good"),
                bytes(1024),
            ]
        )
        wanted = ["holes", "big", "link", "hard", "device", "pipe", "new", "good"]
        results, _ = run(Watched(gzip.compress(tar)), wanted)
        assert results.pop("good") == b"good"
        got = {name: str(error.got) for name, error in results.items() if isinstance(error, FetchError)}
        assert got == {
            "holes": "a sparse file",
            "big": "one of 200,000 bytes",
            "link": "a link",
            "hard": "a link",
            "device": "a special file",
            "pipe": "a special file",
            "new": "a special file",
        }


BOMBS = """
import sys
from pathlib import Path
from imaginet_hub.data.readers.files import LocalFile
from imaginet_hub.data.readers.tgz import GzipTar
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
small = GzipTar(LocalFile(Path(sys.argv[1]), "journeydb"), "v", None, lambda: None)
list(small.read(lambda name: [], ["x"]))
before = peak()
archive = GzipTar(LocalFile(Path(sys.argv[2]), "journeydb"), "v", Path(sys.argv[3]), lambda: None)
try:
    print(list(archive.read(lambda name: [name], ["bomb"])))
except Exception as error:
    print(type(error).__name__, error)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["member", "padding", "members"])
def test_bombs_do_not_fill_memory(tmp_path: Path, kind: str) -> None:
    """512 MB of zeros from 512 KB, as a wanted member, after the tar archive's end, and as empty members."""
    block, size = 64 * 1024**2, 512 * 1024**2
    zeros = gzip.compress(bytes(block))
    if kind == "member":
        data = gzip.compress(header("bomb", size)) + zeros * (size // block) + gzip.compress(bytes(1024))
    elif kind == "padding":
        data = zeros * (size // block)
    else:
        data = gzip.compress(header("dull", 0) * 100_000) + gzip.compress(bytes(1024))
    (tmp_path / "bomb").write_bytes(data)
    (tmp_path / "small").write_bytes(gzip.compress(packed({"a": bytes(1_000_000)})))
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, tmp_path / "small", tmp_path / "bomb", tmp_path / "state"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert int(lines[-1]) < 32 * 1024, done.stdout  # KB
    assert ("one of 536,870,912 bytes" in lines[0]) == (kind == "member")


def test_errors_of_the_file_come_out_as_they_are(archive: bytes, members: dict[str, bytes], tmp_path: Path) -> None:
    for error in (FetchError("network", "journeydb", "a", "b", "c", "d"), Cancelled(), MemoryError("none")):

        def fail(at: int, error: BaseException = error) -> None:
            if at > len(archive) // 2:
                raise error

        with pytest.raises(type(error)) as caught:
            run(Watched(archive, act=fail), members, tmp_path / "state")
        assert caught.value is error
        assert not inflating()


def test_no_thread_outlives_its_reader(archive: bytes, members: dict[str, bytes]) -> None:
    for stop in (0, 5):
        watched = Watched(archive)
        reading = GzipTar(watched, "v", None, go_on).read(lambda name: [name], members)
        for _ in range(stop):
            next(reading)
        reading.close()
        assert not inflating()
    told = threading.Event()

    def check() -> None:
        if told.is_set():
            raise Cancelled

    def stall(at: int) -> None:
        if at > 100_000:
            told.set()
            time.sleep(0.5)

    begun = time.monotonic()
    with pytest.raises(Cancelled):
        list(GzipTar(Watched(archive, act=stall), "v", None, check).read(lambda name: [], ["x"]))
    assert time.monotonic() - begun < 2
    assert not inflating()


def test_little_is_read_ahead(archive: bytes, members: dict[str, bytes], close_points: None) -> None:
    watched = Watched(archive)
    reading = GzipTar(watched, "v", None, go_on).read(lambda name: [name], members)
    next(reading)
    time.sleep(0.3)
    assert watched.read < 600_000 < len(archive) / 2
    reading.close()


def test_what_expands_like_a_bomb_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies before it was delivered; a picture that is flat does not count as one."""
    members = {"a.jpg": bytes(range(256)) * 40, "zeros": bytes(40_000_000), "b.jpg": b"b"}
    pressed = gzip.compress(packed(members))
    assert run(Watched(pressed), ["a.jpg", "b.jpg"])[0] == {name: members[name] for name in ("a.jpg", "b.jpg")}
    monkeypatch.setattr(deflate, "_BOMB_BYTES", 10_000_000)
    results: Results = {}
    archive = GzipTar(Watched(pressed), "v", None, go_on)
    with pytest.raises(FetchError, match=r"expand to .* as a bomb does") as caught:
        results.update(archive.read(lambda name: [name] if name != "zeros" else [], ["a.jpg", "b.jpg"]))
    assert caught.value.reason == "corrupt"
    assert not inflating()


# --- going on -------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from imaginet_hub.data.readers import tgz
from tests.data.test_tgz import Watched, go_on, make_small
make_small()
data, state, out, log = map(Path, sys.argv[1:5])
log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def act(at):
    os.write(log, b"%d\\n" % at)
    if at >= int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)
archive = tgz.GzipTar(Watched(data.read_bytes(), act=act), "v", state, go_on)
for path, result in archive.read(lambda name: [name], sys.argv[6:]):
    (out / path.replace("/", "_")).write_bytes(result)
"""


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_run_is_gone_on_with(
    archive: bytes, members: dict[str, bytes], close_points: None, tmp_path: Path, seed: int
) -> None:
    (tmp_path / "a.tgz").write_bytes(archive)
    (tmp_path / "out").mkdir()
    rng = random.Random(seed)
    state, log = tmp_path / "state", tmp_path / "log"
    wanted = {name for name in members if rng.random() < 0.3}
    reached = 0
    for part in (0.3, 0.6, 0.95):  # the second child goes on where the first was killed
        place = int(len(archive) * (part + rng.uniform(-0.2, 0.04)))
        log.write_bytes(b"")
        left = sorted(name for name in wanted if not kept(tmp_path / "out", name, members))
        child = subprocess.run(
            [sys.executable, "-c", KILLED, tmp_path / "a.tgz", state, tmp_path / "out", log, str(place), *left],
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert child.returncode == -signal.SIGKILL
        begun, *_, ended = map(int, log.read_text().split())
        assert begun >= reached - 1_000_000
        reached = ended
    # The last may want others, too.
    more = {name for name in members if rng.random() < 0.3} if seed % 2 else set()
    left = sorted(more | {name for name in wanted if not kept(tmp_path / "out", name, members)})
    watched = Watched(archive)
    results, last = run(watched, [*left, "not there"], state)
    assert results == {name: members[name] for name in left}
    overlap = sum(max(0, min(end, reached) - start) for start, end in watched.ranges)
    ahead = SMALL["_REACHED"] + SMALL["_WAITING"] * SMALL["BLOCK"] + max(map(len, members.values())) + 64 * 1024
    assert overlap - ahead <= last.repeated <= overlap, "it does not tell the truth"
    if not more:
        assert len(watched.ranges) <= 2
        assert 0 < reached - 1_000_000 <= last.resumed_at <= reached
        assert overlap <= 1_000_000


def kept(folder: Path, name: str, members: dict[str, bytes]) -> bool:
    file = folder / name.replace("/", "_")
    return file.is_file() and file.read_bytes() == members[name]


def test_what_is_wanted_may_grow(
    archive: bytes, members: dict[str, bytes], close_points: None, tmp_path: Path
) -> None:
    state, names = tmp_path / "state", list(members)
    run(Watched(archive), names[:120:10], state)
    watched = Watched(archive)
    results, second = run(watched, names[60:63], state)  # known, though it was not wanted
    assert results == {name: members[name] for name in names[60:63]}
    assert second.resumed_at > 0 and second.repeated == watched.read < 1_000_000
    watched = Watched(archive)
    results, third = run(watched, [names[5], *names[-3:], "not there"], state)
    assert results == {name: members[name] for name in (names[5], *names[-3:])}
    assert len(watched.ranges) == 2 and third.resumed_at == 0
    watched = Watched(archive)
    assert run(watched, ["not there"], state)[0] == {} and watched.read == 0, "it knows all members by now"


def spoiled(lines: list[bytes]) -> Iterator[bytes]:
    """States as accidents and enemies make them."""

    def line(entry: object) -> bytes:
        text = json.dumps(entry).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)

    rng = random.Random(5)
    whole = b"".join(lines)
    yield b""
    yield b"\0" * 10_000
    yield whole.replace(b"1", b"2")
    yield b"".join(lines[1:])
    for _ in range(6):
        yield whole[: rng.randrange(len(whole))]
        at = rng.randrange(len(whole))
        yield whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :]
    yield lines[0] + b"[" * 100_000 + b"\n"
    yield lines[0] + line(["a"]) + line(None)
    good = [json.loads(each[9:]) for each in lines]
    with_point = next(entry for entry in good if "point" in entry)
    at, bit, out, crc, length, window = with_point["point"]
    for point in (
        None,
        [],
        [at, bit, out],
        [at, 9, out, crc, length, window],
        [at, bit, -1, crc, length, window],
        [at, bit, out, crc, length, window[4:]],
        [at, bit, out, crc, length, "?" * len(window)],
        [at, bit, out, crc, length, {"a": 1}],
        [at, bit, True, crc, length, window],
        [2**80, bit, out, crc, length, window],
        [at, (bit + 1) % 8, out, crc, length, window],  # could be true, and is not
        [at + 1, bit, out, crc, length, window],
        [at, bit, out, crc ^ 1, length, window],
        [at, bit, out - 512, crc, length, window],
        [0, 0, out, 0, 0, ""],
    ):
        yield b"".join(line({**entry, "point": point} if entry is with_point else entry) for entry in good)
    for change in (
        {"listed": "far"},
        {"listed": -1},
        {"listed": 10**12},
        {"listed": with_point["listed"] + 512},
        {"reached": None},
        {"reached": 10**15},
        {"members": 5},
        {"members": [[1]]},
        {"members": [[1, 2]]},
        {"members": [["a", "b"]]},
        {"members": [[with_point["listed"] - 512, "000/empty"]]},
    ):
        yield b"".join(line({**entry, **change} if entry is with_point else entry) for entry in good)


def test_states_that_lie(archive: bytes, members: dict[str, bytes], close_points: None, tmp_path: Path) -> None:
    state, names = tmp_path / "state", list(members)
    run(Watched(archive), names[:120], state)
    lines = state.read_bytes().splitlines(keepends=True)
    wanted = [*names[::9], "000/empty"]
    truth = {name: members[name] for name in wanted}
    for number, content in enumerate(spoiled(lines)):
        state.write_bytes(content)
        assert run(Watched(archive), wanted, state)[0] == truth, number
        if number % 5 == 0:  # and what it leaves is good
            assert run(Watched(archive), wanted, state)[0] == truth, number
    for folder in (tmp_path, Path("/proc/nowhere/state"), tmp_path / "state" / "below a file"):
        assert run(Watched(archive), wanted, folder)[0] == truth


def test_another_file_is_another_state(
    archive: bytes, members: dict[str, bytes], close_points: None, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    run(Watched(archive), list(members)[:120], state)
    before = state.read_bytes()
    other = {name: data[::-1] for name, data in members.items()}
    results, second = run(Watched(gzip.compress(packed(other), 1)), members, state)
    assert results == other and second.resumed_at == 0
    state.write_bytes(before)
    results, third = run(Watched(archive), members, state, version="another")
    assert results == members and third.resumed_at == 0


def test_damage_is_not_remembered(
    archive: bytes, members: dict[str, bytes], close_points: None, tmp_path: Path
) -> None:
    """Bytes that were damaged on the way, once, do not harm the next run."""
    damaged = bytearray(archive)
    damaged[len(archive) * 3 // 4] ^= 1
    state = tmp_path / "state"
    with pytest.raises(FetchError, match="truncated or damaged"):
        run(Watched(bytes(damaged)), [*members, "not there"], state)
    assert run(Watched(archive), [*members, "not there"], state)[0] == members


@pytest.mark.parametrize("kind", ["truncated", "garbage", "header"])
def test_a_broken_archive_is_not_read_anew_by_each_run(
    archive: bytes, members: dict[str, bytes], close_points: None, tmp_path: Path, kind: str
) -> None:
    place = len(archive) * 4 // 5
    if kind == "truncated":
        broken = archive[:place]
    elif kind == "garbage":
        broken = archive[:place] + random.Random(6).randbytes(len(archive) - place)
    else:
        tar = packed({name: members[name] for name in list(members)[:250]}).rstrip(b"\0")
        broken = gzip.compress(tar + bytes(-len(tar) % 512) + b"no header" * 100_000)
    state, listed = tmp_path / "state", []
    for number in range(4):
        watched = Watched(broken)
        tar_gz = GzipTar(watched, "v", state, go_on)
        with pytest.raises(FetchError, match="truncated or damaged") as caught:
            listed.append(list(tar_gz.read(lambda name: [name] if name == "not there" else [], ["not there"])))
        assert caught.value.reason == "corrupt"
        if number == 0:
            first = watched.read
            assert first > len(broken) // 2
        else:
            assert 0 < watched.read < 1_500_000 < first, "it read from the last point only"
            assert tar_gz.resumed_at > 0
            assert watched.read - 300_000 <= tar_gz.repeated <= watched.read
    # What it kept is true: all that lies before the break is known, and there without a second reading of the rest.
    names = list(members)[:20]
    watched = Watched(broken)
    assert run(watched, names, state)[0] == {name: members[name] for name in names}
    assert watched.read < first
    if kind != "header":  # and where the host's copy was right all along, the next run has everything
        with pytest.raises(FetchError):
            run(Watched(broken + bytes(len(archive) - len(broken))), ["not there"], tmp_path / "other")
        assert run(Watched(archive), members, tmp_path / "other")[0] == members


def test_a_stream_that_cannot_be_read_from_its_middle(
    archive: bytes, members: dict[str, bytes], close_points: None, tmp_path: Path
) -> None:
    """Deflated in a ZIP archive: read once from its beginning by each run, and no less is said."""
    press = zlib.compressobj(1, zlib.DEFLATED, -15)
    deflated = press.compress(archive) + press.flush()
    names, state = list(members), tmp_path / "state"
    reached = 0
    for wanted in (names[290:291], names[300:301], names[10:310:40], names[:2], ["not there"], ["not there"]):
        watched = Watched(deflated)
        results, tar = run(Inflated(watched, len(archive)), wanted, state)
        assert results == {name: members[name] for name in wanted if name in members}
        assert len(watched.ranges) == 1 and watched.read <= len(deflated)
        assert tar.resumed_at == 0
        again = min(reached, watched.read)
        assert again - 100_000 <= tar.repeated <= again + 300_000, "it does not tell the truth"
        reached = max(reached, watched.read)
    for cut in (len(deflated) // 2, len(deflated) // 3):
        for number in range(2):
            with pytest.raises(FetchError):
                tar = GzipTar(Inflated(Watched(deflated[:cut]), len(archive)), "v", tmp_path / str(cut), go_on)
                list(tar.read(lambda name: [], ["not there"]))
            assert tar.resumed_at == 0 and (tar.repeated > cut - 300_000) == (number == 1)


def test_a_failed_run_is_gone_on_with(
    archive: bytes, members: dict[str, bytes], close_points: None, tmp_path: Path
) -> None:
    """No kill: the network ends, and what was listed up to there is known."""

    def fail(at: int) -> None:
        if at > 2_000_000:
            raise FetchError("network", "journeydb", "a", "b", "c", "d")

    first = Watched(archive, act=fail)
    with pytest.raises(FetchError, match="expected b"):
        run(first, ["not there"], tmp_path / "state")
    watched = Watched(archive)
    results, second = run(watched, ["not there"], tmp_path / "state")
    assert results == {} and second.resumed_at > 1_000_000
    assert second.repeated == first.read - second.resumed_at


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_only_costs_the_next_run(archive: bytes, members: dict[str, bytes], close_points: None) -> None:
    assert run(Watched(archive), members, Path("/dev/full"))[0] == members


# --- in a fetch -----------------------------------------------------------------------------------------------------

UUIDS = [f"journeydb/{number:08x}-81cc-4eef-a89f-0cb9f211fa6f.jpg" for number in range(30)]
PLACE = "hf/JourneyDB/JourneyDB/data/train/imgs/000.tgz"


@pytest.fixture
def journey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Published, Mirror]]:
    """A mirror of one archive, which is a file of its own."""
    monkeypatch.setenv("HF_TOKEN", ACCOUNTS["HF_TOKEN"])
    published = Published.make(tmp_path / "published", names=UUIDS, size=(300, 200))
    put(published, (published.origin / PLACE).read_bytes())
    with Mirror(published.origin, **GATES) as mirror:
        yield published, mirror


def put(published: Published, data: bytes) -> None:
    (published.origin / "new").write_bytes(data)
    (published.origin / "new").replace(published.origin / PLACE)


@pytest.mark.parametrize("kind", ["truncated", "an image"])
def test_what_is_damaged_at_the_host_is_read_once_a_run(
    journey: tuple[Published, Mirror], tmp_path: Path, kind: str
) -> None:
    published, mirror = journey
    data = (published.origin / PLACE).read_bytes()
    if kind == "truncated":
        data = data[: len(data) * 9 // 10]
    else:
        damaged = {f"000/{Path(name).name}": (published.root / name).read_bytes() for name in UUIDS}
        name = f"000/{Path(UUIDS[7]).name}"
        damaged[name] = damaged[name][:-500]
        data = gzip.compress(packed(damaged))
    put(published, data)
    for _ in range(2):
        summary = published.fetch(mirror, tmp_path / "root", ("journeydb",), routes={"journeydb": "hf-tgz"})
        assert summary.missing and {error.reason for error in summary.missing.values()} == {"corrupt"}
        assert len(summary.missing) == 1 or kind == "truncated"
        assert summary.bytes_moved < 1.2 * len(data) + 50_000
    published.here(tmp_path / "root")


def test_another_version_is_read_in_the_same_run(journey: tuple[Published, Mirror], tmp_path: Path) -> None:
    published, mirror = journey
    data = (published.origin / PLACE).read_bytes()
    put(published, data[: len(data) * 2 // 3])
    asked: list[Request] = []

    def repaired(request: Request) -> Fault | None:
        """Once the broken one was read."""
        if request.path.endswith("000.tgz"):
            if any(each.range != request.range for each in asked) and request.range in (None, (0, 0)):
                put(published, data)
            asked.append(request)
        return None

    mirror.fault = repaired
    summary = published.fetch(mirror, tmp_path / "root", ("journeydb",), routes={"journeydb": "hf-tgz"})
    assert summary.complete, [str(error) for error in summary.missing.values()] + [str(r.range) for r in asked]
    published.complete(tmp_path / "root", ("journeydb",))
