"""Compressed 7z archives against 7-Zip and py7zr; damage, bombs, and programs that fail."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from imaginet_hub.data.readers import unpacking
from imaginet_hub.data.readers.files import LocalFile, Volumes
from imaginet_hub.data.readers.sevenzip import Block, Coder, SevenZip
from imaginet_hub.data.readers.unpacking import unpack, unpack_to
from imaginet_hub.demo.containers import Member, write_7z
from imaginet_hub.errors import FetchError

SEVEN = shutil.which("7z")
needs_7z = pytest.mark.skipif(SEVEN is None, reason="7-Zip is not on this machine")
WAYS = [pytest.param("program", marks=needs_7z), "py7zr"]
METHODS = {
    "copy": ["-m0=Copy"],
    "lzma": ["-m0=LZMA"],
    "lzma2": ["-m0=LZMA2"],
    "ppmd": ["-m0=PPMd"],
    "bzip2": ["-m0=BZip2"],
    "deflate": ["-m0=Deflate"],
    "deflate64": ["-m0=Deflate64"],
    "bcj": ["-m0=BCJ", "-m1=LZMA"],
    "bcj-lzma2": ["-m0=BCJ", "-m1=LZMA2"],
    "delta": ["-m0=Delta:4", "-m1=LZMA2"],
}


def nothing() -> None:
    """Nobody wants to stop."""


def opened(first: Path) -> SevenZip:
    if first.suffix == ".7z":
        return SevenZip(LocalFile(first, "test"))
    return SevenZip(Volumes([LocalFile(file, "test") for file in sorted(first.parent.glob(f"{first.stem}.[0-9]*"))]))


def all_of(archive: SevenZip, first: Path) -> dict[str, bytes | FetchError]:
    return dict(unpack(archive, first, {entry.name: entry for entry in archive.entries}, nothing))


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Only 7z, or only py7zr."""
    if request.param == "program":
        monkeypatch.setattr(unpacking, "py7zr_is_here", lambda: False)
    else:
        monkeypatch.setattr(unpacking, "_PROGRAMS", ())
    return str(request.param)


def contents(seed: int = 0) -> dict[str, bytes]:
    """Bytes that compress a little, of many sizes, under names of all kinds."""
    chance = random.Random(seed)
    made = {
        f"{top}/{folder}/{number:02d}.png": chance.randbytes(chance.choice((1, 300, 5_000, 90_000))) + b"tail" * 400
        for top in ("coco", "wikiart", "sd_faces_fake")
        for folder in ("a", "b c")
        for number in range(5)
    }
    return made | {"wikiart/antã³nio/日本.jpg": b"name" * 999, "wikiart/-so": b"dash", "wikiart/@list": b"at"}


def packed(folder: Path, files: Mapping[str, bytes], *switches: str, empties: bool = True) -> Path:
    """An archive by 7-Zip itself."""
    assert SEVEN is not None
    source = folder / "source"
    for name, data in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    if empties:
        (source / "coco" / "a" / "00empty.png").write_bytes(b"")
        (source / "coco" / "a" / "folder").mkdir()
        (source / "wikiart" / "a" / "00link.png").symlink_to("01.png")
    command = [SEVEN, "a", "-snl", "-bd", *switches, str(folder / "packed.7z"), "."]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    volumes = sorted(folder.glob("packed.7z*"))
    return volumes[0]


@needs_7z
@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("solid", ["-ms=on", "-ms=off", "-ms=4f"])
@pytest.mark.parametrize("method", METHODS)
def test_what_7zip_packs(way: str, method: str, solid: str, tmp_path: Path) -> None:
    """Whole, and of one top folder; links, empty files and folders lie between."""
    if (way, method) == ("py7zr", "ppmd"):
        pytest.skip("py7zr is not given PPMd")
    files = contents()
    first = packed(tmp_path, files, *METHODS[method], solid, "-mhc=off" if solid == "-ms=4f" else "-mhc=on")
    archive = opened(first)
    assert {entry.name for entry in archive.entries if not entry.link} == set(files)
    (link,) = (entry for entry in archive.entries if entry.link)
    results = all_of(archive, first)
    error = results.pop(link.name)
    assert isinstance(error, FetchError)
    assert error.got == "a symbolic link"
    assert results == files
    some = {name: entry for entry in archive.entries if (name := entry.name).startswith("sd_") or "日" in name}
    assert dict(unpack(archive, first, some, nothing)) == {name: files[name] for name in some}
    if method == "copy":
        assert all(block.stored for block in archive.blocks)


@needs_7z
@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_volumes_of_a_hundred_bytes(way: str, tmp_path: Path) -> None:
    files = {f"coco/{number}.png": bytes([number]) * 50 + os.urandom(80) for number in range(30)}
    first = packed(tmp_path, files, "-v100b", empties=False)
    assert len(list(tmp_path.glob("packed.7z.*"))) > 20
    assert all_of(opened(first), first) == files


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("method", ["LZMA", "LZMA2", "PPMD", "BZIP2", "DEFLATE", "COPY", "X86"])
def test_what_py7zr_packs(way: str, method: str, tmp_path: Path) -> None:
    py7zr = pytest.importorskip("py7zr")
    filters = {
        "PPMD": [{"id": py7zr.FILTER_PPMD, "order": 6, "mem": 24}],
        "X86": [{"id": py7zr.FILTER_X86}, {"id": py7zr.FILTER_LZMA2, "preset": 1}],
    }.get(method) or [{"id": getattr(py7zr, f"FILTER_{method}")}]
    if (way, method) == ("py7zr", "PPMD"):
        pytest.skip("py7zr is not given PPMd")
    files = contents(1)
    with py7zr.SevenZipFile(tmp_path / "packed.7z", "w", filters=filters) as archive:
        for name, data in files.items():
            archive.writestr(data, name)
    assert all_of(opened(tmp_path / "packed.7z"), tmp_path / "packed.7z") == files


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("solid", [True, False])
def test_names_that_mean_something_to_a_program(way: str, solid: bool, tmp_path: Path) -> None:
    """Whatever a name may make 7z do or leave, each member's bytes stay its own."""
    names = ["coco/x", "./coco/y", "coco//z", "/coco/abs", "../coco/up", "COCO/x", "coco\\x", "coco/*", "*/x", "-o/x"]
    names += ["@x/y", "coco", "coco.", "coco ", "C:/coco/x", "coco/../coco/q", "\ud800/x", "coco/\ud800", "coco/x"]
    files: list[tuple[str, bytes | Path]] = [
        (name, os.urandom(50) + bytes(20) + bytes([n])) for n, name in enumerate(names)
    ]
    (file,) = write_7z(tmp_path / "names.7z", files, compressed=True, solid=solid)
    archive = opened(file)
    assert [entry.name for entry in archive.entries] == names
    for number, entry in enumerate(archive.entries):
        assert dict(unpack(archive, file, {"it": entry}, nothing)) == {"it": files[number][1]}
    everything = {str(number): entry for number, entry in enumerate(archive.entries)}
    assert dict(unpack(archive, file, everything, nothing)) == {str(n): data for n, (_, data) in enumerate(files)}


# --- damage ---------------------------------------------------------------------------------------------------------


def small(count: int = 12) -> dict[str, bytes]:
    chance = random.Random(count)
    return {f"coco/{number:02d}.png": chance.randbytes(20_000) + bytes(500) for number in range(count)}


def damage(file: Path, at: int, count: int = 16) -> None:
    data = bytearray(file.read_bytes())
    data[at : at + count] = bytes(byte ^ 0xFF for byte in data[at : at + count])
    file.write_bytes(data)


@pytest.mark.parametrize("program", [pytest.param(True, marks=needs_7z), False])
def test_a_damaged_member_takes_no_other_that_is_not_behind_it(
    program: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not program:
        monkeypatch.setattr(unpacking, "_PROGRAMS", ())
    files = small()
    (alone,) = write_7z(tmp_path / "alone.7z", files.items(), compressed=True)
    block = opened(alone).blocks[5]
    damage(alone, block.offset + block.packed // 2)
    results = all_of(opened(alone), alone)
    assert {name for name, data in results.items() if data != files[name]} == {"coco/05.png"}
    (together,) = write_7z(tmp_path / "together.7z", files.items(), compressed=True, solid=True)
    damage(together, together.stat().st_size // 2)
    results = all_of(opened(together), together)
    good = {name for name, data in results.items() if isinstance(data, bytes)}
    assert {f"coco/{number:02d}.png" for number in range(5)} <= good
    assert all(results[name] == files[name] for name in good)
    assert len(results) == len(files)
    assert len(good) < len(files)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("solid", [True, False])
def test_a_wrong_crc_is_one_members_own(way: str, solid: bool, tmp_path: Path) -> None:
    files = small()
    members = [Member(name, data, crc=7 if "05" in name else None) for name, data in files.items()]
    (file,) = write_7z(tmp_path / "crc.7z", members, compressed=True, solid=solid)
    results = all_of(opened(file), file)
    error = results.pop("coco/05.png")
    assert isinstance(error, FetchError)
    assert error.reason == "corrupt"
    assert "00000007" in str(error)
    assert "coco/05.png" in str(error)
    assert results == {name: data for name, data in files.items() if "05" not in name}


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_sizes_that_lie(way: str, tmp_path: Path) -> None:
    files = small()
    members = [Member(name, data, size=90_000 if "05" in name else None) for name, data in files.items()]
    (file,) = write_7z(tmp_path / "long.7z", members, compressed=True)
    results = all_of(opened(file), file)
    assert isinstance(results["coco/05.png"], FetchError)
    assert all(results[f"coco/{number:02d}.png"] == files[f"coco/{number:02d}.png"] for number in range(5))
    members = [Member(name, data, size=300 * 1024**2 if "05" in name else None) for name, data in files.items()]
    (file,) = write_7z(tmp_path / "huge.7z", members, compressed=True)
    error = all_of(opened(file), file)["coco/05.png"]
    assert isinstance(error, FetchError)
    assert "314,572,800" in error.got


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_large_member_goes_to_a_file(way: str, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(1_000_000)
    members: list[Member | tuple[str, bytes | Path]] = [
        ("a/first.bin", data[:100_000]),
        ("a/inner.zip", data),
        Member("a/bad.zip", data, crc=1),
    ]
    (file,) = write_7z(tmp_path / "inner.7z", members, compressed=True, solid=True)
    archive = opened(file)
    target = tmp_path / "out" / "inner.zip"
    unpack_to(archive, file, archive.entries[1], target, nothing)
    assert target.read_bytes() == data
    with pytest.raises(FetchError, match="00000001"):
        unpack_to(archive, file, archive.entries[2], tmp_path / "out" / "bad.zip", nothing)
    assert [path.name for path in target.parent.iterdir()] == ["inner.zip"]


@pytest.mark.parametrize("way", ["py7zr"], indirect=True)
@pytest.mark.parametrize("method", ["LZMA", "LZMA2", "BZip2", "Deflate"])
def test_mutations_give_errors_in_bounded_time(way: str, method: str, tmp_path: Path) -> None:
    """Damaged anywhere in the data, or cut, a decoder neither hangs nor gives other bytes for good ones."""
    if SEVEN is None:
        pytest.skip("7-Zip is not on this machine")
    chance = random.Random(method)
    files = {f"a/{number}.png": chance.randbytes(900) for number in range(4)}
    first = packed(tmp_path, files, f"-m0={method}", "-ms=on", empties=False)
    data = first.read_bytes()
    file = tmp_path / "mutated.7z"
    end = 32 + int.from_bytes(data[12:20], "little")
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 3, 200))):
            changed[chance.randrange(32, end - 150)] = chance.randrange(256)
        file.write_bytes(changed)
        began = time.monotonic()
        results = all_of(opened(file), file)
        assert time.monotonic() - began < 5
        assert set(results) == set(files)
        assert all(result == files[name] for name, result in results.items() if isinstance(result, bytes))


# --- bombs ----------------------------------------------------------------------------------------------------------

#: Unpacks what is named by the arguments after the archive, by one way, and tells what it took.
_CHILD = """
import re, resource, sys, time
from pathlib import Path
from imaginet_hub.data.readers import unpacking
from imaginet_hub.data.readers.files import LocalFile
from imaginet_hub.data.readers.sevenzip import Block, Coder, SevenZip
from imaginet_hub.errors import FetchError
file, way = Path(sys.argv[1]), sys.argv[2]
if way == "program":
    unpacking.py7zr_is_here = lambda: False
elif way == "py7zr":
    unpacking._PROGRAMS = ()
began, good, bad = time.monotonic(), 0, 0
try:
    archive = SevenZip(LocalFile(file, "test"))
    wanted = {str(n): e for n, e in enumerate(archive.entries) if not sys.argv[3:] or e.name in sys.argv[3:]}
    for _, result in unpacking.unpack(archive, file, wanted, lambda: None):
        good, bad = good + isinstance(result, bytes), bad + isinstance(result, FetchError)
except FetchError as error:
    bad = -1
    print(error, file=sys.stderr)
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(good, bad, max(peak, child), time.monotonic() - began)
"""


def measured(file: Path, way: str, *names: str) -> tuple[int, int, int, float, str]:
    """How many members came, how many did not, peak memory (kB) of Python or 7z, seconds, what was said."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(file), way, *names],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    good, bad, peak, seconds = done.stdout.split()
    return int(good), int(bad), int(peak), float(seconds), done.stderr


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Zeros that are refused by their size; and just below that, many in one block."""
    folder, good = tmp_path_factory.mktemp("bombs"), os.urandom(10_000)
    zeros = folder / "zeros"
    with zeros.open("wb") as file:
        file.truncate(400 * 1024**2)
    (large,) = write_7z(folder / "bomb.7z", [("a/zeros.png", zeros), ("a/good.png", good)], compressed=True)
    with zeros.open("wb") as file:
        file.truncate(60 * 1024**2)
    members: list[tuple[str, bytes | Path]] = [
        *((f"a/{number}.png", zeros) for number in range(3)),
        ("a/good.png", good),
    ]
    (many,) = write_7z(folder / "many.7z", members, compressed=True, solid=True)
    return large, many


@linux
@pytest.mark.parametrize("way", [*WAYS, "both"])
def test_bombs(way: str, bombs: tuple[Path, Path]) -> None:
    """Hundreds of megabytes of zeros in a few kilobytes: refused by their size, or passed over."""
    large, many = bombs
    assert large.stat().st_size < 200_000
    came, failed, peak, seconds, _ = measured(large, way)
    # 7z cannot be told to leave a block out; py7zr is given blocks one by one.
    assert (came, failed) == ((0, 2) if way == "program" else (1, 1))
    assert peak < 600_000
    assert seconds < 30
    came, failed, peak, seconds, _ = measured(many, way, "a/good.png")  # only the last is wanted
    assert (came, failed) == (1, 0)
    assert peak < 600_000


@needs_7z
@linux
@pytest.mark.parametrize("method", ["Deflate", "Deflate64", "BZip2", "PPMd", "LZMA2", "LZMA"])
def test_more_than_was_declared(method: str, tmp_path: Path) -> None:
    """Zeros without end behind a size that is harmless: what decoders unpack is bounded by what they are asked for."""
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "zeros.png").open("wb") as file:
        file.truncate(300 * 1024**2)
    assert SEVEN is not None
    archive = tmp_path / "lie.7z"
    command = [SEVEN, "a", "-bd", "-mx=1", f"-m0={method}", "-mhc=off", str(archive), "."]
    subprocess.run(command, cwd=tmp_path / "source", check=True, stdout=subprocess.DEVNULL)
    data = archive.read_bytes()
    start = int.from_bytes(data[12:20], "little") + 32
    header = data[start:]
    claimed = (300 * 1024**2).to_bytes(4, "little")
    assert b"\xf0" + claimed in header
    header = header.replace(b"\xf0" + claimed, b"\xf0" + (50_000).to_bytes(4, "little"))
    begin = data[12:28] + zlib.crc32(header).to_bytes(4, "little")
    archive.write_bytes(data[:8] + zlib.crc32(begin).to_bytes(4, "little") + begin + data[32:start] + header)
    came, failed, peak, seconds, _ = measured(archive, "py7zr")
    assert (came, failed) == (0, 1)
    assert peak < 300_000
    assert seconds < 20


@needs_7z
@linux
def test_solid_blocks_of_small_members_take_no_memory(tmp_path: Path) -> None:
    """A decoder that is handed more than it asks for would hold the whole block."""
    chance = random.Random(3)
    files = {f"a/{number:05d}.png": chance.randbytes(4_000) for number in range(20_000)}
    first = packed(tmp_path, files, "-m0=LZMA2", "-mx=1", "-ms=on", empties=False)
    for way in ("program", "py7zr"):
        came, failed, peak, _, _ = measured(first, way)
        assert (came, failed) == (20_000, 0)
        assert peak < 250_000, way


@linux
@needs_7z
@pytest.mark.parametrize("way", ["program", "py7zr", "both"])
def test_a_dictionary_of_four_gigabytes(way: str, tmp_path: Path) -> None:
    (file,) = write_7z(tmp_path / "large.7z", small().items(), compressed=True)
    data = file.read_bytes()
    start = int.from_bytes(data[12:20], "little") + 32
    old, new = b"\x05\x5d" + (1 << 20).to_bytes(4, "little"), b"\x05\x5d" + b"\xff" * 4
    header = data[start:].replace(old, new, 1)
    begin = data[12:28] + zlib.crc32(header).to_bytes(4, "little")
    file.write_bytes(data[:8] + zlib.crc32(begin).to_bytes(4, "little") + begin + data[32:start] + header)
    came, failed, peak, _, _ = measured(file, way)
    assert peak < 700_000
    assert failed >= 1
    assert way == "program" or came == 11


@needs_7z
@pytest.mark.parametrize("header", [False, True])
def test_encrypted(header: bool, tmp_path: Path) -> None:
    first = packed(tmp_path, small(), "-psecret", *(["-mhe=on"] if header else []), empties=False)
    if header:
        with pytest.raises(FetchError, match="an encrypted one") as raised:
            opened(first)
        assert raised.value.reason == "format"
        return
    results = all_of(opened(first), first)
    assert {str(error.got) for error in results.values() if isinstance(error, FetchError)} == {"an encrypted block"}
    assert len(results) == 12


# --- programs that fail ---------------------------------------------------------------------------------------------

Fake = Callable[[str], Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a program named 7z before all others."""

    def make(body: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name in ("7zz", "7z"):
            (folder / name).write_text(body)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder

    return make


def noted(folder: Path) -> int:
    """The process that wrote its number."""
    deadline = time.monotonic() + 20
    while not (folder / "pid").exists() or not (folder / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int((folder / "pid").read_text())


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "body",
    [
        "#!/bin/sh\nexit 2\n",
        "#!/bin/sh\nkill -9 $$\n",
        "#!/bin/sh\nkill -SEGV $$\n",
        "#!/bin/sh\nhead -c 5000000 /dev/zero\n",
        "#!/bin/sh\nhead -c 50000 /dev/urandom; exec sleep 600\n",
        "#!/bin/sh\nexec sleep 600\n",
        "#!/bin/sh\nsleep 60\n",  # and its child holds the pipe
        "#!/bin/sh\nexec yes ERROR: no >&2\n",
        "#!/nowhere/at/all\n",
        "no program at all\0\1\2",
    ],
    ids=["fails", "killed", "crashes", "zeros", "garbage-hangs", "hangs", "child", "talks", "nowhere", "none"],
)
def test_a_program_that_fails_leaves_it_to_py7zr(
    body: str, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("py7zr")
    monkeypatch.setattr(unpacking, "_SILENCE_S", 0.3)
    fake(body)
    files = small()
    (file,) = write_7z(tmp_path / "a.7z", files.items(), compressed=True, solid=True)
    began = time.monotonic()
    assert all_of(opened(file), file) == files
    archive = opened(file)
    unpack_to(archive, file, archive.entries[3], tmp_path / "three", nothing)
    assert (tmp_path / "three").read_bytes() == files["coco/03.png"]
    assert time.monotonic() - began < 15
    # Without it, every member has its error.
    monkeypatch.setattr(unpacking, "py7zr_is_here", lambda: False)
    results = all_of(opened(file), file)
    assert set(results) == set(files)
    assert all(isinstance(error, FetchError) and error.reason == "corrupt" for error in results.values())


def test_a_program_that_computes_in_silence_does_not_hang(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if SEVEN is None or not Path("/proc/self/stat").exists():
        pytest.skip("needs 7-Zip and /proc")
    monkeypatch.setattr(unpacking, "_SILENCE_S", 0.5)
    monkeypatch.setattr(unpacking, "py7zr_is_here", lambda: False)
    spin = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    fake(
        f'#!/bin/sh\nexec {sys.executable} -c \'{spin}\nimport os, sys\nos.execv("{SEVEN}", sys.argv[1:])\' 7z "$@"\n'
    )
    files = small()
    (file,) = write_7z(tmp_path / "a.7z", files.items(), compressed=True)
    assert all_of(opened(file), file) == files


def test_closed_early_the_child_is_gone(fake: Fake, tmp_path: Path) -> None:
    if SEVEN is None:
        pytest.skip("7-Zip is not on this machine")
    folder = fake(f'#!/bin/sh\necho $$ > "$(dirname "$0")/pid"\nexec {SEVEN} "$@"\n')
    files = {f"a/{number}.png": os.urandom(400_000) for number in range(8)}
    (file,) = write_7z(tmp_path / "a.7z", files.items(), compressed=True)
    archive = opened(file)
    results = unpack(archive, file, {entry.name: entry for entry in archive.entries}, nothing)
    next(results)
    process = noted(folder)
    assert not gone(process)
    results.close()  # type: ignore[attr-defined]
    assert gone(process)


def test_stopped_while_a_program_hangs(fake: Fake, tmp_path: Path) -> None:
    """`check` is asked though nothing comes."""
    folder = fake('#!/bin/sh\necho $$ > "$(dirname "$0")/pid"\nexec sleep 600\n')
    (file,) = write_7z(tmp_path / "a.7z", small().items(), compressed=True)
    archive = opened(file)
    stop = threading.Event()

    class Stopped(BaseException):
        pass

    def check() -> None:
        if stop.is_set():
            raise Stopped

    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with pytest.raises(Stopped):
        list(unpack(archive, file, {entry.name: entry for entry in archive.entries}, check))
    assert time.monotonic() - began < 5
    assert gone(noted(folder))


def test_nothing_that_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_PROGRAMS", ())
    monkeypatch.setattr(unpacking.importlib.util, "find_spec", lambda name: None)
    (file,) = write_7z(tmp_path / "a.7z", small().items(), compressed=True)
    with pytest.raises(FetchError, match="install 7-Zip") as raised:
        all_of(opened(file), file)
    assert raised.value.reason == "format"


@pytest.mark.parametrize("method", ["03030103", "03030205", "03030401", "03030501", "03030701", "03030805"])
@pytest.mark.parametrize("alone", [True, False])
def test_filters_with_empty_properties_do_not_end_the_process(method: str, alone: bool, tmp_path: Path) -> None:
    """liblzma's filters read through a null pointer then; in a process of its own, to see it end."""
    filter_ = Coder(bytes.fromhex(method), b"", 1, 1)
    coders = (filter_,) if alone else (filter_, Coder(bytes.fromhex("21"), b"\x10", 1, 1))
    assert Block(32, 10, 10, coders, (10,) * len(coders), 1).refusal == "a coder with senseless properties"
    code = (
        "from types import SimpleNamespace as Any\n"
        "from imaginet_hub.data.readers import unpacking\n"
        "from imaginet_hub.data.readers.sevenzip import Block, Coder, Entry\n"
        "from imaginet_hub.data.readers.files import LocalFile\n"
        "import sys, pathlib\n"
        f"made = {[(coder.method.hex(), coder.properties) for coder in coders]}\n"
        "coders = tuple(Coder(bytes.fromhex(m), p, 1, 1) for m, p in made)\n"
        "archive = Any(file=LocalFile(pathlib.Path(sys.argv[1]), 'x'), checked=lambda entry, data: data)\n"
        "block = Block(0, 10, 10, coders, (10,) * len(coders), 1)\n"
        "entry = Entry('a', 0, 0, 10, None)\n"
        "try:\n"
        "    print(len(list(unpacking._decoded(archive, block, [entry], lambda: None))))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    (tmp_path / "x").write_bytes(bytes(10))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_out_of_step_is_not_held(tmp_path: Path) -> None:
    """After a damaged member, those that nobody wants are read over, however large they are."""
    members = [
        Member("a/0.png", os.urandom(1000), crc=1),
        Member("a/1.png", os.urandom(300 * 1024**2)),
        Member("a/2.png", os.urandom(1000)),
    ]
    (file,) = write_7z(tmp_path / "a.7z", members, compressed=False, solid=True)
    came, failed, peak, _, _ = measured(file, "program", "a/0.png", "a/2.png")
    assert (came, failed) == (1, 1)
    assert peak < 250_000
