"""The containers that images are published in, written member by member: zip, 7z, tar, Parquet.

    write_zip(file, [("a/1.png", data), Member("a/2.png", path, deflate=True)])
    write_7z(file, members, volume_bytes=1 << 20)       # file.001, file.002, ...
    write_tgz(file, members)
    write_indexed_tar(file, index, members)
    write_parquet(file, [("n01440764_1_n01440764.JPEG", data, 0)])

What every writer does: members come from any iterable, as `Member` or as a pair of name and data; names are written as
given; the same members give the same bytes; and the file gets its name when it is complete. Where a `Member` says
something untrue of itself (`crc`, `size`, `link`), that is written too: hostile archives are made of it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Member", "lfs_blob_id", "write_7z", "write_indexed_tar", "write_parquet", "write_tgz", "write_zip"]

_PIECE = 1 << 20
_LIMIT_16, _LIMIT_32 = 0xFFFF, 0xFFFFFFFF
#: 2024-01-01 12:00:00, as MS-DOS, Unix and Windows count: of every member.
_DOS_TIME, _DOS_DATE, _UNIX_TIME = 12 << 11, (2024 - 1980) << 9 | 1 << 5 | 1, 1704110400
_FILETIME = (_UNIX_TIME + 11_644_473_600) * 10_000_000
_UTF8, _DESCRIPTOR = 1 << 11, 1 << 3


@dataclass(frozen=True)
class Member:
    """One member of an archive, and how it is to be written.

    Attributes:
        name: as text or as the raw bytes to write (of 7z: UTF-16-LE). A zip archive flags text that is not ASCII as
            UTF-8, and bytes never. A name that ends with a slash is a folder's.
        data: its bytes, or a file to stream them from.
        deflate: (zip) compressed instead of stored.
        descriptor: (zip) sizes and CRC-32 follow the data instead of preceding it, as in an archive written to a pipe.
        unix: (zip) Info-ZIP's extra fields, longer in the local header than in the central directory.
        crc: (zip, 7z) a CRC-32 to write in place of the true one: a damaged member.
        size: (zip, 7z, tar) the unpacked size to write in place of the true one.
        link: (tar) a symbolic link to this path, without data.
    """

    name: str | bytes
    data: bytes | Path = b""
    deflate: bool = False
    descriptor: bool = False
    unix: bool = False
    crc: int | None = None
    size: int | None = None
    link: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of a zip or tar archive."""
        return self.name[-1:] in ("/", b"/")


Members = Iterable[Member | tuple[str, bytes | Path]]


def _each(members: Members) -> Iterator[Member]:
    return (member if isinstance(member, Member) else Member(*member) for member in members)


def _pieces(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as stream:
        while piece := stream.read(_PIECE):
            yield piece


@contextmanager
def _named_when_complete(file: Path) -> Iterator[Path]:
    """A file to write, that takes the place of `file` if all goes well, and is removed if not."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


# --- zip ------------------------------------------------------------------------------------------------------------


def write_zip(
    file: Path,
    members: Members,
    *,
    zip64: bool = False,
    comment: bytes = b"",
    prefix: bytes = b"",
) -> Path:
    """Write a zip archive, member by member as they come (PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5).

    Args:
        file: where to write it.
        members: see the module; a pair is stored.
        zip64: use the 64-bit structures everywhere. Without it they are used where a size, an offset or the number of
            members needs them.
        comment: of the archive.
        prefix: bytes before the first member, not counted by the offsets (a self-extracting archive).

    Returns:
        `file`.
    """
    directory, count = BytesIO(), 0
    with _named_when_complete(file) as part, part.open("wb") as out:
        out.write(prefix)
        for member in _each(members):
            directory.write(_write_member(out, member, zip64, len(prefix)))
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
    large = zip64 or max(size, member.size or 0) >= _LIMIT_32 - (size >> 10) - 1024
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
    unpacked = unpacked if member.size is None else member.size
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
    mode = 0o040755 << 16 | 0x10 if member.is_folder else 0o100644 << 16
    made_by = 3 << 8 | 30  # Info-ZIP 3.0 on Unix
    fields = (made_by, max(version, 45 if far else 20), flags, method, _DOS_TIME, _DOS_DATE, crc, *sizes)
    rest = (len(name), len(extra), 0, 0, 0, mode, _LIMIT_32 if far else offset)
    return struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields, *rest) + name + extra


#: Info-ZIP's field "ux": user and group 1000.
_OWNER = struct.pack("<2H2BIBI", 0x7875, 11, 1, 4, 1000, 4, 1000)


# --- 7z -------------------------------------------------------------------------------------------------------------

_SIGNATURE = b"7z\xbc\xaf\x27\x1c"
#: Coders: the length of a method's id (0x20: properties follow), the id, the properties.
_COPY = b"\x01\x00"
_LZMA_DICTIONARY = 1 << 20
_LZMA = b"\x23\x03\x01\x01\x05\x5d" + struct.pack("<I", _LZMA_DICTIONARY)  # 0x5d: lc 3, lp 0, pb 2
_ARCHIVE, _DIRECTORY, _UNIX = 0x20, 0x10, 0x8000


@dataclass
class _Stored:
    """A member as the header will name it. `block` is -1 where there is no data."""

    name: bytes
    folder: bool
    size: int
    crc: int
    block: int


def write_7z(
    file: Path,
    members: Members,
    *,
    volume_bytes: int | None = None,
    solid: bool = False,
    encoded_header: bool = False,
    compressed: bool = False,
) -> list[Path]:
    """Write a 7z archive: 32 bytes, the data, the header (7zFormat.txt of the 7-Zip distribution, version 0.4).

    Args:
        file: where to write it; of several volumes the name without `.001`.
        members: see the module. Those without data are written as empty files.
        volume_bytes: cut into `<file>.001`, `<file>.002` and so on after each so many bytes. Volumes that an earlier
            archive of this name had beyond them are removed.
        solid: one block for all members instead of one for each.
        encoded_header: the header compressed by LZMA, as 7-Zip does unless told otherwise.
        compressed: members compressed by LZMA instead of stored (Copy).

    Returns:
        The files, in order.
    """
    out = _Volumes(file, volume_bytes)
    entries: list[_Stored] = []
    packed: list[int] = []  # sizes of the blocks
    press: Any = None

    def complete_block() -> None:
        if press is not None:
            packed[-1] += out.write(press.flush())

    try:
        out.write(bytes(32))
        for member in _each(members):
            name = member.name if isinstance(member.name, bytes) else member.name.encode("utf-16-le", "surrogatepass")
            entry = _Stored(name, name.endswith(b"/\0"), 0, 0, -1)
            entries.append(entry)
            for piece in filter(None, _pieces(member.data)):
                if entry.block < 0:
                    if not (packed and solid):
                        complete_block()
                        packed.append(0)
                        press = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=_filters()) if compressed else None
                    entry.block = len(packed) - 1
                entry.size += len(piece)
                entry.crc = zlib.crc32(piece, entry.crc)
                packed[-1] += out.write(press.compress(piece) if press else piece)
            entry.size = entry.size if member.size is None else member.size
            entry.crc = entry.crc if member.crc is None else member.crc
        complete_block()
        end = sum(packed)
        header = _header(entries, packed, _LZMA if compressed else _COPY)
        if encoded_header:
            squeezed = lzma.compress(header, lzma.FORMAT_RAW, filters=_filters())
            out.write(squeezed)
            digest = b"\x0a\x01" + struct.pack("<I", zlib.crc32(header))
            streams = _blocks(end, [len(squeezed)], [len(header)], _LZMA, digest)
            end, header = end + len(squeezed), b"\x17" + streams + b"\0"
        out.write(header)
        start = struct.pack("<2QI", end, len(header), zlib.crc32(header))
        out.begin(_SIGNATURE + struct.pack("<2BI", 0, 4, zlib.crc32(start)) + start)
        return out.finish()
    finally:
        out.discard()


def _filters() -> list[dict[str, int]]:
    return [{"id": lzma.FILTER_LZMA1, "dict_size": _LZMA_DICTIONARY, "lc": 3, "lp": 0, "pb": 2}]


def _number(value: int) -> bytes:
    """7z's numbers: as many ones lead the first byte as bytes follow it, little end first."""
    for more in range(8):
        if value < 1 << 7 * (more + 1):
            first = 0xFF00 >> more & 0xFF | value >> 8 * more
            return bytes([first]) + (value & (1 << 8 * more) - 1).to_bytes(more, "little")
    return b"\xff" + value.to_bytes(8, "little")


def _numbers(values: Iterable[int]) -> bytes:
    return b"".join(map(_number, values))


def _blocks(position: int, packed: Sequence[int], sizes: Sequence[int], coder: bytes, digests: bytes = b"") -> bytes:
    """Where the blocks lie, counted from the end of the first 32 bytes, and how each is decoded: by one coder."""
    count = _number(len(packed))
    places = b"\x06" + _number(position) + count + b"\x09" + _numbers(packed) + b"\0"
    makes = b"\x07\x0b" + count + b"\0" + (b"\x01" + coder) * len(packed) + b"\x0c" + _numbers(sizes) + digests + b"\0"
    return places + makes


def _header(entries: Sequence[_Stored], packed: Sequence[int], coder: bytes) -> bytes:
    blocks: list[list[_Stored]] = [[] for _ in packed]
    for entry in entries:
        if entry.block >= 0:
            blocks[entry.block].append(entry)
    header = b"\x01"
    if blocks:
        header += b"\x04" + _blocks(0, packed, [sum(entry.size for entry in block) for block in blocks], coder)
        header += b"\x08"
        if any(len(block) != 1 for block in blocks):
            header += b"\x0d" + _numbers(map(len, blocks))
            header += b"\x09" + _numbers(entry.size for block in blocks for entry in block[:-1])
        header += b"\x0a\x01" + struct.pack(f"<{sum(map(len, blocks))}I", *(e.crc for block in blocks for e in block))
        header += b"\0\0"
    count = len(entries)
    names = b"\0" + b"".join(entry.name.removesuffix(b"/\0" * entry.folder) + b"\0\0" for entry in entries)
    times = b"\x01\0" + struct.pack("<Q", _FILETIME) * count
    kinds = [(_DIRECTORY, 0o040755) if entry.folder else (_ARCHIVE, 0o100644) for entry in entries]
    modes = b"\x01\0" + b"".join(struct.pack("<I", kind | _UNIX | mode << 16) for kind, mode in kinds)
    header += b"\x05" + _number(count)
    empty = [entry for entry in entries if entry.block < 0]
    if empty:
        header += _property(0x0E, _bits(entry.block < 0 for entry in entries))
        header += _property(0x0F, _bits(not entry.folder for entry in empty))
    return header + _property(0x11, names) + _property(0x14, times) + _property(0x15, modes) + b"\0\0"


def _property(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + _number(len(data)) + data


def _bits(values: Iterable[bool]) -> bytes:
    """One bit a value, the first one highest."""
    text = "".join("01"[value] for value in values)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")


class _Volumes:
    """One file, or volumes of so many bytes each, written from beginning to end."""

    def __init__(self, file: Path, each: int | None) -> None:
        if each is not None and each < 1:
            raise ValueError(f"volume_bytes: expected at least 1, got {each}")
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._each = each
        self._parts: list[Path] = []
        self._out: BinaryIO | None = None
        self._room = 0

    def _next(self) -> BinaryIO:
        if self._out is not None:
            self._out.close()
        self._parts.append(self._file.with_name(f".{self._file.name}.{len(self._parts) + 1:03d}.part"))
        self._room = self._each or 1 << 62
        self._out = self._parts[-1].open("wb")
        return self._out

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            out = self._next() if self._out is None or not self._room else self._out
            done = out.write(left[: self._room])
            self._room -= done
            left = left[done:]
        return len(data)

    def begin(self, data: bytes) -> None:
        """Replace the first bytes."""
        if self._out is not None:
            self._out.close()
        for part in self._parts:
            with part.open("r+b") as out:
                data = data[out.write(data[: self._each]) :]
            if not data:
                return

    def finish(self) -> list[Path]:
        base = self._file
        files = [base.with_name(f"{base.name}.{n:03d}") for n in range(1, len(self._parts) + 1)]
        files = files if self._each else [base]
        for part, file in zip(self._parts, files, strict=True):
            part.replace(file)
        number = len(files) + 1
        while self._each and (stale := base.with_name(f"{base.name}.{number:03d}")).exists():
            stale.unlink()
            number += 1
        return files

    def discard(self) -> None:
        """Remove what did not get its name."""
        if self._out is not None:
            self._out.close()
        for part in self._parts:
            part.unlink(missing_ok=True)


# --- tar ------------------------------------------------------------------------------------------------------------


def write_tgz(file: Path, members: Members, *, level: int = 1) -> Path:
    """Write a tar archive compressed by gzip, as a stream.

    Args:
        file: where to write it.
        members: see the module.
        level: of the compression, 0 to 9.

    Returns:
        `file`.
    """
    with (
        _named_when_complete(file) as part,
        part.open("wb") as out,
        gzip.GzipFile("", "wb", compresslevel=level, fileobj=out, mtime=0) as packed,
    ):
        for _ in _write_tar(packed.write, members):
            pass
    return file


def write_indexed_tar(
    file: Path, index: Path, members: Members, *, entries: Mapping[str, Mapping[str, object]] | None = None
) -> Path:
    """Write a tar archive, and the JSON that says where in it each member's data lie.

    Args:
        file: where to write the archive.
        index: where to write the JSON: filesize, hash (see `lfs_blob_id`), hash_lfs (SHA-256 of the archive) and
            files: name -> offset, size (bytes), sha256.
        members: see the module. Folders and links are not in the index.
        entries: by name, what to put into the index in place of the truth; names that the archive does not have
            are added.

    Returns:
        `file`.
    """
    digest, found = hashlib.sha256(), {}
    with _named_when_complete(file) as part:
        with part.open("wb") as out:

            def write(data: bytes) -> object:
                digest.update(data)
                return out.write(data)

            for name, offset, size, sha256 in _write_tar(write, members):
                found[name] = {"offset": offset, "size": size, "sha256": sha256}
        total = part.stat().st_size
    for name, said in (entries or {}).items():
        found[name] = {**found.get(name, {}), **said}
    whole = {"filesize": total, "hash": lfs_blob_id(digest.hexdigest(), total), "hash_lfs": digest.hexdigest()}
    with _named_when_complete(index) as part:
        part.write_text(json.dumps({**whole, "files": found}), encoding="utf-8")
    return file


def _write_tar(write: Callable[[bytes], object], members: Members) -> Iterator[tuple[str, int, int, str]]:
    """Name, offset of the data, size and SHA-256 of each file, as soon as it is written."""
    at = 0

    def put(data: bytes) -> None:
        nonlocal at
        write(data)
        at += len(data)

    for member in _each(members):
        name = member.name if isinstance(member.name, str) else member.name.decode("utf-8", "surrogateescape")
        info = tarfile.TarInfo(name)
        info.mtime = _UNIX_TIME
        if member.is_folder:
            info.type, info.mode = tarfile.DIRTYPE, 0o755
        elif member.link is not None:
            info.type, info.linkname = tarfile.SYMTYPE, member.link
        else:
            info.size = member.data.stat().st_size if isinstance(member.data, Path) else len(member.data)
        info.size = info.size if member.size is None else member.size
        put(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        start, digest = at, hashlib.sha256()
        for piece in _pieces(member.data):
            digest.update(piece)
            put(piece)
        size = at - start
        put(bytes(-at % tarfile.BLOCKSIZE))
        if info.isreg():
            yield name, start, size, digest.hexdigest()
    put(bytes(2 * tarfile.BLOCKSIZE))
    put(bytes(-at % tarfile.RECORDSIZE))


def lfs_blob_id(sha256: str, size: int) -> str:
    """Git's id of the pointer that stands for a large file in a repository."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode(), usedforsecurity=False).hexdigest()


# --- Parquet --------------------------------------------------------------------------------------------------------


def write_parquet(
    file: Path,
    rows: Iterable[tuple[str | None, bytes | Path | None, int | None]],
    *,
    rows_per_group: int = 100,
    compression: str = "snappy",
) -> Path:
    """Write images and labels as the library `datasets` does.

    Args:
        file: where to write it.
        rows: name (`image.path`), the image's bytes or a file of them (`image.bytes`), `label`.
        rows_per_group: of each row group but the last.
        compression: snappy | gzip | zstd | none ..., as pyarrow knows it.

    Returns:
        `file`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"dtype": "int64", "_type": "Value"}}
    schema = pa.schema(
        [("image", image), ("label", pa.int64())], {"huggingface": json.dumps({"info": {"features": features}})}
    )
    group: list[dict[str, object]] = []
    with _named_when_complete(file) as part, pq.ParquetWriter(part, schema, compression=compression) as out:

        def flush() -> None:
            out.write_table(pa.Table.from_pylist(group, schema))
            group.clear()

        for name, data, label in rows:
            content = data.read_bytes() if isinstance(data, Path) else data
            group.append({"image": {"bytes": content, "path": name}, "label": label})
            if len(group) == rows_per_group:
                flush()
        if group:
            flush()
    return file
