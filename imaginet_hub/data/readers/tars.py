"""Members of tar archives by range, found by an index beside them.

A tar archive has no directory: finding a member would mean reading what lies before it. deepghs publishes, for each
archive of Danbooru, where every member's data begins, its size and its SHA-256, as JSON:
{"filesize": n, "files": {"<name>": {"offset": n, "size": n, "sha256": "<hex>"}}}.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from imaginet_hub.data.matching import Finder, shown
from imaginet_hub.data.readers.files import File
from imaginet_hub.data.readers.runs import MAX_MEMBER_BYTES, Window, plan_runs
from imaginet_hub.errors import FetchError

__all__ = ["IndexedTar", "TarMember", "bucket_of"]

#: In an index, so that parsing it takes a bounded amount of memory; Danbooru's have some 10,000 members of 4 values.
_MAX_VALUES = 1_000_000
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def bucket_of(path: str) -> str | None:
    """The name of the part of Danbooru that holds an image: its number modulo 1000, in four digits.

    >>> bucket_of("danbooru2021/1234567.jpg")
    '0567'

    Returns:
        None for a name that is not a number.
    """
    stem = PurePosixPath(path).stem
    return f"0{stem[-3:]:0>3}" if stem.isascii() and stem.isdigit() else None


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member, as the index describes it. Two are equal if they hold the same bytes (by SHA-256 and size).

    Attributes:
        name: as stored.
        start: where its data begin; its header is in the block before.
        sha256: of its data, in lower case.
    """

    name: str = field(compare=False)
    start: int = field(compare=False)
    size: int
    sha256: str

    @property
    def offset(self) -> int:
        return self.start - tarfile.BLOCKSIZE

    @property
    def end(self) -> int:
        return self.start + self.size

    @property
    def moved(self) -> int:
        """Bytes that reading it moves."""
        return tarfile.BLOCKSIZE + self.size

    @property
    def held(self) -> int:
        """Bytes that reading it holds in memory."""
        return self.size


class IndexedTar:
    """A tar archive, somewhere, and its index.

    Args:
        tar: the archive.
        index: the JSON that describes it.

    Raises (everywhere):
        FetchError: reason "corrupt" if the index is none, "changed" if it describes another version of the archive;
            and whatever reading its bytes raises.
    """

    def __init__(self, tar: File, index: bytes) -> None:
        self.file = tar
        try:
            size, self._members, self._senseless = _parsed(index)
        except (ValueError, RecursionError) as error:
            expected = "an index of its members (JSON: filesize, files, and their offset, size and sha256)"
            got = f"one with {error}" if isinstance(error, _NoIndexError) else f"{type(error).__name__} ({error})"
            raise tar.error("corrupt", expected, got[:300], tar.remedy) from error
        if tar.size() != size:
            expected = f"the archive of {size:,} bytes that its index describes"
            raise tar.error("changed", expected, f"one of {tar.size():,}", f"its index is out of date; {tar.remedy}")

    def find(self, finder: Finder[TarMember]) -> dict[str, TarMember]:
        """Offer every member to a finder and return its sure matches."""
        for name, member in self._members.items():
            finder.offer(name, member)
        for name, why in self._senseless.items():
            finder.refuse(name, f"an entry of the index with {why}", TarMember(name, 0, 0, ""))
        return finder.found()

    def forget(self) -> None:
        """Let go of all members but those that were found; nothing more can be found."""
        self._members, self._senseless = {}, {}

    def read(self, members: Mapping[str, TarMember]) -> Iterator[tuple[str, bytes | FetchError]]:
        """Members by path, neighbours in one request: (path, its bytes or what is wrong with it)."""
        readable = {path: member for path, member in members.items() if member.size <= MAX_MEMBER_BYTES}
        for path in members.keys() - readable.keys():
            yield path, self._damaged(members[path], f"at most {MAX_MEMBER_BYTES:,} bytes", f"{members[path].size:,}")
        for run in plan_runs(readable):
            window = Window(self.file.stream(run.start, run.end), run.start)
            for path, member in run.members:
                header = window.take(member.offset, tarfile.BLOCKSIZE)
                data = window.take(member.start, member.size)
                found = hashlib.sha256(data).hexdigest()
                if found != member.sha256:
                    yield path, self._damaged(member, f"SHA-256 {member.sha256}", found)
                elif (other := _unlike(header, member)) is not None:
                    yield path, self._damaged(member, "the header of this member before its data", other)
                else:
                    yield path, data

    def _damaged(self, member: TarMember, expected: str, got: str) -> FetchError:
        return self.file.error("corrupt", f"{expected} (member {member.name!r})", got, self.file.remedy)


def _unlike(header: bytes, member: TarMember) -> str | None:
    """What a tar header is instead of this member's: an index may point at its neighbour's data."""
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        return f"no header ({error})"
    # Of a long name the header has the beginning, and the name itself comes before it.
    if not member.name.endswith(PurePosixPath(info.name).name) and len(info.name.encode(errors="replace")) < 99:
        return f"that of {shown(info.name)}"
    return None if info.size in (member.size, 0) else f"one of {info.size:,} bytes"


class _NoIndexError(ValueError):
    """What is wrong with an index."""


def _parsed(index: bytes) -> tuple[int, dict[str, TarMember], dict[str, str]]:
    """The archive's size, its members by name, and what is wrong with entries that make no sense.

    Raises:
        ValueError, RecursionError: it is none.
    """
    if sum(map(index.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise _NoIndexError(f"more than {_MAX_VALUES:,} values")
    top = json.loads(index, object_pairs_hook=_unique, parse_constant=_refuse)
    size = _count(top, "filesize", "the archive")
    files = top.get("files")
    if not isinstance(files, dict):
        raise _NoIndexError("no files")
    members, senseless = {}, {}
    for name, entry in files.items():
        try:
            offset, length = _count(entry, "offset", name), _count(entry, "size", name)
            checksum = entry.get("sha256")
            if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
                raise _NoIndexError(f"no SHA-256 of {name[:80]!r}")
            if not tarfile.BLOCKSIZE <= offset <= offset + length <= size:
                raise _NoIndexError(f"{name[:80]!r} beyond the end of the archive")
            members[name] = TarMember(name, offset, length, checksum.lower())
        except _NoIndexError as error:
            senseless[name] = str(error)
    return size, members, senseless


def _count(entry: Any, key: str, name: str) -> int:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise _NoIndexError(f"no {key} of {name[:80]!r}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _NoIndexError("two entries of one name")
    return fields


def _refuse(constant: str) -> Any:
    raise _NoIndexError(f"{constant}, which is no number of JSON")
