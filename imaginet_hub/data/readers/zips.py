"""Members of a ZIP archive by range: the central directory first, then only what is wanted.

The archive may lie on another machine or on this disk, and may have millions of members: the directory is read as a
stream and only wanted entries are kept. Neighbours are read in one request; what a request reads in vain is bounded.
(APPNOTE.TXT of PKWARE, sections 4.3 to 4.5, ZIP64 included.)
"""

from __future__ import annotations

import itertools
import stat
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers.http import Http, Remote
from imaginet_hub.errors import FetchError

__all__ = ["LocalFile", "Member", "RemoteFile", "Run", "ZipFile", "plan_runs"]

#: No image of ImagiNet comes near; a member that claims more is not one.
MAX_MEMBER_BYTES = 256 * 1024**2
#: Wanted bytes of one request: enough that latency vanishes, few enough that connections share the work.
_RUN_BYTES = 4 * 1024**2
#: Reading a gap must be cheaper than another request, and all gaps together stay below this share of what is wanted.
_GAP_BYTES = 128 * 1024
_GAP_SHARE = 0.01

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8


class ByteSource(Protocol):
    """Bytes at random, wherever they are."""

    def size(self) -> int: ...

    def stream(self, start: int, end: int) -> Iterator[bytes]: ...

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError: ...


class RemoteFile:
    """A file at a host."""

    def __init__(self, http: Http, remote: Remote) -> None:
        self.remote = remote
        self._http = http

    def size(self) -> int:
        return self._http.probe(self.remote)

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        return self._http.stream(self.remote, start, end)

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return self.remote.error(reason, expected, got, remedy)

    @property
    def remedy(self) -> str:
        return self.remote.other_ways()


class LocalFile:
    """A file on this disk."""

    def __init__(self, path: Path, source: str) -> None:
        self.path = path
        self._source = source
        self.remedy = "check the file, or fetch it again"

    def size(self) -> int:
        return self.path.stat().st_size

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            while start < end:
                piece = file.read(min(1024**2, end - start))
                if not piece:
                    raise self.error("corrupt", f"{end - start:,} more bytes", "the end of the file", self.remedy)
                start += len(piece)
                yield piece

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return FetchError(reason, self._source, str(self.path), expected, got, remedy)


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of the central directory. Two are equal if they hold the same bytes.

    Attributes:
        name: as stored; text where the entry says it is UTF-8 or it is ASCII, else the stored bytes.
        offset: of its local header.
        end: where the next entry (or the directory) begins.
    """

    name: str | bytes = field(compare=False)
    flags: int = field(compare=False)
    method: int
    crc: int
    compressed: int
    size: int
    offset: int = field(compare=False)
    attributes: int = field(compare=False)
    end: int = field(compare=False, default=0)

    @property
    def shown(self) -> str:
        return self.name if isinstance(self.name, str) else self.name.decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True)
class Run:
    """Neighbouring members, read with one request."""

    start: int
    end: int
    members: tuple[tuple[str, Member], ...]


class ZipFile:
    """A ZIP archive, somewhere.

    Raises (everywhere):
        FetchError: reason "format" if it is not a ZIP that can be read; and whatever reading its bytes raises.
    """

    def __init__(self, file: RemoteFile | LocalFile) -> None:
        self.file = file
        self.directory_bytes = 0

    def find(self, finder: Finder[Member]) -> dict[str, Member]:
        """Offer every member to a finder and return its sure matches."""
        offsets = array("Q")
        start, end, count, shift = self._directory()
        for member in self._members(start, end, count, shift):
            offsets.append(member.offset)
            if not member.shown.endswith("/"):
                finder.offer(member.name, member)
        borders = np.frombuffer(offsets, dtype=np.uint64) if offsets else np.zeros(0, dtype=np.uint64)
        borders = np.sort(borders)
        found = finder.found()
        placed = {}
        for path, member in found.items():
            after = int(np.searchsorted(borders, member.offset, side="right"))
            border = int(borders[after]) if after < len(borders) else start
            # The local header repeats the name and has extra fields of its own, seldom longer than these.
            most = member.offset + _LOCAL.size + len(_raw(member)) + 4096 + member.compressed
            placed[path] = _with_end(member, max(member.offset + _LOCAL.size, min(border, most)))
        return placed

    def _directory(self) -> tuple[int, int, int, int]:
        """Start, end, number of entries of the central directory, and what all offsets are short of."""
        size = self.file.size()
        tail_size = min(size, _END.size + _END64_LOCATOR.size + _END64.size)
        tail = self._bytes(size - tail_size, size)
        at = tail.rfind(b"PK\5\6")
        if at < 0 or at + _END.size != len(tail):  # a comment follows
            tail_size = min(size, 65535 + _END.size + _END64_LOCATOR.size + _END64.size)
            tail = self._bytes(size - tail_size, size)
            at = tail.rfind(b"PK\5\6")
        if at < 0 or at + _END.size > len(tail):
            head = self._bytes(0, min(8, size))
            raise self.file.error(
                "format", "a ZIP archive", _kind(head), f"it may be incomplete or another format; {self.file.remedy}"
            )
        _, disk, first_disk, _, count, length, offset, _ = _END.unpack_from(tail, at)
        end = size - tail_size + at
        locator = at - _END64_LOCATOR.size
        if locator >= 0 and tail[locator : locator + 4] == b"PK\6\7":
            _, _, where, _ = _END64_LOCATOR.unpack_from(tail, locator)
            end64 = size - tail_size + locator - _END64.size
            record = self._bytes(max(0, end64), max(0, end64) + _END64.size)
            if record[:4] != b"PK\6\6" and where + _END64.size <= size:  # an extensible record is longer
                end64 = where
                record = self._bytes(where, where + _END64.size)
            if record[:4] != b"PK\6\6":
                raise self.file.error("format", "a ZIP64 end record", "none", self.file.remedy)
            _, _, _, _, disk, first_disk, _, count, length, offset = _END64.unpack(record)
            end = end64
        if disk or first_disk:
            raise self.file.error("format", "a ZIP archive in one piece", "one of several volumes", self.file.remedy)
        start = end - length
        if start < 0 or start < offset:
            raise self.file.error(
                "format", "a ZIP archive", "a central directory that lies outside the file", self.file.remedy
            )
        self.directory_bytes = end - start
        return start, end, count, start - offset

    def _bytes(self, start: int, end: int) -> bytes:
        return b"".join(self.file.stream(start, end))

    def _members(self, start: int, end: int, count: int, shift: int) -> Iterator[Member]:
        buffer, position, seen = bytearray(), 0, 0
        pieces = self.file.stream(start, end)
        while True:
            need = _CENTRAL.size
            if len(buffer) - position >= need:
                fields = _CENTRAL.unpack_from(buffer, position)
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
            yield self._member(fields, bytes(buffer[position + _CENTRAL.size : position + need]), shift, start)
            position += need
            seen += 1
        if len(buffer) != position or seen & 0xFFFF != count & 0xFFFF:
            raise self.file.error(
                "format", f"{count:,} entries in the central directory", f"{seen:,}", self.file.remedy
            )

    def _member(self, fields: tuple, rest: bytes, shift: int, limit: int) -> Member:
        _, _, _, flags, method, _, _, crc, compressed, size, name_length, extra_length, _, _, _, attributes, offset = (
            fields
        )
        name, extra = rest[:name_length], rest[name_length : name_length + extra_length]
        if 0xFFFFFFFF in (compressed, size, offset):
            size, compressed, offset = _zip64(extra, size, compressed, offset)
        offset += shift
        if offset + _LOCAL.size + compressed > limit:
            raise self.file.error(
                "format", "members that lie inside the archive", f"{name[:200]!r} beyond its end", self.file.remedy
            )
        text: str | bytes = name
        if flags & 0x800 or name.isascii():
            text = name.decode("utf-8", errors="backslashreplace")
        return Member(text, flags, method, crc, compressed, size, offset, attributes)

    def unreadable(self, member: Member) -> FetchError | None:
        """Why a member cannot be taken in, by what the directory says of it; None if nothing speaks against it."""
        got = None
        if member.flags & 1:
            got = "an encrypted member"
        elif stat.S_ISLNK(member.attributes >> 16):
            got = "a symbolic link"
        elif member.method not in (_STORED, _DEFLATED):
            got = f"compression method {member.method}"
        elif max(member.size, member.compressed) > MAX_MEMBER_BYTES:
            got = f"one of {max(member.size, member.compressed):,} bytes"
        elif member.method == _STORED and member.size != member.compressed:
            got = "a stored member of two sizes"
        if got is None:
            return None
        expected = f"an image of at most {MAX_MEMBER_BYTES:,} bytes, stored or deflated, as member {member.shown!r}"
        return self.file.error("corrupt", expected, got, self.file.remedy)

    def read(self, run: Run) -> Iterator[tuple[str, bytes | FetchError]]:
        """The wanted members of a run: (path, its bytes or what is wrong with it)."""
        stream = _Window(self.file.stream(run.start, run.end), run.start)
        for path, member in run.members:
            try:
                yield path, self._extract(member, stream)
            except FetchError as error:
                if error.reason not in ("corrupt", "format"):
                    raise
                yield path, error

    def _extract(self, member: Member, stream: _Window) -> bytes:
        header = stream.take(member.offset, _LOCAL.size)
        fields = _LOCAL.unpack(header)
        if fields[0] != b"PK\3\4":
            raise self._corrupt(member, "a local header", "other bytes")
        data_start = member.offset + _LOCAL.size + fields[9] + fields[10]
        data_end = data_start + member.compressed
        if data_end <= member.end:
            name = stream.take(member.offset + _LOCAL.size, fields[9])
            data = stream.take(data_start, member.compressed)
        else:  # uncommonly long extra fields
            raw = self._bytes(member.offset + _LOCAL.size, data_end)
            name, data = raw[: fields[9]], raw[fields[9] + fields[10] :]
        if name != _raw(member):
            raise self._corrupt(member, "its name in the local header", repr(name[:200]))
        if member.method == _DEFLATED:
            inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            try:
                # One byte more than declared is enough to know that the declaration was a lie.
                data = inflate.decompress(data, member.size + 1)
            except zlib.error as error:
                raise self._corrupt(member, "deflated data", str(error)) from error
        if len(data) != member.size:
            raise self._corrupt(
                member, f"{member.size:,} bytes", f"{len(data):,}" if len(data) < member.size else "more"
            )
        found = zlib.crc32(data)
        if found != member.crc:
            raise self._corrupt(member, f"CRC32 {member.crc:08x}", f"{found:08x}")
        return data

    def _corrupt(self, member: Member, expected: str, got: str) -> FetchError:
        return self.file.error("corrupt", f"{expected} (member {member.shown!r})", got, self.file.remedy)


class _Window:
    """A stream as if it could be sliced, forwards only."""

    def __init__(self, pieces: Iterator[bytes], start: int) -> None:
        self._pieces = pieces
        self._start = start
        self._buffer = bytearray()

    def take(self, start: int, length: int) -> bytes:
        while self._start + len(self._buffer) < start + length:
            piece = next(self._pieces, None)
            if piece is None:
                break
            if self._start + len(self._buffer) + len(piece) <= start:  # a gap
                self._start += len(self._buffer) + len(piece)
                self._buffer.clear()
                continue
            self._buffer += piece
        skip = start - self._start
        del self._buffer[:skip]
        self._start = start
        return bytes(self._buffer[:length])


def plan_runs(members: dict[str, Member]) -> list[Run]:
    """Which members to read together. Pure.

    Gaps between wanted members are read over, smallest first, as long as they stay below 1 % of the wanted bytes.
    """
    ordered = sorted(members.items(), key=lambda item: (item[1].offset, item[0]))
    gaps = sorted(
        gap for (_, a), (_, b) in itertools.pairwise(ordered) if 0 <= (gap := b.offset - a.end) <= _GAP_BYTES
    )
    allowed, spent, budget = -1, 0, _GAP_SHARE * sum(member.compressed for member in members.values())
    for gap in gaps:
        spent += gap
        if spent > budget and gap > 0:
            break
        allowed = gap
    runs: list[list[tuple[str, Member]]] = []
    for path, member in ordered:
        last = runs[-1] if runs else None
        if last is not None:
            before = last[-1][1]
            near = 0 <= member.offset - before.end <= allowed
            if near and member.end - last[0][1].offset <= _RUN_BYTES:
                last.append((path, member))
                continue
        runs.append([(path, member)])
    return [Run(run[0][1].offset, max(m.end for _, m in run), tuple(run)) for run in runs]


def _with_end(member: Member, end: int) -> Member:
    return Member(
        member.name,
        member.flags,
        member.method,
        member.crc,
        member.compressed,
        member.size,
        member.offset,
        member.attributes,
        end,
    )


def _raw(member: Member) -> bytes:
    return member.name if isinstance(member.name, bytes) else member.name.encode("utf-8", errors="surrogateescape")


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
