"""What the writers of containers write, as zipfile, tarfile, gzip, py7zr, 7z and pyarrow see it."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import lzma
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from imaginet_hub.demo import containers
from imaginet_hub.demo.containers import (
    Member,
    lfs_blob_id,
    write_7z,
    write_indexed_tar,
    write_parquet,
    write_tgz,
    write_zip,
)
from tests.conftest import image_bytes

Made = Member | tuple[str, bytes | Path]


def contents(archive: Path) -> dict[str, bytes]:
    """Every file in a zip archive, with the CRC checked."""
    with zipfile.ZipFile(archive) as opened:
        return {info.filename: opened.read(info) for info in opened.infolist() if not info.is_dir()}


# --- write_zip ------------------------------------------------------------------------------------------------------

DATA = bytes(range(256)) * 40
MAKES = [
    (deflate, descriptor, unix) for deflate in (False, True) for descriptor in (False, True) for unix in (False, True)
]


@pytest.mark.parametrize("zip64", [False, True])
def test_write_zip(tmp_path: Path, zip64: bool) -> None:
    (tmp_path / "data").write_bytes(DATA)
    members = [Member(f"{n}.bin", tmp_path / "data" if n % 3 else DATA, *make) for n, make in enumerate(MAKES)]
    more: list[Made] = [
        Member("\u00e9.bin", b"named"),
        Member("folder/"),
        Member("empty", b"", True),
        ("pair", b"of two"),
    ]
    file = write_zip(tmp_path / "a" / "b.zip", [*members, *more], zip64=zip64, comment=b"say hello!")
    assert list(file.parent.iterdir()) == [file]
    expected = {f"{n}.bin": DATA for n in range(8)} | {"\u00e9.bin": b"named", "empty": b"", "pair": b"of two"}
    assert contents(file) == expected
    with zipfile.ZipFile(file) as archive:
        assert archive.comment == b"say hello!" and archive.getinfo("folder/").is_dir()
        assert archive.getinfo("pair").date_time == (2024, 1, 1, 12, 0, 0)
        assert {info.extract_version for info in archive.infolist()} == {45 if zip64 else 20}
        assert archive.getinfo("\u00e9.bin").flag_bits & 0x800 and not archive.getinfo("pair").flag_bits
    end = file.read_bytes()[-22 - 10 :]
    count, size, start = struct.unpack("<10xH2I", end[:20])
    assert (count, size, start) == ((0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF) if zip64 else (count, size, start))
    assert zip64 or (count == 12 and start < file.stat().st_size)


def test_local_headers_and_descriptors_are_whole(tmp_path: Path) -> None:
    """Read front to back by the specification, as a streaming unzipper does; zipfile reads back to front."""
    for zip64 in (False, True):
        members = [Member(f"{n}", DATA, *make) for n, make in enumerate(MAKES)]
        data = write_zip(tmp_path / "x.zip", members, zip64=zip64).read_bytes()
        with zipfile.ZipFile(tmp_path / "x.zip") as archive:
            infos = archive.infolist()
        at = 0
        for info, (_, descriptor, unix) in zip(infos, MAKES, strict=True):
            fields = struct.unpack_from("<4s5H3I2H", data, at)
            assert fields[0] == b"PK\3\4" and at == info.header_offset
            crc, packed, unpacked, name, extra = fields[6:]
            kinds, where = {}, at + 30 + name
            while where < at + 30 + name + extra:
                kind, length = struct.unpack_from("<2H", data, where)
                kinds[kind] = data[where + 4 : where + 4 + length]
                where += 4 + length
            assert where == at + 30 + name + extra and list(kinds) == [1] * zip64 + [0x5455, 0x7875] * unix
            if zip64:
                assert (packed, unpacked) == (0xFFFFFFFF, 0xFFFFFFFF)
                unpacked, packed = struct.unpack("<2Q", kinds[1])
            at = where + info.compress_size
            if descriptor:
                assert (crc, packed, unpacked) == (0, 0, 0)
                signature, crc, packed, unpacked = struct.unpack_from("<4sI2Q" if zip64 else "<4s3I", data, at)
                assert signature == b"PK\7\x08"
                at += 24 if zip64 else 16
            assert (crc, packed, unpacked) == (info.CRC, info.compress_size, len(DATA))
        assert data[at : at + 4] == b"PK\1\2"


def test_damaged_members_and_prefixes(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "x.zip", [("good", DATA), Member("bad", DATA, crc=1)], prefix=b"#!/bin/sh\n" * 10)
    with zipfile.ZipFile(file) as archive:
        assert archive.read("good") == DATA and archive.testzip() == "bad"


def test_more_members_than_sixteen_bits_count(tmp_path: Path) -> None:
    file = write_zip(tmp_path / "x.zip", ((f"{n}", b"") for n in range(65_536)))
    with zipfile.ZipFile(file) as archive:
        assert len(archive.infolist()) == 65_536


def test_offsets_beyond_four_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sparse file that an out-of-the-way prefix makes, not with four gigabytes."""
    file = write_zip(tmp_path / "x.zip", [("one", DATA), ("two", DATA)])
    moved = tmp_path / "moved.zip"
    real = containers._write_member

    def far(out: io.BufferedWriter, member: Member, zip64: bool, prefix: int) -> bytes:
        if member.name == "two":
            out.seek(5 << 30)
        return real(out, member, zip64, prefix)

    monkeypatch.setattr(containers, "_write_member", far)
    write_zip(moved, [("one", DATA), ("two", DATA)])
    assert contents(moved) == contents(file) and moved.stat().st_size > 5 << 30
    with zipfile.ZipFile(moved) as archive:
        assert archive.getinfo("two").header_offset == 5 << 30 and archive.getinfo("two").extract_version == 45


def test_nothing_is_left_of_an_interrupted_zip(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_zip(tmp_path / "x.zip", [("one", DATA), ("two", tmp_path / "absent")])
    assert not list(tmp_path.iterdir())


def test_a_zip_member_may_lie_about_its_size(tmp_path: Path) -> None:
    for descriptor in (False, True):
        file = write_zip(tmp_path / "x.zip", [Member("one", DATA, True, descriptor, size=1 << 40)])
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo("one")
            assert info.file_size == 1 << 40 and info.compress_size < len(DATA)


# --- write_7z -------------------------------------------------------------------------------------------------------

FILES = {
    "a/\u00e9.bin": DATA,
    "empty": b"",
    **{f"a/{n}.bin": image_bytes(n) for n in range(9)},
    "\U0001f40e/large": bytes(range(256)) * 8000,
}
FOLDERS = ("a/", "a/nothing/")


def seven(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real 7z, which has to be there."""
    program = shutil.which("7z") or shutil.which("7zz")
    if program is None:
        pytest.skip("needs 7z")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


MAKES_7Z = list(itertools.product((None, 4096, 1), (False, True), (False, True), (False, True)))


def make_7z(folder: Path, make: tuple[int | None, bool, bool, bool]) -> list[Path]:
    volume_bytes, solid, encoded_header, compressed = make
    files = FILES if volume_bytes != 1 else {"a/1": DATA[:9], "empty": b"", "a/2": DATA[:11]}
    members = [*((name, b"") for name in FOLDERS), *files.items()]
    return write_7z(
        folder / "x.7z",
        members,
        volume_bytes=volume_bytes,
        solid=solid,
        encoded_header=encoded_header,
        compressed=compressed,
    )


@pytest.mark.parametrize("make", MAKES_7Z)
def test_py7zr_agrees(tmp_path: Path, make: tuple[int | None, bool, bool, bool]) -> None:
    py7zr = pytest.importorskip("py7zr")
    files = make_7z(tmp_path / "made", make)
    assert sorted((tmp_path / "made").iterdir()) == files
    data = b"".join(file.read_bytes() for file in files)
    if make[0] is not None:
        assert [file.stat().st_size for file in files[:-1]] == [make[0]] * (len(files) - 1)
        assert [file.name for file in files[:2]] == ["x.7z.001", "x.7z.002"]
    with py7zr.SevenZipFile(io.BytesIO(data)) as archive:
        assert archive.test() is not False
        archive.extractall(tmp_path / "out")
    found = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*")}
    expected = FILES if make[0] != 1 else {"a/1": DATA[:9], "empty": b"", "a/2": DATA[:11]}
    assert {name: p.read_bytes() for name, p in found.items() if p.is_file()} == expected
    assert found["a/nothing"].is_dir()


@pytest.mark.parametrize("make", [make for make in MAKES_7Z if make[0] != 1])
def test_7z_agrees(tmp_path: Path, make: tuple[int | None, bool, bool, bool]) -> None:
    files = make_7z(tmp_path / "made", make)
    tested = seven("t", str(files[0]))
    assert tested.returncode == 0 and "Everything is Ok" in tested.stdout, tested.stdout + tested.stderr
    assert "Warning" not in tested.stdout + tested.stderr
    done = seven("x", f"-o{tmp_path / 'out'}", str(files[0]))
    assert done.returncode == 0
    found = {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*.bin")}
    assert found == {name: data for name, data in FILES.items() if name.endswith(".bin")}
    said = seven("l", "-slt", str(files[0])).stdout
    assert ("Method = LZMA" in said) is make[3] and ("Method = Copy" in said) is not make[3]
    assert ("Solid = +" in said) is make[1] and "Modified = 2024-01-01 12:00:00" in said


def test_a_single_stored_member_lies_after_32_bytes_before_a_plain_header(tmp_path: Path) -> None:
    """As in progan_train.7z: 32 bytes, the zip, 98 bytes, 12 of them two numbers of 75 GB."""
    inner = write_zip(tmp_path / "progan_train.zip", [(f"{n}.bin", DATA) for n in range(9)], zip64=True)
    (file,) = write_7z(tmp_path / "x.7z", [(inner.name, inner)])
    data, size = file.read_bytes(), inner.stat().st_size
    assert data[32 : 32 + size] == inner.read_bytes()
    signature, major, minor, crc, offset, length, header_crc = struct.unpack("<6s2BI2QI", data[:32])
    header = data[32 + offset :]
    assert (signature, major, minor, offset, length) == (b"7z\xbc\xaf\x27\x1c", 0, 4, size, len(header))
    assert (crc, header_crc) == (zlib.crc32(data[12:32]), zlib.crc32(header))
    assert 1 << 14 <= size < 1 << 21  # a number of 3 bytes
    assert len(header) == 98 - 2 * (6 - 3) and header.startswith(b"\x01\x04") and header.endswith(b"\0\0")
    assert "progan_train.zip".encode("utf-16-le") in header
    assert write_7z(tmp_path / "y.7z", [(inner.name, inner)])[0].read_bytes() == data


def test_an_encoded_header_is_lzma(tmp_path: Path) -> None:
    members = [(f"{n:06d}.png", DATA[:10]) for n in range(500)]
    plain, encoded = (
        write_7z(tmp_path / f"{encoded}.7z", members, encoded_header=encoded)[0].read_bytes()
        for encoded in (False, True)
    )
    header = plain[32 + 5000 :]
    assert header[:1] == b"\x01" and len(encoded) < len(plain) - len(header) // 2
    offset, length = struct.unpack("<2Q", encoded[12:28])
    assert encoded[32 + offset : 33 + offset] == b"\x17" and len(encoded) == 32 + offset + length
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 20, "lc": 3, "lp": 0, "pb": 2}]
    assert lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters).decompress(encoded[5032 : 32 + offset]) == header


def test_untrue_7z_members_are_refused(tmp_path: Path) -> None:
    for member in (Member("one", DATA, crc=1), Member("one", DATA, size=len(DATA) - 1)):
        (file,) = write_7z(tmp_path / "x.7z", [("good", b"good"), member, ("last", b"last")])
        done = seven("t", str(file))
        assert done.returncode != 0 and "CRC Failed" in done.stdout + done.stderr
        assert "good" not in done.stderr


def test_7z_names_are_written_as_given(tmp_path: Path) -> None:
    names: list[str | bytes] = [
        "../up.png",
        "/abs.png",
        "a//b.png",
        "C:\\x.png",
        "same",
        "same",
        "\ud800lone".encode("utf-16-le", "surrogatepass"),
    ]
    (file,) = write_7z(tmp_path / "x.7z", [Member(name, b"x") for name in names])
    data = file.read_bytes()
    texts = [name if isinstance(name, bytes) else name.encode("utf-16-le") for name in names]
    assert b"".join(text + b"\0\0" for text in texts) in data


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, *(1 << b for b in range(21, 64, 7)), (1 << 64) - 1])
def test_numbers_as_7z_writes_them(value: int) -> None:
    """Read back by the specification: the first byte's leading ones count the bytes that follow."""
    data = containers._number(value)
    more = next((n for n in range(8) if not data[0] & 0x80 >> n), 8)
    high = data[0] & (0x7F >> more) if more < 8 else 0
    assert len(data) == 1 + more and int.from_bytes(data[1:], "little") + (high << 8 * more) == value


def test_volumes_replace_those_of_an_earlier_archive(tmp_path: Path) -> None:
    many = write_7z(tmp_path / "x.7z", [("one", DATA)], volume_bytes=1000)
    few = write_7z(tmp_path / "x.7z", [("one", DATA)], volume_bytes=6000)
    assert len(many) > len(few) == 2 and sorted(tmp_path.iterdir()) == few
    with pytest.raises(FileNotFoundError):
        write_7z(tmp_path / "x.7z", [("one", DATA), ("two", tmp_path / "absent")], volume_bytes=1000)
    assert sorted(tmp_path.iterdir()) == few
    with pytest.raises(ValueError, match="at least 1"):
        write_7z(tmp_path / "x.7z", [], volume_bytes=0)


def test_an_empty_7z(tmp_path: Path) -> None:
    for members in ([], [("empty", b"")]):
        (file,) = write_7z(tmp_path / "x.7z", members)
        assert seven("t", str(file)).returncode == 0


# --- tar ------------------------------------------------------------------------------------------------------------

LONG = "a/" * 70 + "\u00e9.jpg"


def test_write_tgz(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    members: list[Made] = [
        Member("000/"),
        ("000/1.jpg", tmp_path / "data"),
        (LONG, b"long"),
        ("../up.jpg", b"up"),
        Member(b"\xff.jpg", b"raw"),
        Member("link", link="/etc/passwd"),
    ]
    file = write_tgz(tmp_path / "x.tgz", members)
    with tarfile.open(file, "r|gz") as archive:
        found = {m.name: (m.type, archive.extractfile(m).read() if m.isreg() else m.linkname) for m in archive}  # type: ignore[union-attr]
    assert found == {
        "000": (tarfile.DIRTYPE, ""),
        "000/1.jpg": (tarfile.REGTYPE, DATA),
        LONG: (tarfile.REGTYPE, b"long"),
        "../up.jpg": (tarfile.REGTYPE, b"up"),
        "\udcff.jpg": (tarfile.REGTYPE, b"raw"),
        "link": (tarfile.SYMTYPE, "/etc/passwd"),
    }
    first = file.read_bytes()
    assert write_tgz(file, members).read_bytes() == first
    larger = write_tgz(tmp_path / "y.tgz", members, level=0)
    assert larger.stat().st_size > len(first) and sorted(p.name for p in tmp_path.iterdir()) == [
        "data",
        "x.tgz",
        "y.tgz",
    ]
    untrue = write_tgz(tmp_path / "x.tgz", [Member("1.jpg", DATA, size=1 << 40)])
    with tarfile.open(untrue) as archive:
        assert archive.next().size == 1 << 40  # type: ignore[union-attr]


def test_write_indexed_tar(tmp_path: Path) -> None:
    images = {f"{n}.jpg": image_bytes(n) for n in range(5)} | {LONG: DATA}
    untrue: dict[str, dict[str, object]] = {
        "1.jpg": {"offset": 7},
        "absent.jpg": {"offset": 1 << 50, "size": 1, "sha256": "0" * 64},
    }
    members: list[Made] = [Member("folder/"), *images.items()]
    tar = write_indexed_tar(tmp_path / "t" / "x.tar", tmp_path / "i" / "x.json", members, entries=untrue)
    with tarfile.open(tar, "r:") as archive:
        assert {m.name: archive.extractfile(m).read() for m in archive if m.isreg()} == images  # type: ignore[union-attr]
        places = {m.name: m.offset_data for m in archive.getmembers() if m.isreg()}
    data = tar.read_bytes()
    assert len(data) % tarfile.RECORDSIZE == 0 and data.endswith(bytes(1024))
    index = json.loads((tmp_path / "i" / "x.json").read_text())
    files = index.pop("files")
    sha256 = hashlib.sha256(data).hexdigest()
    assert index == {"filesize": len(data), "hash": lfs_blob_id(sha256, len(data)), "hash_lfs": sha256}
    assert files.pop("1.jpg")["offset"] == 7 and files.pop("absent.jpg")["offset"] == 1 << 50
    assert files == {
        name: {"offset": places[name], "size": len(image), "sha256": hashlib.sha256(image).hexdigest()}
        for name, image in images.items()
        if name != "1.jpg"
    }


def test_the_id_of_an_lfs_pointer() -> None:
    """Against git's own rule: SHA-1 of "blob <length>", a zero byte, and the pointer's text."""
    sha256 = hashlib.sha256(DATA).hexdigest()
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(DATA)}\n".encode()
    assert lfs_blob_id(sha256, len(DATA)) == hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest()
    if shutil.which("git"):
        said = subprocess.run(["git", "hash-object", "--stdin"], input=text, capture_output=True, check=True).stdout
        assert said.decode().strip() == lfs_blob_id(sha256, len(DATA))


# --- Parquet --------------------------------------------------------------------------------------------------------


def test_write_parquet(tmp_path: Path) -> None:
    images = [image_bytes(n) for n in range(19)]
    (tmp_path / "image").write_bytes(images[0])
    rows: list[tuple[str | None, bytes | Path | None, int | None]] = [
        ("0.png", tmp_path / "image", 0),
        *((f"{n}.png", images[n], n) for n in range(1, 19)),
        (None, None, None),
    ]
    file = write_parquet(tmp_path / "p" / "x.parquet", rows, rows_per_group=8)
    assert list(file.parent.iterdir()) == [file]
    opened = pq.ParquetFile(file)
    assert [opened.metadata.row_group(n).num_rows for n in range(opened.num_row_groups)] == [8, 8, 4]
    assert str(opened.schema_arrow.field("image").type) == "struct<bytes: binary, path: string>"
    assert str(opened.schema_arrow.field("label").type) == "int64"
    table = opened.read().to_pylist()
    assert [row["image"] for row in table[:-1]] == [
        {"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)
    ]
    assert [row["label"] for row in table] == [*range(19), None]
    assert table[-1]["image"] == {"bytes": None, "path": None}
    first = file.read_bytes()
    assert write_parquet(file, rows, rows_per_group=8).read_bytes() == first
    plain = pq.ParquetFile(write_parquet(file, rows, compression="none")).metadata
    assert plain.num_row_groups == 1 and plain.row_group(0).column(0).compression == "UNCOMPRESSED"


def test_datasets_sees_images(tmp_path: Path) -> None:
    import datasets

    write_parquet(tmp_path / "x.parquet", [("a.png", image_bytes(3, (12, 9)), 5)])
    loaded = datasets.load_dataset("parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "c"))
    (row,) = loaded["train"]
    assert row["image"].size == (12, 9) and row["label"] == 5
