"""Packs a ROOT back into what its sources publish: the tree that `mirror.Mirror` serves.

    brought = stage(root, origin, own)
    with Mirror(origin) as mirror:
        fetch(elsewhere, annotations=own / "annotations", own=brought, endpoints=mirror.endpoints)

Image bytes are never touched. The same ROOT gives the same bytes, whatever the order of its folders on disk.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from imaginet_hub.data.sources import FFHQ_INDEX, FFHQ_LIST, SOURCES, source_of

__all__ = ["DRIVE_IDS", "FFHQ_INDEX_ID", "REPOSITORY", "Member", "drive_id", "stage", "write_zip"]

#: Where annotations lie on GitHub: owner/repository/commit.
REPOSITORY = FFHQ_LIST.addresses[0].removeprefix("github:").rsplit("/", 2)[0]
#: Source -> id of its zip on Drive.
DRIVE_IDS = {
    source.key: archive.address.removeprefix("drive:")
    for source in SOURCES
    for route in source.routes
    for archive in route.archives
    if archive.address.startswith("drive:")
}
#: Drive id of ffhq-dataset-v2.json.
FFHQ_INDEX_ID = FFHQ_INDEX[0].removeprefix("drive:")

_CNNDETECTION = "hf/sywang/CNNDetection"
_FFHQ = "hf/Iceclear/FFHQ-HQ1024"
_PIECE = 1 << 20
_LIMIT_16, _LIMIT_32 = 0xFFFF, 0xFFFFFFFF
#: 2024-01-01 12:00:00, in MS-DOS's and in Unix's counting: of every member.
_DOS_TIME, _DOS_DATE, _UNIX_TIME = 12 << 11, (2024 - 1980) << 9 | 1 << 5 | 1, 1704110400
_UTF8, _DESCRIPTOR = 1 << 11, 1 << 3


# --- zip archives ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One member of a zip archive, and how it is to be written.

    Attributes:
        name: as text (flagged as UTF-8 where it is not ASCII) or as the raw bytes to write, without that flag. A name
            that ends with a slash is a folder's.
        data: its bytes, or a file to stream them from.
        deflate: compressed instead of stored.
        descriptor: sizes and CRC-32 follow the data instead of preceding it, as in an archive written to a pipe.
        unix: Info-ZIP's extra fields, longer in the local header than in the central directory.
        crc: a CRC-32 to write in place of the true one: a damaged member.
    """

    name: str | bytes
    data: bytes | Path = b""
    deflate: bool = False
    descriptor: bool = False
    unix: bool = False
    crc: int | None = None


def write_zip(
    file: Path,
    members: Iterable[Member | tuple[str, bytes | Path]],
    *,
    zip64: bool = False,
    comment: bytes = b"",
    prefix: bytes = b"",
) -> Path:
    """Write a zip archive, member by member as they come (PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5).

    Args:
        file: gets its name when it is complete.
        members: a (name, data) pair stands for a plain stored member.
        zip64: use the 64-bit structures everywhere. Without it they are used where a size, an offset or the number of
            members needs them.
        comment: of the archive.
        prefix: bytes before the first member, not counted by the offsets (a self-extracting archive).

    Returns:
        `file`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    directory, count = BytesIO(), 0
    try:
        with part.open("wb") as out:
            out.write(prefix)
            for member in members:
                plain = member if isinstance(member, Member) else Member(*member)
                directory.write(_write_member(out, plain, zip64, len(prefix)))
                count += 1
            start, size = out.tell() - len(prefix), directory.tell()
            out.write(directory.getbuffer())
            if zip64 or count >= _LIMIT_16 or max(start, size) >= _LIMIT_32:
                end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
                out.write(end + struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1))
            if zip64:
                count, size, start = _LIMIT_16, _LIMIT_32, _LIMIT_32
            few = min(count, _LIMIT_16)
            tail = (few, few, min(size, _LIMIT_32), min(start, _LIMIT_32), len(comment))
            out.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *tail) + comment)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return file


def _write_member(out: BinaryIO, member: Member, zip64: bool, prefix: int) -> bytes:
    """Write a local header and the data; the entry of the central directory."""
    if isinstance(member.name, bytes):
        name, flags = member.name, 0
    else:
        name, flags = member.name.encode(), 0 if member.name.isascii() else _UTF8
    flags |= _DESCRIPTOR if member.descriptor else 0
    method = 8 if member.deflate else 0
    size = member.data.stat().st_size if isinstance(member.data, Path) else len(member.data)
    # Deflate may add a little; a header cannot grow once the data follows it.
    large = zip64 or size >= _LIMIT_32 - (size >> 10) - 1024
    version = 45 if large else 20
    at = out.tell()
    offset = at - prefix

    def local(crc: int, packed: int, unpacked: int) -> bytes:
        sizes = (_LIMIT_32, _LIMIT_32) if large else (packed, unpacked)
        extra = struct.pack("<2H2Q", 1, 16, unpacked, packed) if large else b""
        if member.unix:
            extra += struct.pack("<2HB2I", 0x5455, 9, 3, _UNIX_TIME, _UNIX_TIME) + _OWNER
        fields = (version, flags, method, _DOS_TIME, _DOS_DATE, crc, *sizes, len(name), len(extra))
        return struct.pack("<4s5H3I2H", b"PK\3\4", *fields) + name + extra

    out.write(local(0, 0, 0))
    crc, packed, unpacked = 0, 0, 0
    press = zlib.compressobj(6, zlib.DEFLATED, -15) if member.deflate else None
    for piece in _pieces(member.data):
        crc = zlib.crc32(piece, crc)
        unpacked += len(piece)
        data = press.compress(piece) if press else piece
        packed += out.write(data)
    if press:
        packed += out.write(press.flush())
    crc = crc if member.crc is None else member.crc
    if member.descriptor:
        out.write(struct.pack("<4sI2Q" if large else "<4s3I", b"PK\7\x08", crc, packed, unpacked))
    else:
        end = out.tell()
        out.seek(at)
        out.write(local(crc, packed, unpacked))
        out.seek(end)

    far = large or offset >= _LIMIT_32
    extra = b""
    sizes = (packed, unpacked)
    if far:
        wide = (unpacked, packed, offset) if large else (offset,)
        extra += struct.pack(f"<2H{len(wide)}Q", 1, 8 * len(wide), *wide)
        sizes = (_LIMIT_32, _LIMIT_32) if large else sizes
    if member.unix:
        extra += struct.pack("<2HBI", 0x5455, 5, 3, _UNIX_TIME) + _OWNER
    mode = 0o040755 << 16 | 0x10 if name.endswith(b"/") else 0o100644 << 16
    made_by = 3 << 8 | 30  # Info-ZIP 3.0 on Unix
    fields = (made_by, max(version, 45 if far else 20), flags, method, _DOS_TIME, _DOS_DATE, crc, *sizes)
    rest = (len(name), len(extra), 0, 0, 0, mode, _LIMIT_32 if far else offset)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields, *rest) + name + extra


#: Info-ZIP's field "ux": user and group 1000.
_OWNER = struct.pack("<2H2BIBI", 0x7875, 11, 1, 4, 1000, 4, 1000)


def _pieces(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece


# --- the sources ----------------------------------------------------------------------------------------------------


def drive_id(name: str) -> str:
    """The made-up Drive id, 33 characters, of a file of FFHQ: `drive_id("<uuid>.png")`."""
    return "1" + base64.urlsafe_b64encode(hashlib.sha256(f"drive {name}".encode()).digest()).decode()[:32]


def stage(root: Path, origin: Path, own: Path, *, lists: Path | None = None) -> dict[str, Path]:
    """Fill `origin` with what the sources of the images in `root` publish, and `own` with what people bring.

    Everything that `root` holds is packed, also what no list names. Single files are hard links where the disk
    allows: replace a file of `origin`, never write into it, or `root` changes too.

    Args:
        root: images in upstream's layout; image files of any size and format, whatever their names say.
        origin: the folder that `Mirror` serves: `coco/`, `github/`, `drive/`, `hf/`.
        own: gets ImageNet's folder (as Kaggle's archive unpacks), JourneyDB's `000.tgz`, `progan_train.zip`, every
            top folder of `root` that belongs to no source, and `annotations/`: the lists, ffhq_filenames.txt beside
            them. Only upstream's own lists are taken from GitHub unasked, so made ones are given with --annotations.
        lists: the folder of annotation lists; `root/annotations` by default.

    Returns:
        source -> the folder or archive in `own` to fetch it from. cnndetection's is progan_train alone; progan_val
        is in `origin`.
    """
    root, origin, own = Path(root), Path(origin), Path(own)
    for file in sorted((lists or root / "annotations").glob("*.txt")):
        _link(file, origin / "github" / REPOSITORY / "annotations" / file.name)
        _link(file, own / "annotations" / file.name)
    by_source: dict[str, dict[str, list[Path]]] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if folder.name != "annotations":
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            by_source.setdefault(source_of(f"{folder.name}/x")[0], {})[folder.name] = files
    brought: dict[str, Path] = {}
    for source, folders in by_source.items():
        every = [file for files in folders.values() for file in files]
        if source == "coco":
            _stage_coco(root, origin / "coco", folders)
        elif source == "ffhq":
            _link(_stage_ffhq(every, origin), own / "annotations" / "ffhq_filenames.txt")
        elif source == "cnndetection":
            if "progan_val" in folders:
                write_zip(origin / _CNNDETECTION / "progan_val.zip", _members(root, folders["progan_val"]))
                _text(origin / _CNNDETECTION / "README.md", "---\nlicense: cc-by-nc-sa-4.0\n---\n")
            if "progan_train" in folders:
                members = _members(root / "progan_train", folders["progan_train"])
                brought[source] = write_zip(own / "progan_train.zip", members, zip64=True)
        elif source == "wikiart":  # as Info-ZIP leaves names on Linux: bytes of UTF-8, and no flag to say so
            members = _members(root, every, raw=True, unix=True, folders=True)
            write_zip(origin / "drive" / DRIVE_IDS[source], members)
        elif source == "danbooru":
            members = _members(root, every, unix=True, folders=True)
            write_zip(origin / "drive" / DRIVE_IDS[source], members, comment=b"backup")
        elif source == "photozilla":  # the only one without its own folder in it
            write_zip(origin / "drive" / DRIVE_IDS[source], _members(root / "photozilla", every), zip64=True)
        elif source == "imaginet":
            write_zip(origin / "drive" / DRIVE_IDS[source], _members(root, every, unix=True))
        elif source == "journeydb":
            brought[source] = _write_tgz(own / "000.tgz", every)
        else:
            for file in every:
                _link(file, own / file.relative_to(root))
            brought[source] = own / next(iter(folders))
    return brought


def _members(
    base: Path, files: Iterable[Path], *, raw: bool = False, unix: bool = False, folders: bool = False
) -> Iterator[Member]:
    """Members of every make: one in three deflated, one in four with a descriptor; by their place, so the same again.

    Args:
        base: what names are relative to.
        raw: names as raw bytes.
        unix: with Info-ZIP's extra fields.
        folders: with a member for each folder, before its first file.
    """
    seen = set()
    for number, file in enumerate(files):
        path = file.relative_to(base)
        if folders:
            for parent in reversed(path.parents[:-1]):
                if parent not in seen:
                    seen.add(parent)
                    yield Member(_named(f"{parent.as_posix()}/", raw), unix=unix)
        yield Member(_named(path.as_posix(), raw), file, number % 3 == 1, number % 4 == 2, unix)


def _named(name: str, raw: bool) -> str | bytes:
    return name.encode() if raw else name


def _stage_coco(root: Path, out: Path, folders: dict[str, list[Path]]) -> None:
    """Single files, and a zip for each folder."""
    for folder, files in folders.items():
        for file in files:
            _link(file, out / file.relative_to(root))
        write_zip(out / "zips" / f"{folder}.zip", _members(root, files, unix=True, folders=True))


def _stage_ffhq(files: list[Path], origin: Path) -> Path:
    """Single files under Drive ids, upstream's list of them (returned), zips by FFHQ's index, the index itself."""
    # FFHQ's own order has nothing to do with upstream's names.
    shuffled = sorted(files, key=lambda file: hashlib.sha256(file.name.encode()).digest())
    rows, index, halves = [], {}, ([], [])  # type: ignore[var-annotated]
    for number, file in enumerate(shuffled):
        data = file.read_bytes()
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
            pixels = hashlib.md5(image.convert("RGB").tobytes(), usedforsecurity=False).hexdigest()
        file_id, name = drive_id(file.name), f"{number:05d}.png"
        _link(file, origin / "drive" / file_id)
        rows.append(f"{file_id},{file.name},{pixels}\n")
        halves[2 * number >= len(shuffled)].append(Member(name, file, number % 3 == 1, number % 4 == 2))
        index[str(number)] = _ffhq_entry(number, file_id, data, pixels, (width, height))
    listed = origin / "github" / REPOSITORY / "download_scripts" / "ffhq_filenames.txt"
    _text(listed, "".join(sorted(rows)))
    _text(origin / "drive" / FFHQ_INDEX_ID, json.dumps(index))
    for half, members in enumerate(halves, 1):
        write_zip(origin / _FFHQ / f"FFHQ-1024-{half}.zip", members, zip64=half == 2)
    return listed


def _ffhq_entry(number: int, file_id: str, data: bytes, pixels: str, size: tuple[int, int]) -> dict[str, object]:
    """An entry of ffhq-dataset-v2.json. Thumbnail and photograph are not there; only their ids are made up."""
    folder, name = f"{number // 1000 * 1000:05d}", f"{number:05d}.png"

    def file(top: str, url_id: str, data: bytes, pixels: str) -> dict[str, object]:
        return {
            "file_url": f"https://drive.google.com/uc?id={url_id}",
            "file_path": f"{top}/{folder}/{name}",
            "file_size": len(data),
            "file_md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "pixel_size": list(size),
            "pixel_md5": pixels,
        }

    absent = hashlib.md5(file_id.encode(), usedforsecurity=False).hexdigest()
    return {
        "category": "training" if number < 60000 else "validation",
        "metadata": {"photo_title": "a demo's image", "author": "", "license": "", "country": ""},
        "image": file("images1024x1024", file_id, data, pixels),
        "thumbnail": file("thumbnails128x128", drive_id(f"thumbnail {number}"), b"", absent),
        "in_the_wild": file("in-the-wild-images", drive_id(f"wild {number}"), b"", absent),
    }


def _write_tgz(file: Path, files: Iterable[Path]) -> Path:
    """JourneyDB's first shard: members 000/<name>, streamed through gzip."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        file.open("wb") as out,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|") as archive,
    ):
        for path in files:
            info = tarfile.TarInfo(f"000/{path.name}")
            info.size, info.mtime = path.stat().st_size, _UNIX_TIME
            with path.open("rb") as stream:
                archive.addfile(info, stream)
    return file


def _link(file: Path, target: Path) -> None:
    """The same bytes under another name: a hard link, or a copy on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with suppress(OSError):
        os.link(file.resolve(), target)
        return
    shutil.copyfile(file, target)


def _text(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_text(text, encoding="utf-8")
