"""Wanted members of a huge gzip-compressed tar archive, as a stream that can be gone on with after a kill.

gzip knows no places to begin at but its start. Its blocks are such places for whoever has the 32 KB before them, yet
Python's zlib does not tell where they begin. So every now and then a few likely places are tried: the inflater is
copied, the bytes up to the place are followed by an empty last block, and if the stream ends there, a block begins
there. Such points, the 32 KB and the names listed so far go to a state file; a later run continues from it, or goes
back for members that it knows already.
(RFC 1951, RFC 1952; POSIX.1-2001 pax; GNU tar.)
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import queue
import tarfile
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from imaginet_hub.data.readers.files import File
from imaginet_hub.data.readers.zips import MAX_MEMBER_BYTES
from imaginet_hub.errors import FetchError

__all__ = ["GzipTar"]

#: Bytes of tar between two points: what a killed run repeats at most, against 43 KB of state for each.
_SPACING = 64 * 1024**2
#: What is inflated at a time, at most what comes of it at a time, and how many of these may wait for the reader.
_PIECE, _BLOCK, _WAITING = 256 * 1024, 1024**2, 8
#: Where no block is found within so much, none is looked for until the next point is due.
_SEARCHED = 2 * 1024**2
_WINDOW = 32 * 1024
#: Names and attributes come in headers of their own. No system takes longer names; attributes are short.
_MAX_HEADER, _MAX_NAME = 1024**2, 4096
#: Of the state: what names may fill before they are written, how often it says how far the download is, the longest
#: line that is believed, where it stops growing.
_NAMES, _REACHED, _MAX_LINE, _MAX_STATE = 512 * 1024, 1024**2, 16 * 1024**2, 1024**3
_TAR_BLOCK = 512
_RAW = -zlib.MAX_WBITS


class GzipTar:
    """A gzip-compressed tar archive, somewhere.

    Of members with one name the first counts. Those that were delivered before an early stop were not checked by
    gzip's checksum, which is at its end; whoever takes them decodes them.

    Args:
        file: the archive.
        version: what tells this content from another of the same size: an ETag, a hash.
        state: the file (in any folder, which may have to be made) to keep what helps the next run; None: nothing is
            kept. Anything else that is there, damaged or of another archive, counts as nothing.
        check: called often; raises to stop.

    Attributes:
        resumed_at: the compressed position that this run began at; 0 from the start.
        repeated: compressed bytes that this run read although an earlier one had. Never too many; after a kill it may
            lack what that run had read ahead of its last word (about 10 MB and a member).
    """

    def __init__(self, file: File, version: str, state: Path | None, check: Callable[[], None]) -> None:
        self._file = file
        self._version = version
        self._path = state
        self._check = check
        self._earlier = 0  # how far an earlier run was
        self.resumed_at = 0
        self.repeated = 0

    def read(
        self, match: Callable[[str], list[str]], wanted: Iterable[str]
    ) -> Iterator[tuple[str, bytes | FetchError]]:
        """The wanted members, in no order; stops when there is nothing left to want, and else at the archive's end.

        Args:
            match: the wanted paths that a stored name stands for. Names are as tarfile gives them.
            wanted: paths, of which those that are nowhere in the archive are not mentioned.

        Raises:
            FetchError: reason "corrupt" where the archive is truncated or damaged, having given what lies before;
                and whatever reading its bytes raises.
        """
        left = dict.fromkeys(wanted)
        size = self._file.size()
        while left:
            state = _State(self._path, {"format": 1, "bytes": size, "version": self._version})
            tour = _Tour(self, state, size)
            try:
                yield from tour.members(match, left)
                return
            except _Broken as broken:
                if not tour.trusted:
                    got = f"{broken}, after {tour.received:,} of {size:,} bytes and {tour.count:,} members"
                    remedy = f"it is truncated or damaged; {self._file.remedy}"
                    raise self._file.error(
                        "corrupt", "a complete gzip-compressed tar archive", got, remedy
                    ) from broken
            finally:
                tour.close()
                state.close()

    def _refusal(self, member: _Member) -> FetchError | None:
        """Why a member is not worth reading."""
        got = None if member.kind == "a file" else member.kind
        if got is None and member.size > MAX_MEMBER_BYTES:
            got = f"one of {member.size:,} bytes"
        if got is None:
            return None
        expected = f"a file of at most {MAX_MEMBER_BYTES:,} bytes as {member.name!a}"
        return self._file.error("corrupt", expected, got, self._file.remedy)


class _Broken(Exception):
    """The bytes are not a gzip-compressed tar archive, or no longer."""


@dataclass(frozen=True, slots=True)
class _Point:
    """Where inflating can begin.

    Attributes:
        at: byte of the compressed file.
        bit: of that byte.
        out: byte of the tar archive.
        crc, length: CRC-32 and number of bytes of the gzip member up to there; a member's header comes if it has none.
        window: the bytes before, up to 32 KB.
    """

    at: int
    bit: int
    out: int
    crc: int
    length: int
    window: bytes


_START = _Point(0, 0, 0, 0, 0, b"")


class _Tour:
    """One way through an archive: back for what is known, then on from where the listing stands."""

    def __init__(self, archive: GzipTar, state: _State, size: int) -> None:
        self._archive = archive
        self._file = archive._file
        self._check = archive._check
        self._state = state
        self._size = size
        self._ahead: _Ahead | None = None
        self.trusted = False  # whether the state says anything
        self.received = 0  # compressed position
        self.count = 0

    def members(
        self, match: Callable[[str], list[str]], left: dict[str, None]
    ) -> Iterator[tuple[str, bytes | FetchError]]:
        known = self._state.load(match, left, self._check)
        self._archive._earlier = max(self._archive._earlier, self._state.reached)
        self.trusted = self._state.listed > 0
        try:
            for offset, (name, paths) in sorted(known.items()):
                stream = self._at(offset)
                member = _member(stream, self._check)
                if member is None or member.name != name:
                    raise _Broken("another member than the state says")
                yield from self._deliver(stream, member, paths, left)
            if left and not self._state.ended:
                yield from self._list(match, left)
        except _Broken:
            self._state.forget()  # it may describe damaged bytes, or be what is wrong
            raise
        finally:
            self._state.save(self.received)

    def _list(
        self, match: Callable[[str], list[str]], left: dict[str, None]
    ) -> Iterator[tuple[str, bytes | FetchError]]:
        """What was not seen yet."""
        stream = self._at(self._state.listed)
        while left:
            member = _member(stream, self._check)
            if member is None:
                stream.drain()
                self._state.ended = True
                return
            self.count += 1
            paths = []
            if member.kind != "a folder" and len(member.name) <= _MAX_NAME:
                paths = [path for path in match(member.name) if path in left]
            yield from self._deliver(stream, member, paths, left)
            self._state.progress(stream.position, stream.point, self.received)

    def _deliver(
        self, stream: _Ahead, member: _Member, paths: list[str], left: dict[str, None]
    ) -> Iterator[tuple[str, bytes | FetchError]]:
        """What a member is to those who want it; the stream goes to the next."""
        result: bytes | FetchError | None = self._archive._refusal(member) if paths else None
        if paths and result is None:
            result = stream.exactly(member.size)
            stream.skip(member.stored - member.size)
        else:
            stream.skip(member.stored)
        self._state.add(member, stream.position)  # whatever becomes of it
        for path in paths:
            left.pop(path, None)
        if result is not None:
            yield from ((path, result) for path in paths)

    def _at(self, offset: int) -> _Ahead:
        """A stream at a place of the tar archive."""
        number = self._state.before(offset)
        ahead = self._ahead
        out = self._state.points[number][0] if number is not None else 0
        if ahead is None or offset < ahead.position or out > ahead.position + _WAITING * _BLOCK:
            self.close()
            point = self._state.point(number) if number is not None else _START
            if ahead is None:
                self._archive.resumed_at = point.at
            stop = threading.Event()
            ahead = self._ahead = _Ahead(self._blocks(point, stop), point.out, self._check, stop)
        ahead.skip(offset - ahead.position)
        return ahead

    def _blocks(self, point: _Point, stop: threading.Event) -> Iterator[tuple[bytes, _Point | None]]:
        last = self._state.points[-1][0] if self._state.points else 0
        with contextlib.closing(self._pieces(point.at, stop)) as pieces:
            yield from _inflate(_Compressed(pieces, point.at), point, last)

    def _pieces(self, position: int, stop: threading.Event) -> Generator[bytes]:
        """The file from a place on, in pieces worth inflating."""
        waiting: list[bytes] = []
        with contextlib.ExitStack() as stack:
            stream = self._file.stream(position, self._size)
            if isinstance(stream, Generator):  # whose connection is to be given back
                stack.enter_context(contextlib.closing(stream))
            for piece in stream:
                waiting.append(piece)
                again = min(position + len(piece), self._archive._earlier) - position
                self._archive.repeated += max(0, again)
                position += len(piece)
                self.received = max(self.received, position)
                if stop.is_set():
                    return
                if sum(map(len, waiting)) >= _PIECE:
                    yield b"".join(waiting)
                    waiting.clear()
        if waiting:
            yield b"".join(waiting)

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


# --- tar -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    """One member, by its headers.

    Attributes:
        offset: of the first of them.
        kind: "a file" | "a sparse file" | "a folder" | "a link" | "a special file".
        size: as said.
        stored: bytes up to the next member.
    """

    offset: int
    name: str
    kind: str
    size: int
    stored: int


def _member(stream: _Ahead, check: Callable[[], None]) -> _Member | None:
    """The headers of a member, of which tarfile would read as much as they say; None at the end of the archive.

    What applies to all members (pax's global headers) is skipped: it holds nothing that is needed.
    """
    offset = stream.position
    said: dict[str, bytes] = {}
    while True:
        check()
        at = stream.position
        try:
            header = stream.exactly(_TAR_BLOCK)
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            if header.count(0) == _TAR_BLOCK and offset == at:
                return None
            raise _Broken(f"no header of a member at byte {at:,} of the tar archive ({error})") from error
        if info.size < 0:
            raise _Broken(f"a member of {info.size:,} bytes at byte {at:,} of the tar archive")
        if info.type not in _MORE:
            break
        if info.size > _MAX_HEADER:
            raise _Broken(f"a name or attributes of {info.size:,} bytes at byte {at:,} of the tar archive")
        data = stream.exactly(info.size)
        stream.skip(-info.size % _TAR_BLOCK)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            said.setdefault("path", data.split(b"\0")[0])
        elif info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            for keyword, value in _pax(data, at):
                said.setdefault(keyword, value)
    sparse = info.type == tarfile.GNUTYPE_SPARSE or any(keyword.startswith("GNU.sparse.") for keyword in said)
    more = info.type == tarfile.GNUTYPE_SPARSE and header[482] != 0
    while more:
        check()
        more = stream.exactly(_TAR_BLOCK)[504] != 0
    size = info.size
    if "size" in said:
        if not (said["size"].isdigit() and len(said["size"]) < 20):
            raise _Broken(f"a size that is no number at byte {offset:,} of the tar archive")
        size = int(said["size"])
    filed = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
    path = said.get("GNU.sparse.name", said.get("path"))
    name = info.name if path is None else path.decode("utf-8", "surrogateescape").rstrip("/")
    kind = "a special file"
    if sparse:
        kind = "a sparse file"
    elif info.isreg():
        kind = "a file"
    elif info.isdir():
        kind = "a folder"
    elif info.issym() or info.islnk():
        kind = "a link"
    return _Member(offset, name, kind, size, size + -size % _TAR_BLOCK if filed else 0)


_MORE = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def _pax(data: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    """Keywords and values: records of `<length> <keyword>=<value>\\n`."""
    start = 0
    while start < len(data) and data[start]:
        space = data.find(b" ", start, start + 12)
        digits = data[start:space] if space > start else b""
        end = start + int(digits) if digits.isdigit() else 0
        if not start < space < end <= len(data) or data[end - 1] != 0x0A:
            raise _Broken(f"attributes that cannot be read at byte {at:,} of the tar archive")
        keyword, _, value = data[space + 1 : end - 1].partition(b"=")
        yield keyword.decode("utf-8", "surrogateescape"), value
        start = end


class _Ahead:
    """Blocks of the tar archive, made in a thread of their own while others are read.

    The thread ends when it is told to, as soon as what it waits for comes; it is not waited for longer than a moment.
    """

    def __init__(
        self,
        blocks: Iterator[tuple[bytes, _Point | None]],
        position: int,
        check: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        self._blocks = blocks
        self._check = check
        self._queue: queue.Queue[tuple[bytes, _Point | None] | BaseException | None] = queue.Queue(_WAITING)
        self._stop = stop
        self._block = b""
        self._at = 0
        self.position = position
        self.point: _Point | None = None  # the last one met
        self._thread = threading.Thread(target=self._run, name="imaginet-inflate", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with contextlib.closing(self._blocks) as blocks:  # type: ignore[type-var]
                for block in blocks:
                    if not self._put(block):
                        return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the blocks are read
            self._put(error)

    def _put(self, item: tuple[bytes, _Point | None] | BaseException | None) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False

    def _next(self) -> bool:
        """Go on to the next block; False at the end."""
        while True:
            self._check()
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=0.1)
                break
        if item is None or isinstance(item, BaseException):
            self._stop.set()
            self._put_back(item)
            if item is not None:
                raise item
            return False
        self._block, point = item
        self._at = 0
        self.point = point or self.point
        return True

    def _put_back(self, item: BaseException | None) -> None:
        """Nothing comes after an end: whoever asks again is told again."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(item)

    def _pass(self, count: int) -> Iterator[memoryview]:
        while count > 0:
            if self._at == len(self._block) and not self._next():
                raise _Broken(
                    f"the end of the data {count:,} bytes too soon, at byte {self.position:,} of the tar archive"
                )
            part = memoryview(self._block)[self._at : self._at + count]
            self._at += len(part)
            self.position += len(part)
            count -= len(part)
            yield part

    def exactly(self, count: int) -> bytes:
        if count <= len(self._block) - self._at:
            self._at += count
            self.position += count
            return self._block[self._at - count : self._at]
        out = io.BytesIO()  # which gives its bytes away without a copy
        for part in self._pass(count):
            out.write(part)
        return out.getvalue()

    def skip(self, count: int) -> None:
        for _ in self._pass(count):
            pass

    def drain(self) -> None:
        """Read what is left, so that gzip's checksum is."""
        while self._next():
            self.position += len(self._block)

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(timeout=1.0)


# --- gzip ----------------------------------------------------------------------------------------------------------


class _Compressed:
    """Pieces, of which some bytes may be given back."""

    def __init__(self, pieces: Iterator[bytes], position: int) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self._after = position  # the piece

    @property
    def position(self) -> int:
        """Of what comes next."""
        return self._after - len(self._piece) + self._at

    def piece(self) -> bytes:
        """Some bytes; none at the end."""
        if self._at == len(self._piece):
            self._piece, self._at = next(self._pieces, b""), 0
            self._after += len(self._piece)
        at, self._at = self._at, len(self._piece)
        return self._piece[at:]

    def back(self, count: int) -> None:
        """Give back the end of what came last."""
        self._at -= count

    def exactly(self, count: int) -> bytes:
        data = self._piece[self._at : self._at + count]
        self._at += len(data)
        while len(data) < count:
            piece = self.piece()
            if not piece:
                raise _Broken("the end of the file in the middle of gzip data")
            self.back(max(0, len(data) + len(piece) - count))
            data = (data + piece)[:count]
        return data

    def text(self) -> None:
        """Pass what ends with a zero."""
        passed = 0
        while passed <= _MAX_HEADER:
            piece = self.piece()
            if not piece:
                raise _Broken("the end of the file in the middle of gzip data")
            end = piece.find(0)
            if end >= 0:
                return self.back(len(piece) - end - 1)
            passed += len(piece)
        raise _Broken(f"a gzip header of more than {_MAX_HEADER:,} bytes")

    def header(self) -> bool:
        """Read a gzip member's header; False if the file ends instead. Zeros may come before its end."""
        piece = self.piece()
        while piece and not piece.strip(b"\0"):
            piece = self.piece()
        if not piece:
            return False
        self.back(len(piece))
        fixed = self.exactly(10)
        if fixed[:3] != b"\x1f\x8b\x08":
            raise _Broken(f"bytes that start with {fixed[:3].hex(' ')} where gzip data should begin")
        flags = fixed[3]
        if flags & 4:
            self.exactly(int.from_bytes(self.exactly(2), "little"))
        for _ in range((flags >> 3 & 1) + (flags >> 4 & 1)):  # its name, a comment
            self.text()
        if flags & 2:
            self.exactly(2)
        return True


def _inflate(source: _Compressed, point: _Point, last: int) -> Iterator[tuple[bytes, _Point | None]]:
    """What a compressed file holds from a point on, with further points as they come.

    Args:
        last: the place in the output of the last point that is known; the next is looked for `_SPACING` after it.

    Raises:
        _Broken: it is no gzip data, damaged or truncated.
    """
    out, crc, length, tail = point.out, point.crc, point.length, point.window
    searched = 0
    while True:
        new: _Point | None = None
        if point.length:
            inflate, data = _resumed(tail, point.bit, source.piece())
            point = _START
        else:
            at, crc, length, tail = source.position, 0, 0, b""
            if not source.header():
                if out == 0:
                    raise _Broken("an empty file")
                return
            if out - last >= _SPACING:
                new, last = _Point(at, 0, out, 0, 0, b""), out
            inflate, data = zlib.decompressobj(_RAW), source.piece()
        while not inflate.eof:
            if not data:
                raise _Broken("the end of the file in the middle of gzip data")
            if length and out - last >= _SPACING:
                found = _boundary(inflate, tail, data)
                if found is not None:
                    bit, before = found
                    place, bit = divmod(8 * (source.position - len(data)) + bit, 8)
                    window = (tail + before)[-_WINDOW:]
                    done = length + len(before)
                    new = _Point(place, bit, out + len(before), zlib.crc32(before, crc), done, window)
                searched += len(data)
                if found is not None or searched > _SEARCHED:
                    last, searched = out, 0
            full = True
            while (data or full) and not inflate.eof:
                try:
                    block = inflate.decompress(data, _BLOCK)
                except zlib.error as error:
                    raise _Broken(f"gzip data that cannot be inflated ({error})") from error
                data, full = inflate.unconsumed_tail, len(block) == _BLOCK
                out, length, crc = out + len(block), length + len(block), zlib.crc32(block, crc)
                tail = block[-_WINDOW:] if len(block) >= _WINDOW else (tail + block)[-_WINDOW:]
                if block:
                    yield block, new
                    new = None
            if not inflate.eof:
                data = source.piece()
        source.back(len(inflate.unused_data))
        trailer = source.exactly(8)
        said = int.from_bytes(trailer[:4], "little"), int.from_bytes(trailer[4:], "little")
        if said != (crc, length & 0xFFFFFFFF):
            got = f"CRC32 {crc:08x} of {length:,} bytes"
            raise _Broken(f"{got} where gzip says {said[0]:08x} of {said[1]:,} (modulo 2^32)")


def _bits(*fields: tuple[int, int]) -> tuple[int, int]:
    """Values and their widths, put together as deflate does: the first in the lowest bits."""
    value = width = 0
    for field, bits in fields:
        value |= field << width
        width += bits
    return value, width


#: An empty block with the fixed code: not the last, type 1, its end.
_FIXED = _bits((0, 1), (1, 2), (0, 7))
#: The same as the last block.
_LAST = _bits((1, 1), (1, 2), (0, 7))
#: An empty block with a code of its own, of 97 bits: code lengths 18, 0 and 1 are written as 0, 01 and 11 (from the
#: lowest bit: 0, 1 0, 1 1), literal 0 and the end have one bit each, the 255 between them and the distance none.
_DYNAMIC = _bits(
    (0, 1),
    (2, 2),
    (0, 5),
    (0, 5),
    (15, 4),
    *((length, 3) for length in (0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0)),
    (0b11, 2),
    (0, 1),
    (138 - 11, 7),
    (0, 1),
    (117 - 11, 7),
    (0b11, 2),
    (0b01, 2),
    (1, 1),
)


def _resumed(window: bytes, bit: int, data: bytes) -> tuple[Any, bytes]:
    """An inflater for data that begins at a bit of its first byte, and what to feed it with.

    Python's zlib begins at whole bytes only. Empty blocks fill the bits before: 97 bits make one, 10 make two.
    """
    inflate = zlib.decompressobj(_RAW, zdict=window) if window else zlib.decompressobj(_RAW)
    if bit == 0 or not data:
        return inflate, data
    filler, width = _bits(*([_DYNAMIC] if bit % 2 else []), *[_FIXED] * (bit // 2))
    filler |= data[0] >> bit << width
    return inflate, filler.to_bytes((width - bit) // 8 + 1, "little") + data[1:]


def _boundary(inflate: Any, tail: bytes, data: bytes) -> tuple[int, bytes] | None:
    """Where a block begins in the data that an inflater gets next.

    Args:
        inflate: stays as it is.
        tail: the last 32 KB that came of it.

    Returns:
        The bit, and what comes of the bits before it; None if no place was found.
    """
    data = data[:_PIECE]
    before = io.BytesIO()
    rolling, fed = inflate.copy(), 0
    try:
        for place in _candidates(data):
            byte, bit = divmod(place, 8)
            before.write(rolling.decompress(data[fed:byte], 4 * _BLOCK))
            fed = byte
            if rolling.unconsumed_tail or before.tell() > 4 * _BLOCK:
                return None  # more than is worth searching
            trial = rolling.copy()
            try:
                last = trial.decompress((data[byte] & (1 << bit) - 1 | _LAST[0] << bit).to_bytes(3, "little"))
            except zlib.error:
                continue
            if not trial.eof:
                continue
            # Proof: from there on it inflates as it does without a stop.
            window = (tail + before.getvalue() + last)[-_WINDOW:]
            resumed, rest = _resumed(window, bit, data[byte:])
            found = last + resumed.decompress(rest, _BLOCK)
            true = rolling.copy().decompress(data[byte:], _BLOCK)
            common = min(len(found), len(true))
            if common > len(last) and found[:common] == true[:common]:
                return place, before.getvalue() + last
    except zlib.error:  # damaged data: the one who reads it will say so
        return None
    return None


def _candidates(data: bytes) -> list[int]:
    """Bits at which a block looks like beginning that is not the last one: stored, or with a code of its own. Pure."""
    octets = np.frombuffer(data, np.uint8)
    bits = np.unpackbits(octets, bitorder="little")
    count = len(bits) - 80
    if count <= 0:
        return []
    # A code of its own: type 2, at most 286 and 30 symbols, and a code for the codes that uses up its bits exactly.
    threes = bits[:-2] | bits[1:-1] << 1 | bits[2:] << 2
    places = np.flatnonzero(threes[:count] == 4)
    for field in (3, 8):
        high = (
            bits[places + field + 1] & bits[places + field + 2] & bits[places + field + 3] & bits[places + field + 4]
        )
        places = places[high == 0]
    codes = threes[places + 13] + 8 * bits[places + 16] + 4
    shares = np.array([0, 64, 32, 16, 8, 4, 2, 1], np.uint8)[threes]
    used = np.zeros(len(places), np.int16)
    for number in range(19):
        used += np.where(number < codes, shares[places + 17 + 3 * number], 0)
    found = set(places[used == 128].tolist())
    # Stored: its length twice, once inverted, at whole bytes; zeros from the header to there.
    inverted = (octets[:-3] ^ octets[2:-1] == 255) & (octets[1:-2] ^ octets[3:] == 255)
    for byte in np.flatnonzero(inverted)[:1000].tolist():
        found |= {place for place in range(max(0, 8 * byte - 10), 8 * byte - 2) if not bits[place : 8 * byte].any()}
    return sorted(place for place in found if place < count)


# --- state ---------------------------------------------------------------------------------------------------------


class _State:
    """What a run leaves to the next: a file that only grows, of lines with a checksum each.

    The first says whose it is. The others hold any of: a point, members listed since the line before (offset, name),
    where the listing stands, how far the download was. A torn last line is as if it were not there. What cannot be
    written is not kept: it only costs the next run.

    Attributes:
        points: place in the tar archive of each known point, and of its line in the file.
        listed: up to where the tar archive was listed.
        ended: whether that was its end.
        reached: compressed bytes that earlier runs had.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self._path = path
        self._identity = identity
        self._file: BinaryIO | None = None
        self._members: list[tuple[int, str]] = []
        self._names = 0
        self._told = 0
        self._kept = 0
        self.points: list[tuple[int, int]] = []
        self.listed = 0
        self.ended = False
        self.reached = 0

    def load(
        self, match: Callable[[str], list[str]], left: Iterable[str], check: Callable[[], None]
    ) -> dict[int, tuple[str, list[str]]]:
        """Read what is there, and make ready to add to it.

        Returns:
            Members that are wanted, by offset: name, and the wanted paths that it stands for.
        """
        known: dict[int, tuple[str, list[str]]] = {}
        if self._path is None:
            return known
        sought = set(left)
        good = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._file = self._path.open("a+b", buffering=0)
            with self._path.open("rb") as lines:
                while line := lines.readline(_MAX_LINE):
                    check()
                    entry = _unpacked(line)
                    if entry is None or not (self._take(entry, good) if good else entry == self._identity):
                        break
                    good += len(line)
                    for offset, name in entry.get("members", ()):
                        paths = [path for path in match(name) if path in sought]
                        if paths:
                            sought.difference_update(paths)  # the first one counts
                            known[offset] = name, paths
            file.truncate(good)
            self._kept = good
            if not good:
                self._write(self._identity)
        except OSError:
            self._give_up()
        self._told = self.reached
        return known

    def _take(self, entry: dict[str, Any], at: int) -> bool:
        """Believe one line, if its values can be."""
        total = self._identity["bytes"]
        listed, reached, members = entry.get("listed"), entry.get("reached"), entry.get("members", [])
        if not (_number(listed) and _number(reached) and isinstance(members, list)):
            return False
        if not (self.listed <= listed and reached <= total):
            return False
        for member in members:
            if not (isinstance(member, list) and len(member) == 2 and isinstance(member[1], str)):
                return False
            if not (_number(member[0]) and self.listed <= member[0] < listed):
                return False
        if "point" in entry:
            point = _point(entry["point"], total)
            if point is None or point.out > listed or (self.points and point.out <= self.points[-1][0]):
                return False
            self.points.append((point.out, at))
        self.listed, self.reached = listed, max(self.reached, reached)
        self.ended = self.ended or entry.get("ended") is True
        return True

    def before(self, offset: int) -> int | None:
        """The number of the last point that is not after a place."""
        return next((n for n in range(len(self.points) - 1, -1, -1) if self.points[n][0] <= offset), None)

    def point(self, number: int) -> _Point:
        """A point whole, which is not kept in memory."""
        entry = None
        if self._path is not None:
            with contextlib.suppress(OSError), self._path.open("rb") as lines:
                lines.seek(self.points[number][1])
                entry = _unpacked(lines.readline(_MAX_LINE))
        point = _point(entry["point"], self._identity["bytes"]) if entry and "point" in entry else None
        if point is None or point.out != self.points[number][0]:
            raise _Broken("a state that changed meanwhile")
        return point

    def add(self, member: _Member, listed: int) -> None:
        """A member was passed; the next begins at `listed`. What was known already is not told again."""
        if listed <= self.listed:
            return
        self.listed = listed
        if self._file is not None and member.kind != "a folder" and len(member.name) <= _MAX_NAME:
            self._members.append((member.offset, member.name))
            self._names += len(member.name) + 32

    def progress(self, position: int, point: _Point | None, reached: int) -> None:
        """Between two members: keep what is worth it."""
        last = self.points[-1][0] if self.points else 0
        if point is not None and last < point.out <= position and self._file is not None:
            self.points.append((point.out, self._kept))
            self.save(reached, point)
        elif self._names >= _NAMES or reached >= self._told + _REACHED:
            self.save(reached)

    def save(self, reached: int, point: _Point | None = None) -> None:
        """Write what is new."""
        entry: dict[str, Any] = {"listed": self.listed, "reached": max(reached, self._told)}
        if self._members:
            entry["members"] = self._members
        if self.ended:
            entry["ended"] = True
        if point is not None:
            window = base64.b64encode(point.window).decode()
            entry["point"] = [point.at, point.bit, point.out, point.crc, point.length, window]
        self._write(entry)
        self._members, self._names = [], 0
        self._told = max(reached, self._told)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        text = json.dumps(entry, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        try:
            done = self._kept + len(line) <= _MAX_STATE and self._file.write(line) == len(line)
        except OSError:
            done = False
        if done:
            self._kept += len(line)
        else:
            self._give_up()

    def _give_up(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def forget(self) -> None:
        """There was nothing."""
        self._give_up()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    close = _give_up


def _unpacked(line: bytes) -> dict[str, Any] | None:
    """What a line of the state says, if it is whole."""
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:-1]) or line[-1:] != b"\n":
            return None
        entry = json.loads(line[9:-1])
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _point(values: object, total: int) -> _Point | None:
    """A point as the state has it, if its values can be true."""
    if not (isinstance(values, list) and len(values) == 6 and all(map(_number, values[:5]))):
        return None
    at, bit, out, crc, length, text = values
    if not (isinstance(text, str) and at < total and bit < 8 and crc < 2**32 and length <= out):
        return None
    try:
        window = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return _Point(at, bit, out, crc, length, window) if len(window) == min(length, _WINDOW) else None
