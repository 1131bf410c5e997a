"""Wanted members of a huge gzip-compressed tar archive, as a stream that can be gone on with after a kill.

Points to inflate from (`readers.deflate`) and the names listed so far go to a state file (`readers.stream_state`); a
later run continues from there, or goes back for members that it knows already. Of a file that cannot be read from its
middle (one that is deflated itself, in a ZIP archive) only how far it was read is kept, to tell what is read again.
(POSIX.1-2001 pax; GNU tar.)
"""

from __future__ import annotations

import contextlib
import io
import queue
import tarfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imaginet_hub.data.readers.deflate import BLOCK, PIECE, START, Broken, Compressed, Point, WrongChecksum, inflated
from imaginet_hub.data.readers.files import File, seeks
from imaginet_hub.data.readers.runs import MAX_MEMBER_BYTES
from imaginet_hub.data.readers.stream_state import MAX_NAME, StreamState
from imaginet_hub.errors import FetchError

__all__ = ["GzipTar"]

#: How many blocks may wait for the reader.
_WAITING = 8
#: Names and attributes come in headers of their own; they are short.
_MAX_HEADER = 1024**2
_TAR_BLOCK = 512


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
            form = 1 if seeks(self._file) else 0
            state = StreamState(self._path, {"format": form, "bytes": size, "version": self._version})
            tour = _Tour(self, state, size)
            try:
                yield from tour.members(match, left)
                return
            except Broken as broken:
                if not tour.misled:
                    further = "further " if tour.trusted else ""
                    got = f"{broken}, after {tour.received:,} of {size:,} bytes and {tour.count:,} {further}members"
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


class _Tour:
    """One way through an archive: back for what is known, then on from where the listing stands."""

    def __init__(self, archive: GzipTar, state: StreamState, size: int) -> None:
        self._archive = archive
        self._file = archive._file
        self._check = archive._check
        self._state = state
        self._size = size
        self._seeks = seeks(archive._file)
        self._ahead: _Ahead | None = None
        self.trusted = False  # whether the state says anything
        self.misled = False  # whether what broke may be the state, not the archive
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
                    raise Broken("another member than the state says")
                yield from self._deliver(stream, member, paths, left)
            if left and not self._state.ended:
                yield from self._list(match, left)
        except Broken as broken:
            # A header in its place, after all that was listed, shows that the state is true but for checksums.
            checksum = isinstance(broken, WrongChecksum)
            self.misled = self.trusted and (checksum or self.count == 0)
            if checksum or self.misled:
                self._state.forget()  # it describes damaged bytes, or is what is wrong
            else:
                self._state.rewind(self.received)
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
                self._state.ended = self._seeks
                return
            self.count += 1
            paths = [path for path in match(member.known_as) if path in left] if member.known_as else []
            yield from self._deliver(stream, member, paths, left)
            self._state.progress(stream.position, stream.point if self._seeks else None, self.received)

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
        if self._seeks:
            self._state.add(member.offset, member.known_as, stream.position)  # whatever becomes of it
        for path in paths:
            left.pop(path, None)
        if result is not None:
            yield from ((path, result) for path in paths)

    def _at(self, offset: int) -> _Ahead:
        """A stream at a place of the tar archive."""
        number = self._state.before(offset)
        ahead = self._ahead
        out = self._state.points[number][0] if number is not None else 0
        if ahead is None or offset < ahead.position or out > ahead.position + _WAITING * BLOCK:
            self.close()
            point = self._state.point(number) if number is not None else START
            if ahead is None:
                self._archive.resumed_at = point.at
            stop = threading.Event()
            ahead = self._ahead = _Ahead(self._blocks(point, stop), point.out, self._check, stop)
        ahead.skip(offset - ahead.position)
        return ahead

    def _blocks(self, point: Point, stop: threading.Event) -> Iterator[tuple[bytes, Point | None]]:
        last = self._state.points[-1][0] if self._state.points else 0
        with contextlib.closing(self._pieces(point.at, stop)) as pieces:
            yield from inflated(Compressed(pieces, point.at), point, last)

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
                if sum(map(len, waiting)) >= PIECE:
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

    @property
    def known_as(self) -> str:
        """Its name, or nothing if nobody can want it."""
        return self.name if self.kind != "a folder" and len(self.name) <= MAX_NAME else ""


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
            raise Broken(f"no header of a member at byte {at:,} of the tar archive ({error})") from error
        if info.size < 0:
            raise Broken(f"a member of {info.size:,} bytes at byte {at:,} of the tar archive")
        if info.type not in _MORE:
            break
        if info.size > _MAX_HEADER:
            raise Broken(f"a name or attributes of {info.size:,} bytes at byte {at:,} of the tar archive")
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
            raise Broken(f"a size that is no number at byte {offset:,} of the tar archive")
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
            raise Broken(f"attributes that cannot be read at byte {at:,} of the tar archive")
        keyword, _, value = data[space + 1 : end - 1].partition(b"=")
        yield keyword.decode("utf-8", "surrogateescape"), value
        start = end


class _Ahead:
    """Blocks of the tar archive, made in a thread of their own while others are read.

    The thread ends when it is told to, as soon as what it waits for comes; it is not waited for longer than a moment.
    """

    def __init__(
        self,
        blocks: Iterator[tuple[bytes, Point | None]],
        position: int,
        check: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        self._blocks = blocks
        self._check = check
        self._queue: queue.Queue[tuple[bytes, Point | None] | BaseException | None] = queue.Queue(_WAITING)
        self._stop = stop
        self._block = b""
        self._at = 0
        self.position = position
        self.point: Point | None = None  # the last one met
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

    def _put(self, item: tuple[bytes, Point | None] | BaseException | None) -> bool:
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
                raise Broken(
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
