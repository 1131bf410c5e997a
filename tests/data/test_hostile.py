"""Archives that mean harm, from end to end: the good images among them arrive, the others are named with a reason."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from imaginet_hub.demo.staging import write_zip
from tests.conftest import image_bytes

COUNT = 24
PATHS = [f"val2017/{number:012d}.jpg" for number in range(COUNT)]
GOOD = {PATHS[number]: image_bytes(number, (80, 60), "JPEG") for number in range(0, COUNT, 4)}
MOST_MB = 1000

#: Fetches in a process of its own and says what came, what did not, and how much memory it had at most.
FETCH = """
import json, sys
from pathlib import Path
from imaginet_hub.data.fetch import fetch
from imaginet_hub.data.readers.http import Limits
root, lists, archive = map(Path, sys.argv[1:])
nowhere = dict.fromkeys(("coco", "github", "drive", "hf"), "http://127.0.0.1:9")
summary = fetch(root, annotations=lists, only=["coco"], own={"coco": archive}, routes={"coco": "own"},
                endpoints=nowhere, limits=Limits(timeout_s=1.0, retries=0, backoff_s=0.01, max_backoff_s=0.01))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
missing = {path: [error.reason, str(error)] for path, error in summary.missing.items()}
print(json.dumps({"missing": missing, "mb": int(peak.split()[1]) // 1024}))
"""


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with sizes and times."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns) if path.is_file() else (0, 0)
    return found


def fetched(base: Path, archive: Path) -> dict[str, tuple[str, str]]:
    """What a fetch from an archive says of the files that did not come; all that always holds is checked."""
    lists = base / "lists"
    lists.mkdir()
    (lists / "test_annotations.txt").write_text("".join(f"./{path},0,2,4,8\n" for path in PATHS))
    root = base / "parent" / "deep" / "root"
    root.parent.mkdir(parents=True)
    before = listing(base)
    environment = {**os.environ, "HOME": str(base / "parent"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", FETCH, str(root), str(lists), str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["mb"] < MOST_MB
    after = {path: state for path, state in listing(base).items() if not path.startswith("parent/deep/root")}
    assert after == before
    here = {path.relative_to(root).as_posix() for path in root.rglob("*.jpg")}
    assert here == set(PATHS) - set(said["missing"])
    for path, data in GOOD.items():
        assert (root / path).read_bytes() == data
    return {path: (reason, text) for path, (reason, text) in said["missing"].items()}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rest: bytes = b"", most: int = 1 << 30) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0))
    press, left = zlib.compressobj(1), min(width * height * 4 + height, most)
    pieces = []
    while left > 0:
        pieces.append(press.compress(bytes(min(left, 1 << 20))))
        left -= 1 << 20
    pixels = b"".join([*pieces, press.flush()])
    return b"\x89PNG\r\n\x1a\n" + header + rest + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_scans(scans: int, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def frames(count: int, format_: str) -> bytes:
    stream = io.BytesIO()
    pictures = [Image.new("RGB", (8, 8), (number % 256, number // 256, 7)) for number in range(count)]
    pictures[0].save(stream, format_, save_all=True, append_images=pictures[1:])
    return stream.getvalue()


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(image_bytes(1, (64, 64), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def test_hostile_images(tmp_path: Path) -> None:
    """Each under the name of a JPEG, in a folder of the user's own."""
    plain = image_bytes(1, format_="JPEG")
    bad = {
        "10^9 pixels": (png(40_000, 25_000, most=1 << 20), "pixels"),
        "a JPEG of 65,500 squared": (jpeg_of(65_500, 65_500), "pixels"),
        "1,000 scans": (jpeg_scans(1000, (64, 64)), "scans"),
        "a GIF of 1,000 frames": (frames(1000, "GIF"), "at most 256 pictures"),
        "an APNG of 1,000 frames": (frames(1000, "PNG"), "at most 256 pictures"),
        "a TIFF of 1,000 pages": (frames(1000, "TIFF"), "at most 256 pictures"),
        "an MPO of 1,000 pictures": (frames(1000, "MPO"), "scans"),
        "a profile bomb": (png(8, 8, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(100 << 20)))), "too large"),
        "a WebP of 13,000 squared": (
            b"RIFF"
            + struct.pack("<I", 400_000)
            + b"WEBPVP8 "
            + bytes(10)
            + struct.pack("<HH", 13_000, 13_000)
            # as much as keeps it from looking like a bomb
            + bytes(400_000),
            "of memory",
        ),
        "half a JPEG": (plain[: len(plain) // 2], "cannot be decoded completely"),
    }
    mine = tmp_path / "mine" / "val2017"
    mine.mkdir(parents=True)
    names = [path for path in PATHS if path not in GOOD]
    # 169 megapixels of RGBA take 0.7 GB; they are an image all the same, and are decoded elsewhere.
    (mine / Path(names[-1]).name).write_bytes(png(13_000, 13_000))
    for name, (data, _) in zip(names, bad.values(), strict=False):
        (mine / Path(name).name).write_bytes(data)
    for path, data in GOOD.items():
        (mine / Path(path).name).write_bytes(data)
    missing = fetched(tmp_path, tmp_path / "mine")
    for name, (what, (_, word)) in zip(names, bad.items(), strict=False):
        reason, text = missing.pop(name)
        assert reason == "corrupt" and word in text, (what, text)
    assert names[-1] not in missing
    assert all("none" in text for _, text in missing.values())


def zip_of(members: list[dict[str, Any]]) -> bytes:
    """A ZIP archive whose directory may say anything: dicts of name, data and lies."""
    body, directory = b"", b""
    for lie in members:
        name, data, method = lie["name"].encode(), lie.get("packed", lie["data"]), lie.get("method", 0)
        size, packed = lie.get("size", len(lie["data"])), lie.get("compressed", len(data))
        crc, flags, mode = zlib.crc32(lie["data"]), lie.get("flags", 0), lie.get("mode", 0o100644)
        offset = lie.get("offset", len(body))
        fields = (20, flags, method, 0, 0, crc, packed, size, len(name))
        directory += struct.pack("<4sH5H3I5H2I", b"PK\1\2", 798, *fields, 0, 0, 0, 0, mode << 16, offset) + name
        body += struct.pack("<4s5H3I2H", b"PK\3\4", *fields, 0) + name + data
    count = len(members)
    return body + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)


def deflated(data: bytes) -> bytes:
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    return press.compress(data) + press.flush()


def test_a_hostile_zip(tmp_path: Path) -> None:
    image = image_bytes(99, (80, 60), "JPEG")
    zeros = bytes(200 << 20)
    bomb = deflated(zeros)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"name": "../../{}"}, "leads out of the archive: '../../val2017"),
        ({"name": "/{}"}, "leads out of the archive"),
        ({"name": "C:\\{}"}, "leads out of the archive: 'C:/val2017"),
        ({"name": "\\\\server\\share\\{}"}, "leads out of the archive: '//server"),
        ({"name": "x/..\\..\\..\\{}"}, "leads out of the archive"),
        ({"name": "n" * 5000 + "/{}"}, "5,025 characters"),
        ({"flags": 1}, "an encrypted member"),
        ({"mode": 0o120777}, "a symbolic link"),
        ({"method": 99}, "compression method 99"),
        ({"size": 10, "packed": bomb, "method": 8, "data": zeros}, "got more"),
        ({"size": 201 << 20, "packed": bomb, "method": 8, "data": zeros}, "expected 210,763,776 bytes"),
        ({"packed": bomb, "method": 8, "data": zeros}, "an image that decodes completely"),
        (
            {"compressed": len(deflated(image)) + 300, "packed": deflated(image), "method": 8},
            "shares its bytes with the next",
        ),
        ({"size": 1 << 31, "method": 8}, "2,147,483,648 bytes"),
    ]
    names = [path for path in PATHS if path not in GOOD]
    members = [{"name": path, "data": data} for path, data in list(GOOD.items())[:3]]
    for name, (lie, _) in zip(names, bad, strict=False):
        members.append({"data": image, **lie, "name": lie.get("name", "{}").format(name)})
    upper = names[-1].replace(".jpg", ".JPG")
    members += [{"name": upper, "data": image}, {"name": names[-1], "data": image}]  # two names that differ in case
    members += [{"name": names[-2], "data": image}, {"name": names[-2], "data": image_bytes(98, format_="JPEG")}]
    members += [{"name": path, "data": data} for path, data in list(GOOD.items())[3:]]
    (tmp_path / "hostile.zip").write_bytes(zip_of(members))
    missing = fetched(tmp_path, tmp_path / "hostile.zip")
    for name, (lie, word) in zip(names, bad, strict=False):
        reason, text = missing.pop(name)
        assert reason == "corrupt" and word in text, (lie.keys(), text)
        assert len(text) < 1000
    assert "two: " in missing.pop(names[-2])[1]
    assert names[-1] not in missing
    assert all("got none" in text for _, text in missing.values())


def test_a_kernel_that_many_members_share(tmp_path: Path) -> None:
    """As in zip bombs of ten megabytes that hold petabytes: none is inflated."""
    names = [path for path in PATHS if path not in GOOD]
    kernel = deflated(bytes(100 << 20))
    members: list[dict[str, Any]] = [{"name": path, "data": data} for path, data in GOOD.items()]
    start = len(zip_of(members)) - sum(46 + len(path) for path in GOOD) - 22
    # Each member's data, as stored blocks of deflate, would contain all local headers behind it.
    for name in names:
        members.append({"name": name, "data": b"", "method": 8, "compressed": len(kernel), "size": 100 << 20})
    members.append({"name": "kernel", "data": kernel})
    (tmp_path / "bomb.zip").write_bytes(zip_of(members))
    assert start > 0
    missing = fetched(tmp_path, tmp_path / "bomb.zip")
    assert set(missing) == set(names)
    assert all("shares its bytes with the next" in text for _, text in missing.values())


@pytest.mark.parametrize("packed", [False, True])
def test_a_hostile_tar(tmp_path: Path, packed: bool) -> None:
    names = [path for path in PATHS if path not in GOOD]
    special = {
        names[0]: (tarfile.SYMTYPE, "a symbolic link to '/etc/passwd'"),
        names[1]: (tarfile.LNKTYPE, "a hard link to '/etc/passwd'"),
        names[2]: (tarfile.CHRTYPE, "a character device"),
        names[3]: (tarfile.FIFOTYPE, "a named pipe"),
    }
    out = {names[4]: "../../", names[5]: "/", names[6]: "a/../../../"}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(info, io.BytesIO(data))

        add("link", kind=tarfile.SYMTYPE)
        for path, data in GOOD.items():
            add(f"link/{path}", data)  # through a link, if anything were unpacked
        for name, (kind, _) in special.items():
            add(name, kind=kind)
        for name, prefix in out.items():
            add(prefix + name, image_bytes(3, format_="JPEG"))
        add("n" * 2000 + "/" + names[7], image_bytes(3, format_="JPEG"))
        if packed:
            add("zeros", bytes(1 << 20))
        else:
            claim = tarfile.TarInfo("././@LongLink")
            claim.type, claim.size = tarfile.GNUTYPE_LONGNAME, 10 << 30
            stream.write(claim.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20))
    file = tmp_path / ("hostile.tar.gz" if packed else "hostile.tar")
    file.write_bytes(gzip.compress(stream.getvalue(), 1) if packed else stream.getvalue())
    missing = fetched(tmp_path, file)
    for name, (_, word) in special.items():
        assert word in missing[name][1], missing[name]
    for name, prefix in out.items():
        assert f"leads out of the archive: '{prefix}{name}'" in missing[name][1]
    assert "characters" in missing[names[7]][1]
    assert set(missing) == set(names)
    if not packed:
        assert "bytes of headers" in missing[names[8]][1]


def test_a_tar_of_a_terabyte_in_a_megabyte(tmp_path: Path) -> None:
    """Given up after one gigabyte; what came before is kept."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, data in GOOD.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        head = stream.getvalue()[: archive.offset]
    claim = tarfile.TarInfo("zeros")
    claim.size = 1 << 40
    press, pieces = zlib.compressobj(1, zlib.DEFLATED, 31), []
    for piece in (head, claim.tobuf(tarfile.GNU_FORMAT), *[bytes(1 << 20)] * 1100):
        pieces.append(press.compress(piece))
    (tmp_path / "bomb.tar.gz").write_bytes(b"".join(pieces) + press.flush())
    missing = fetched(tmp_path, tmp_path / "bomb.tar.gz")
    assert set(missing) == set(PATHS) - set(GOOD)
    assert all("expand to more than" in text for _, text in missing.values())


def test_an_honest_archive_is_taken_as_it_was(tmp_path: Path) -> None:
    """Windows' backslashes included."""
    members = [
        (path.replace("/", "\\") if number % 2 else f"./x/{path}", data)
        for number, (path, data) in enumerate(GOOD.items())
    ]
    missing = fetched(tmp_path, write_zip(tmp_path / "fine.zip", members))
    assert set(missing) == set(PATHS) - set(GOOD)
