"""Files that can be read in ranges, wherever they are: at a host, on this disk, in volumes, inside one another."""

from __future__ import annotations

import itertools
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from imaginet_hub.data.readers.http import Http, Remote
from imaginet_hub.errors import FetchError

__all__ = ["File", "Inflated", "LocalFile", "RemoteFile", "Span", "Volumes", "read_range", "seeks"]


class File(Protocol):
    """What can be read in ranges.

    Attributes:
        remedy: what to do when its bytes are not what they should be.
    """

    @property
    def remedy(self) -> str: ...

    def size(self) -> int:
        """Its bytes."""

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end` (exclusive), in pieces; raises `FetchError` where they end too soon."""

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        """An error about it."""


def read_range(file: File, start: int, end: int) -> bytes:
    """A short range, whole."""
    return b"".join(file.stream(start, end))


def seeks(file: File) -> bool:
    """Whether reading from a place costs nothing for what lies before it."""
    return not isinstance(file, Inflated)


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
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise self._unreadable(error) from error

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                while start < end and (piece := file.read(min(1024**2, end - start))):
                    start += len(piece)
                    yield piece
        except OSError as error:
            raise self._unreadable(error) from error
        if start < end:
            raise self.error("corrupt", f"{end - start:,} more bytes", "the end of the file", self.remedy)

    def _unreadable(self, error: OSError) -> FetchError:
        return self.error("corrupt", "a file that can be read", error.strerror or str(error), self.remedy)

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return FetchError(reason, self._source, str(self.path), expected, got, remedy)


class Volumes:
    """Files that were one before it was split; ranges may cross their borders.

    Args:
        files: in their order.
        sizes: their bytes, where they are known already.
    """

    def __init__(self, files: Sequence[File], sizes: Sequence[int] | None = None) -> None:
        self._files = files
        self._sizes = sizes
        self._borders: list[int] = []

    @property
    def remedy(self) -> str:
        return self._files[0].remedy

    def size(self) -> int:
        if not self._borders:
            sizes = self._sizes if self._sizes is not None else [file.size() for file in self._files]
            self._borders = [0, *itertools.accumulate(sizes)]
        return self._borders[-1]

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        size = self.size()
        if end > size:
            raise self.error("corrupt", f"{end:,} bytes in all volumes", f"{size:,}", self.remedy)
        while start < end:
            number = bisect_right(self._borders, start) - 1
            stop = min(end, self._borders[number + 1])
            yield from self._files[number].stream(start - self._borders[number], stop - self._borders[number])
            start = stop

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return self._files[0].error(reason, expected, got, remedy)


class Span:
    """A part of a file, as a file: what a container stores without compressing it."""

    def __init__(self, file: File, start: int, length: int) -> None:
        self._file = file
        self._start = start
        self._length = length

    @property
    def remedy(self) -> str:
        return self._file.remedy

    def size(self) -> int:
        return self._length

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        if end > self._length:
            raise self.error("corrupt", f"{end:,} bytes", f"{self._length:,}", self.remedy)
        return self._file.stream(self._start + start, self._start + end)

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return self._file.error(reason, expected, got, remedy)


class Inflated:
    """What a deflated part of a file unpacks to. To read on from a place, all before it is unpacked again.

    Args:
        packed: the raw deflate stream.
        size: its bytes, unpacked.
    """

    def __init__(self, packed: File, size: int) -> None:
        self._packed = packed
        self._size = size

    @property
    def remedy(self) -> str:
        return self._packed.remedy

    def size(self) -> int:
        return self._size

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        inflate, position = zlib.decompressobj(-zlib.MAX_WBITS), 0
        for packed in self._packed.stream(0, self._packed.size()):
            rest = packed
            while rest and position < end:
                try:
                    piece = inflate.decompress(rest, 1024**2)
                except zlib.error as error:
                    raise self.error("corrupt", "deflated data", str(error), self.remedy) from error
                rest = inflate.unconsumed_tail
                wanted = piece[max(0, start - position) : max(0, end - position)]
                position += len(piece)
                if wanted:
                    yield wanted
            if position >= end or inflate.eof:
                break
        if position < end:
            raise self.error("corrupt", f"{end:,} bytes unpacked", f"{position:,}", self.remedy)

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        return self._packed.error(reason, expected, got, remedy)
