"""Members of a ZIP archive by range: the central directory first, then only what is wanted.

The archive may lie on another machine or on this disk, and may have millions of members: the directory is read as a
stream and only wanted entries are kept. Neighbours are read in one request; what a request reads in vain is bounded.
(APPNOTE.TXT of PKWARE, sections 4.3 to 4.5, ZIP64 included.)
"""

from __future__ import annotations

import contextlib
import itertools
import stat
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from imaginet_hub.data.readers.files import File, Inflated, Span, read_range
from imaginet_hub.data.readers.runs import MAX_MEMBER_BYTES, Run, Window
from imaginet_hub.errors import FetchError

__all__ = ["MAX_MEMBER_BYTES", "Finds", "Member", "ZipFile"]


#: Where the end record is looked for: without a comment or with a short one it is in the last kilobyte.
_TAILS = (1024, 65535 + 22 + 20 + 56)

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8
#: An archive of images hardly shrinks once more.
_MAX_RATIO = 100
_SPECIAL = (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
#: More than any file has; fits 64 bits.
_BEYOND = 2**63
_MAX_END_RECORDS = 64
#: What is left of a run (a descriptor, room for extra fields) is read if it is this short, so that the connection can
#: be used again.
_SHORT = 16 * 1024


class Finds(Protocol):
    """What chooses among members: a `Finder`."""

    def may_want(self, name: bytes) -> bool: ...

    def offer(self, name: str | bytes, handle: Member, /) -> list[str]: ...

    def found(self) -> dict[str, Member]: ...


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the central directory. Two are equal if they hold the same bytes (by CRC-32 and size).

    Attributes:
        name: as stored; text where the entry says it is UTF-8 (and is) or it is ASCII, else the stored bytes.
        offset: of its local header.
        end: where the next entry (or the directory) begins.
    """

    name: str | bytes = field(compare=False)
    flags: int = field(compare=False)
    method: int = field(compare=False)
    crc: int
    compressed: int = field(compare=False)
    size: int
    offset: int = field(compare=False)
    attributes: int = field(compare=False)
    end: int = field(compare=False, default=0)

    @property
    def moved(self) -> int:
        """Bytes that reading it moves."""
        return self.compressed

    @property
    def held(self) -> int:
        """Bytes that reading it holds in memory."""
        return self.compressed + (self.size if self.method == _DEFLATED else 0)

    @property
    def shown(self) -> str:
        return self.name if isinstance(self.name, str) else self.name.decode("utf-8", errors="backslashreplace")


class ZipFile:
    """A ZIP archive, somewhere.

    Raises (everywhere):
        FetchError: reason "format" if it is not a ZIP that can be read; and whatever reading its bytes raises.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.directory_bytes = 0
        self._start = 0  # of the central directory; no member reaches beyond
        self._tail = b""

    def find(self, finder: Finds) -> dict[str, Member]:
        """Offer every member to a finder and return its sure matches."""
        offsets = array("Q")
        directory = self._directory()
        wrapped = before = 0
        for fields, name, extra in self._entries(directory):
            compressed, size, offset = fields[8], fields[9], fields[16]
            if 0xFFFFFFFF in (compressed, size, offset):
                size, compressed, offset = _zip64(extra, size, compressed, offset)
            if directory.wraps:
                wrapped += (offset < before) << 32
                before = offset
            offset = min(offset + wrapped + directory.shift, _BEYOND)
            offsets.append(offset)
            if not name.endswith(b"/") and finder.may_want(name):
                text = _text(name, flagged=bool(fields[3] & 0x800))
                finder.offer(text, Member(text, fields[3], fields[4], fields[7], compressed, size, offset, fields[15]))
        borders = np.sort(np.frombuffer(offsets, dtype=np.uint64)) if offsets else np.zeros(0, dtype=np.uint64)
        placed = {}
        for path, member in finder.found().items():
            after = int(np.searchsorted(borders, np.uint64(member.offset), side="right"))
            border = int(borders[after]) if after < len(borders) else self._start
            # The local header repeats the name and has extra fields of its own, seldom longer than these.
            most = member.offset + _LOCAL.size + len(_raw(member)) + 512 + member.compressed
            end = max(member.offset + _LOCAL.size, min(border, most, self._start))
            placed[path] = replace(member, end=end)
        return placed

    def _directory(self) -> _Directory:
        """The central directory, as the end record describes it."""
        size = self.file.size()
        trouble: FetchError | None = None
        for reach in _TAILS:
            tail = self._tail = self._bytes(max(0, size - reach), size)
            whole = reach == _TAILS[-1] or len(tail) == size
            ends = list(_end_records(tail, anything_after=whole))
            for at in ends:
                try:
                    directory = self._described(tail, at, size - len(tail))
                except FetchError as error:
                    if error.reason != "format":
                        raise
                    trouble = trouble or error
                    continue
                # A comment may hold anything, end records included; then only one of them leads to a directory.
                if len(ends) == 1 or self._leads_to_entries(directory):
                    self.directory_bytes = directory.end - directory.start
                    self._start = directory.start
                    return directory
            if whole:
                break
        if trouble is not None:
            raise trouble
        raise self.file.error(
            "format",
            "a ZIP archive",
            _kind(self._bytes(0, min(8, size))),
            f"it may be incomplete or another format; {self.file.remedy}",
        )

    def _described(self, tail: bytes, at: int, before: int) -> _Directory:
        """What the end record at a place in the file's tail says; `before` is where the tail begins."""
        _, disk, first_disk, _, count, length, offset, _ = _END.unpack_from(tail, at)
        end, wide = before + at, False
        locator = at - _END64_LOCATOR.size
        if locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
            _, _, where, _ = _END64_LOCATOR.unpack_from(tail, locator)
            record, end = b"", before + locator - _END64.size
            if locator >= _END64.size:
                record = tail[locator - _END64.size : locator]
            if record[:4] != b"PK\6\6" and where + _END64.size <= end:  # an extensible record is longer
                end = where
                record = self._bytes(where, where + _END64.size)
            if record[:4] != b"PK\6\6":
                raise self.file.error("format", "a ZIP64 end record", "none", self.file.remedy)
            _, _, _, _, disk, first_disk, _, count, length, offset = _END64.unpack(record)
            wide = True
        if disk or first_disk:
            raise self.file.error("format", "a ZIP archive in one piece", "one of several volumes", self.file.remedy)
        start = end - length
        if start < 0 or start < offset:
            raise self.file.error(
                "format", "a ZIP archive", "a central directory that lies outside the file", self.file.remedy
            )
        shift = start - offset
        # Tools that know no ZIP64 write large archives all the same, with what is left of each offset in 32 bits.
        wraps = not wide and shift > 0 and shift % 2**32 == 0
        return _Directory(start, end, count, 0 if wraps else shift, wraps, before)

    def _leads_to_entries(self, directory: _Directory) -> bool:
        if directory.start == directory.end:
            return directory.count == 0 and directory.shift == 0
        head = self._bytes(directory.start, min(directory.start + 4, directory.end))
        return head == b"PK\1\2"

    def _bytes(self, start: int, end: int) -> bytes:
        return read_range(self.file, start, end)

    def _entries(self, directory: _Directory) -> Iterator[tuple[tuple[Any, ...], bytes, bytes]]:
        """Fixed fields, name and extra fields of each entry."""
        buffer, position, seen = bytearray(), 0, 0
        # Of the directory, the tail holds the end or all of it.
        here = max(directory.start, min(directory.tail, directory.end))
        rest = self._tail[here - directory.tail : directory.end - directory.tail] if here < directory.end else b""
        pieces = itertools.chain(self.file.stream(directory.start, here), (rest,))
        unpack, fixed = _CENTRAL.unpack_from, _CENTRAL.size
        while True:
            need = fixed
            if len(buffer) - position >= need:
                fields = unpack(buffer, position)
                if fields[0] != b"PK\1\2":
                    raise self.file.error(
                        "format", "an entry of the central directory", "other bytes", self.file.remedy
                    )
                need += fields[10] + fields[11] + fields[12]
            if len(buffer) - position < need:
                piece = next(pieces, None)
                if piece is None:
                    break
                del buffer[:position]
                position = 0
                buffer += piece
                continue
            name_end = position + fixed + fields[10]
            yield fields, bytes(buffer[position + fixed : name_end]), bytes(buffer[name_end : name_end + fields[11]])
            position += need
            seen += 1
        left = bytes(buffer[position:])
        if (left and left[:4] != b"PK\5\5") or seen & 0xFFFF != directory.count & 0xFFFF:  # it may be signed
            raise self.file.error(
                "format", f"{directory.count:,} entries in the central directory", f"{seen:,}", self.file.remedy
            )

    def unreadable(self, member: Member) -> FetchError | None:
        """Why a member cannot be taken in, by what the directory says of it; None if nothing speaks against it."""
        got = None
        if member.flags & 1:
            got = "an encrypted member"
        elif stat.S_ISLNK(member.attributes >> 16):
            got = "a symbolic link"
        elif stat.S_IFMT(member.attributes >> 16) in _SPECIAL:
            got = "a device, a named pipe or a socket"
        elif member.method not in (_STORED, _DEFLATED):
            got = f"compression method {member.method}"
        elif max(member.size, member.compressed) > MAX_MEMBER_BYTES:
            got = f"one of {max(member.size, member.compressed):,} bytes"
        elif member.method == _STORED and member.size != member.compressed:
            got = "a stored member of two sizes"
        elif member.offset + _LOCAL.size + member.compressed > self._start:
            got = "one that lies beyond the archive's end"
        elif member.method == _DEFLATED and 0 < member.end < member.offset + _LOCAL.size + member.compressed:
            got = "one that shares its bytes with the next, as bombs do"
        if got is None:
            return None
        expected = f"an image of at most {MAX_MEMBER_BYTES:,} bytes, stored or deflated, as member {member.shown!r}"
        return self.file.error("corrupt", expected, got, self.file.remedy)

    def read(self, run: Run[Member]) -> Iterator[tuple[str, bytes | FetchError]]:
        """The wanted members of a run: (path, its bytes or what is wrong with it)."""
        stream = Window(self.file.stream(run.start, run.end), run.start)
        for path, member in run.members:
            result: bytes | FetchError
            try:
                result = self._extract(member, stream)
            except _Damaged as damage:
                expected = f"{damage.expected} (member {member.shown!r})"
                result = self.file.error("corrupt", expected, damage.got, self.file.remedy)
            yield path, result
        if stream.position >= run.end - _SHORT:
            with contextlib.suppress(FetchError):  # every member was delivered
                stream.drain()

    def data(self, member: Member) -> File:
        """A large member's data, as a file.

        Raises:
            FetchError: reason "corrupt": it is encrypted, a link, or packed in another way.
        """
        got = None
        if member.flags & 1 or stat.S_ISLNK(member.attributes >> 16) or member.method not in (_STORED, _DEFLATED):
            got = "an encrypted one, a link, or another method"
        elif member.size > _MAX_RATIO * (member.compressed + 1):
            got = f"{member.size:,} bytes packed into {member.compressed:,}"
        if got is not None:
            expected = f"a stored or deflated member {member.shown!r}"
            raise self.file.error("corrupt", expected, got, self.file.remedy)
        header = self._bytes(member.offset, member.offset + _LOCAL.size)
        if header[:4] != b"PK\3\4":
            raise self.file.error("corrupt", f"a local header of {member.shown!r}", "other bytes", self.file.remedy)
        fields = _LOCAL.unpack(header)
        packed = Span(self.file, member.offset + _LOCAL.size + fields[9] + fields[10], member.compressed)
        return packed if member.method == _STORED else Inflated(packed, member.size)

    def _extract(self, member: Member, stream: Window) -> bytes:
        header = stream.take(member.offset, _LOCAL.size)
        if header[:4] != b"PK\3\4" or len(header) < _LOCAL.size:
            raise _Damaged("a local header", "other bytes")
        fields = _LOCAL.unpack(header)
        data_start = member.offset + _LOCAL.size + fields[9] + fields[10]
        data_end = data_start + member.compressed
        if data_end > self._start:
            raise _Damaged("data inside the archive", "some beyond its end")
        # Uncommonly long extra fields lead beyond what was asked for.
        near = data_end <= member.end
        data = stream.take(data_start, member.compressed) if near else self._bytes(data_start, data_end)
        if member.method == _DEFLATED:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                # One byte more than declared is enough to know that the declaration was a lie.
                data = inflate.decompress(data, member.size + 1)
            except zlib.error as error:
                raise _Damaged("deflated data", str(error)) from error
        if len(data) != member.size:
            raise _Damaged(f"{member.size:,} bytes", f"{len(data):,}" if len(data) < member.size else "more")
        found = zlib.crc32(data)
        if found != member.crc:
            raise _Damaged(f"CRC32 {member.crc:08x}", f"{found:08x}")
        return data


@dataclass(frozen=True, slots=True)
class _Directory:
    """Where the central directory lies, how many entries it has, what all offsets are short of.

    Attributes:
        wraps: whether offsets are what is left of them in 32 bits.
        tail: where the part of the file begins that was read already.
    """

    start: int
    end: int
    count: int
    shift: int
    wraps: bool
    tail: int


class _Damaged(Exception):
    """A member is not what the directory says; its neighbours may be."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got


def _end_records(tail: bytes, *, anything_after: bool) -> Iterator[int]:
    """Where end records may begin, likeliest first: with a comment as long as they say, then with other bytes."""
    places: list[int] = []
    at = tail.rfind(b"PK\5\6")
    while at >= 0 and len(places) < _MAX_END_RECORDS:
        if at + _END.size <= len(tail):
            places.append(at)
        at = tail.rfind(b"PK\5\6", 0, at + 3)
    exact = [at for at in places if at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail)]
    yield from exact
    if anything_after:
        yield from (at for at in places if at not in exact)


def _text(name: bytes, *, flagged: bool) -> str | bytes:
    if flagged or name.isascii():
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError:
            return name
    return name


def _raw(member: Member) -> bytes:
    return member.name if isinstance(member.name, bytes) else member.name.encode("utf-8")


def _zip64(extra: bytes, size: int, compressed: int, offset: int) -> tuple[int, int, int]:
    """The 64-bit values of the extra field 1, for those that do not fit 32 bits."""
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        if kind == 1:
            values = list(struct.unpack_from(f"<{min(length, len(extra) - position - 4) // 8}Q", extra, position + 4))
            result = []
            for value in (size, compressed, offset):
                result.append(values.pop(0) if value == 0xFFFFFFFF and values else value)
            return result[0], result[1], result[2]
        position += 4 + length
    return size, compressed, offset


def _kind(head: bytes) -> str:
    """What a file is, by its first bytes."""
    for magic, name in (
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"\x1f\x8b", "gzip data"),
        (b"Rar!", "a RAR archive"),
    ):
        if head.startswith(magic):
            return name
    if head.startswith(b"PK\3\4"):
        return "a ZIP archive without its end"
    return f"bytes that start with {head.hex(' ')}" if head else "an empty file"
