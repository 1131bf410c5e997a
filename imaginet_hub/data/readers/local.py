"""What the user already has: folders, ZIP archives, tar archives, on this disk."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from imaginet_hub.data.images import read_bytes
from imaginet_hub.data.matching import Finder, shown, why_refused
from imaginet_hub.data.readers.files import LocalFile
from imaginet_hub.data.readers.zips import MAX_MEMBER_BYTES, Member, ZipFile
from imaginet_hub.data.sources import Source
from imaginet_hub.errors import FetchError, ImageError

__all__ = [
    "ARCHIVE_SUFFIXES",
    "archives_in",
    "find_in_folder",
    "inside_of",
    "kind_of",
    "parquet_in",
    "read_file",
    "read_tar",
    "read_tars_in_zip",
    "tars_in",
    "tars_in_zip",
]

#: JourneyDB's archives lie in data/train/imgs/.
_ARCHIVE_DEPTH = 4
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
#: Of a 7z archive in volumes the first stands for all.
ARCHIVE_SUFFIXES = (".zip", *TAR_SUFFIXES, ".7z", ".7z.001")
_BROKEN = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    ValueError,
    OverflowError,
    RuntimeError,  # headers inside one another
    KeyError,
)
#: What headers of one member may hold, long names and attributes included; tarfile reads them whole.
_HEADER_BYTES = 1024**2
_GLOBAL_HEADERS = 64
#: Images hardly compress: an archive that has expanded so much, and so many times, is made to keep its reader busy.
_BOMB_BYTES, _BOMB_RATIO = 1024**3, 100
#: `xz -9` needs 65 MB.
_XZ_BYTES = 256 * 1024**2
_PIECE = 64 * 1024
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
}


def kind_of(path: Path) -> str:
    """`folder`, `zip`, `tar`, `7z`, `parquet`, or `other`; by content, not by name."""
    if path.is_dir():
        return "folder"
    if not path.is_file():
        return "other"
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return "zip"
    if head.startswith(b"7z\xbc\xaf\x27\x1c"):
        return "7z"
    if head.startswith(b"PAR1"):
        return "parquet"
    if head[257:262] == b"ustar" or head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")):
        return "tar"
    return {".zip": "zip", ".tar": "tar"}.get(path.suffix.lower(), "other")  # other bytes may come first; old tars


def inside_of(archive: Path) -> str:
    """Where the members of an archive lie, as a path: its own, without its ending."""
    return str(archive.absolute().parent / _without_ending(archive.name))


def _without_ending(name: str) -> str:
    ending = next((e for e in sorted(ARCHIVE_SUFFIXES, key=len, reverse=True) if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def archives_in(folder: Path) -> list[Path]:
    """Archives in a folder and, as repositories of the Hub have them, a few folders below; nearest first."""
    return _files_in(folder, ARCHIVE_SUFFIXES)


def parquet_in(folder: Path) -> list[Path]:
    """Parquet files in a folder and a few folders below."""
    return _files_in(folder, (".parquet",))


def _files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    found: list[tuple[int, Path]] = []
    base = os.path.abspath(folder)  # noqa: PTH100 - a link keeps its own name
    for parent, folders, names in os.walk(base):
        depth = len(Path(parent).relative_to(base).parts)
        if depth >= _ARCHIVE_DEPTH:
            folders.clear()
        files = (f"{parent}/{name}" for name in names if name.lower().endswith(suffixes))
        found += [(depth, Path(file)) for file in files if os.path.isfile(file)]  # noqa: PTH113 - it never raises
    return [file for _, file in sorted(found)]


def _log(error: OSError) -> None:
    import datasets

    where = os.fsencode(error.filename or "").decode("utf-8", "replace")
    logger = datasets.logging.get_logger(__name__)
    logger.warning(f"left out what is in {where}: {error.strerror or type(error).__name__}")


def find_in_folder(folder: Path, finder: Finder[Path], warn: Callable[[OSError], None] = _log) -> dict[str, Path]:
    """Offer every file below a folder to a finder and return its sure matches; the folder's own path counts too.

    Links are followed, and each folder is read once: by its own name if that is below `folder`, else by the first
    link to it.

    Args:
        warn: called with what is wrong with each folder that cannot be read and is left out. Default: log a warning.
    """
    ways = [os.path.abspath(folder)]  # noqa: PTH100 - a link keeps its own name
    seen = set()
    for way in ways:  # grows by the links that are met
        for parent, folders, names in os.walk(way, onerror=warn):
            try:
                status = os.stat(parent)  # noqa: PTH116
            except OSError as error:
                warn(error)
                continue
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            ways += [path for path in (f"{parent}/{name}" for name in folders) if os.path.islink(path)]  # noqa: PTH114
            for name in names:
                if finder.may_want(os.fsencode(name)):
                    finder.offer(f"{parent}/{name}", Path(parent, name), trusted=True)
    return finder.found()


def read_file(path: Path, source: str) -> bytes:
    """The bytes of one of the user's files.

    Raises:
        FetchError: reason "corrupt".
    """
    try:
        return read_bytes(path)
    except ImageError as error:
        raise FetchError(
            "corrupt", source, str(path), "a readable file", error.reason, "repair it, or have it fetched"
        ) from error


class _Tars:
    """A finder of tar archives."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    def may_want(self, name: bytes) -> bool:
        return name.isascii() and name.decode("ascii").lower().endswith(TAR_SUFFIXES)

    def offer(self, name: str | bytes, member: Member) -> list[str]:
        if isinstance(name, str) and why_refused(name) is None:
            self.members[name] = member
        return []

    def found(self) -> dict[str, Member]:
        return {}


def tars_in_zip(path: Path, source: str) -> list[str]:
    """Names of the tar archives inside a ZIP archive; none if it cannot be read."""
    try:
        return list(_tars_in_zip(path, source))
    except (FetchError, OSError):
        return []


def _tars_in_zip(path: Path, source: str) -> dict[str, Member]:
    return tars_in(ZipFile(LocalFile(path, source)))


def tars_in(archive: ZipFile) -> dict[str, Member]:
    """The tar archives inside a ZIP archive, by name."""
    tars = _Tars()
    archive.find(tars)
    return tars.members


def _go_on() -> None:
    """Nobody wants to stop."""


def read_tars_in_zip(
    path: Path, source: Source, wanted: Iterable[str], check: Callable[[], None] = _go_on
) -> Iterator[tuple[str, bytes | FetchError]]:
    """`read_tar` of each tar archive inside a ZIP archive, as a stream."""
    left = dict.fromkeys(wanted)
    for name in tars_in_zip(path, source.key):
        for target, result in read_tar(path, source.key, Finder(source, left), name, check):
            if isinstance(result, bytes):
                left.pop(target, None)
            yield target, result


def read_tar(
    path: Path, source: str, finder: Finder[str], inner: str | None = None, check: Callable[[], None] = _go_on
) -> Iterator[tuple[str, bytes | FetchError]]:
    """The wanted members of a tar archive, compressed or not; archives inside it are read too.

    It is read twice: which of its members match best is known at its end. ImageNet's training images come as a tar of
    tars. Only regular files are read, and none is unpacked to the disk.

    Args:
        inner: `path` is a ZIP archive, and this member of it the tar archive.
        check: called for every member, wanted or not, each time it is passed; raises to stop.
    """
    last: dict[str, int] = {}
    broken = None
    try:
        for number, (name, member, _) in enumerate(_members(path, source, inner, check)):
            why = why_refused(member.name)
            if why is None and not member.isreg():
                kind = _KINDS.get(member.type, f"an entry of type {member.type!r}")
                why = f"{kind} to {shown(member.linkname[:200])}" if member.islnk() or member.issym() else kind
            if why is not None:
                finder.refuse(name, why, name)
            elif finder.offer(name, name, trusted=True):
                last[name] = number  # of members with one name the last one counts
    except _BROKEN as error:
        broken = error  # what lies before may be there
    wanted: dict[str, list[str]] = {}
    for target, name in finder.found().items():
        wanted.setdefault(name, []).append(target)
    try:
        for number, (name, member, archive) in enumerate(_members(path, source, inner, check) if wanted else ()):
            if name in wanted and last.get(name, number) == number:
                data = _data(path, source, name, member, archive)
                yield from ((target, data) for target in wanted.pop(name))
                if not wanted:
                    break
    except _BROKEN as error:
        broken = error
    for target, two in finder.ambiguous().items():
        got = f"two: {shown(two[0])} and {shown(two[1])}"
        yield target, FetchError("missing", source, str(path), f"a member for {target}", got, "name a narrower one")
    for target, (why, _) in finder.refusals().items():
        yield target, FetchError("corrupt", source, str(path), f"an image for {target}", why, "name another archive")
    if broken is not None:
        raise FetchError(
            "corrupt",
            source,
            str(path),
            "a complete tar archive",
            str(broken) or type(broken).__name__,
            "it is truncated or damaged: fetch it again",
        ) from broken


def _members(
    path: Path, source: str, inner: str | None, check: Callable[[], None]
) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    """All but folders, in their order: name (with the inner archive's), description, the archive to read from."""
    with path.open("rb") as file:
        if inner is None:
            yield from _members_of(file, inside_of(path), check, depth=0)
        else:
            stream = _in_zip(file, _tars_in_zip(path, source)[inner])
            yield from _members_of(stream, f"{inside_of(path)}/{_without_ending(inner)}", check, depth=0)


def _in_zip(file: BinaryIO, member: Member) -> io.BufferedReader:
    """A member of a ZIP archive of any size, as a stream."""
    file.seek(member.offset)
    header = file.read(30)
    if member.flags & 1 or member.method not in (0, 8) or header[:4] != b"PK\3\4":
        raise tarfile.ReadError(f"the member {member.shown!r} is encrypted, or compressed by another method")
    file.seek(sum(struct.unpack("<2H", header[26:30])), os.SEEK_CUR)
    part = _Part(file, member.compressed)
    raw = part if member.method == 0 else _Expanded(part, lambda: _Inflater(-zlib.MAX_WBITS), b"")
    return io.BufferedReader(raw, _PIECE)


def _members_of(
    file: io.BufferedReader, inside: str, check: Callable[[], None], depth: int
) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    stream = _Bounded(_expanded(file))
    stream.header_bytes = _HEADER_BYTES
    with tarfile.TarFile(fileobj=stream, errorlevel=1) as archive:  # type: ignore[arg-type]
        while True:
            stream.header_bytes = _HEADER_BYTES
            member = archive.next()
            stream.header_bytes = None
            if member is None:
                return
            archive.members.clear()  # type: ignore[attr-defined] # it would remember them all
            if len(archive.pax_headers) > _GLOBAL_HEADERS:
                raise tarfile.ReadError(f"more than {_GLOBAL_HEADERS} global headers")
            check()
            if member.isdir():
                continue
            if depth == 0 and member.isreg() and member.name.lower().endswith(".tar"):
                stem = member.name[: -len(".tar")]
                yield from _members_of(archive.extractfile(member), f"{inside}/{stem}", check, depth + 1)  # type: ignore[arg-type]
            else:
                yield f"{inside}/{member.name}", member, archive


class _Bounded:
    """The bytes of a tar archive, forwards only. What tarfile reads of headers, which it holds whole, is bounded.

    Attributes:
        header_bytes: how much more it may read; None while it reads data.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._position = 0
        self.header_bytes: int | None = None

    def read(self, size: int) -> bytes:
        if self.header_bytes is not None:
            if size > self.header_bytes:
                raise tarfile.ReadError(f"more than {_HEADER_BYTES:,} bytes of headers before a member")
            self.header_bytes -= size
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("a member of a negative size")
        if self._file.seekable():
            self._position = self._file.seek(position)
        while self._position < position:
            piece = self._file.read(min(_PIECE, position - self._position))
            if not piece:
                break
            self._position += len(piece)
        return self._position


def _expanded(file: io.BufferedReader) -> io.BufferedReader:
    """A file's content, if it is compressed; else the file."""
    head = file.peek(6)[:6]
    ways: tuple[tuple[bytes, Callable[[], Any]], ...] = (
        (b"\x1f\x8b", lambda: _Inflater(zlib.MAX_WBITS | 16)),
        (b"BZh", bz2.BZ2Decompressor),
        (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_BYTES)),
    )
    for magic, decoder in ways:
        if head.startswith(magic):
            return io.BufferedReader(_Expanded(file, decoder, magic), _PIECE)
    return file


class _Part(io.RawIOBase):
    """The next bytes of a file."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Inflater:
    """zlib's decompressor with the manners of those of bz2 and lzma."""

    def __init__(self, window: int) -> None:
        self._inflate = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._inflate.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, most: int) -> bytes:
        return self._inflate.decompress(self._inflate.unconsumed_tail + data, most)


class _Expanded(io.RawIOBase):
    """What compressed data expands to, in pieces, and not without bounds.

    Args:
        file: the compressed data.
        decoder: makes a decompressor.
        magic: what another stream behind the first begins with; nothing: there is none.
    """

    def __init__(self, file: Any, decoder: Callable[[], Any], magic: bytes) -> None:
        self._file = file
        self._make = decoder
        self._magic = magic
        self._decoder = decoder()
        self._taken = self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data and self._decoder is not None:
            piece = self._next() if self._decoder.needs_input else b""
            starved = self._decoder.needs_input and not piece
            data = self._decoder.decompress(piece, len(buffer))
            if self._decoder.eof:
                self._go_on()
            elif starved and not data:
                raise EOFError("the compressed data ends too soon")
        self._given += len(data)
        if self._given > max(_BOMB_BYTES, _BOMB_RATIO * self._taken):
            raise tarfile.ReadError(
                f"{self._taken:,} compressed bytes that expand to more than {self._given:,}, as no images do"
            )
        buffer[: len(data)] = data
        return len(data)

    def _next(self) -> bytes:
        piece: bytes = self._file.read(_PIECE)
        self._taken += len(piece)
        return piece

    def _go_on(self) -> None:
        """Another stream may follow, after zeros."""
        rest = self._decoder.unused_data.lstrip(b"\0")
        self._decoder = None
        while self._magic and len(rest) < len(self._magic) and (piece := self._next()):
            rest = (rest + piece).lstrip(b"\0")
        if self._magic and rest.startswith(self._magic):
            self._decoder = _Again(self._make(), rest)


class _Again:
    """A decompressor that was given its first bytes."""

    def __init__(self, decoder: Any, first: bytes) -> None:
        self._decoder = decoder
        self._first = first

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    @property
    def needs_input(self) -> bool:
        return not self._first and bool(self._decoder.needs_input)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decoder.unused_data)

    def decompress(self, data: bytes, most: int) -> bytes:
        first, self._first = self._first, b""
        return bytes(self._decoder.decompress(first + data, most))


def _data(path: Path, source: str, name: str, member: tarfile.TarInfo, archive: tarfile.TarFile) -> bytes | FetchError:
    if member.size > MAX_MEMBER_BYTES or member.issparse():
        got = "a sparse file" if member.issparse() else f"one of {member.size:,} bytes"
        expected = f"an image of at most {MAX_MEMBER_BYTES:,} bytes"
        return FetchError("corrupt", source, f"{path}: {shown(member.name)}", expected, got, "leave it out")
    stream = archive.extractfile(member)
    data = stream.read(member.size) if stream is not None else b""
    if len(data) != member.size:
        raise EOFError(f"{shown(name)} ends after {len(data):,} of {member.size:,} bytes")
    return data
