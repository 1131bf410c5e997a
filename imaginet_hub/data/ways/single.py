"""One request an image."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import kaggle_name
from imaginet_hub.data.readers.hosts import KaggleFile, remote_for
from imaginet_hub.data.readers.http import Remote, Response
from imaginet_hub.data.readers.runs import MAX_MEMBER_BYTES, plan_runs
from imaginet_hub.data.readers.zips import Member, ZipFile
from imaginet_hub.data.sources import Route, Source
from imaginet_hub.data.ways.way import Tools
from imaginet_hub.data.workers import Delivery, Job
from imaginet_hub.errors import FetchError

__all__ = ["faces_jobs", "files_jobs", "kaggle_jobs"]


def files_jobs(tools: Tools, source: Source, route: Route, records: Sequence[Record]) -> list[Job]:
    """Files whose addresses end as their paths do."""

    def job(record: Record) -> Iterator[Delivery]:
        remote = remote_for(f"{route.address}{record.file}", source.key, tools.endpoints)
        with _reading(tools, remote) as (data, response, _):
            promised = _s3_md5(response)
            if promised is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != promised:
                raise remote.error("corrupt", f"MD5 {promised}", "other bytes", remote.other_ways())
            yield record.file, data

    return [Job((record.file,), job, (record,)) for record in records]


def faces_jobs(tools: Tools, source: Source, records: Sequence[Record]) -> list[Job]:
    """Faces, by the Drive ids of upstream's list."""
    listed = tools.faces.required()

    def job(record: Record) -> Iterator[Delivery]:
        face = listed.get(record.file)
        if face is None:
            remedy = f"see --from {source.key}=PATH"
            raise FetchError("missing", source.key, record.path, "a line in the FFHQ list", "none", remedy)
        with _reading(tools, remote_for(f"drive:{face.drive_id}", source.key, tools.endpoints)) as (data, _, _):
            yield record.file, data

    return [Job((record.file,), job, (record,)) for record in records]


def kaggle_jobs(tools: Tools, source: Source, route: Route, records: Sequence[Record]) -> list[Job]:
    """Files by Kaggle's names of them, verified by the MD5 that Google's storage promises.

    Kaggle delivers some files zipped. No image begins as a ZIP archive does.
    """

    def job(record: Record) -> Iterator[Delivery]:
        name = kaggle_name(record.file)
        if name is None:
            expected, remedy = "a name that ImageNet gives", f"see --from {source.key}=PATH"
            raise FetchError("missing", source.key, route.address, expected, record.path, remedy)
        remote = remote_for(f"{route.address}/{name}", source.key, tools.endpoints)
        with _reading(tools, remote) as (data, response, hold):
            if isinstance(remote, KaggleFile):
                remote.check(data, response)
            yield record.file, _unzipped(remote, data, name, hold) if data.startswith(b"PK\3\4") else data

    return [Job((record.file,), job, (record,)) for record in records]


@contextlib.contextmanager
def _reading(tools: Tools, remote: Remote) -> Iterator[tuple[bytes, Response, Callable[[int], None]]]:
    """A file's bytes, while there is room for them; and what makes room for another number of bytes instead."""
    with contextlib.ExitStack() as held:

        def hold(count: int) -> None:
            held.close()
            held.enter_context(tools.workers.memory.held(count, tools.http.check))

        def room(size: int) -> None:
            hold(2 * size)  # in pieces, and joined

        yield *tools.http.read(remote, max_bytes=MAX_MEMBER_BYTES, room=room), hold


def _unzipped(remote: Remote, data: bytes, name: str, hold: Callable[[int], None]) -> bytes:
    """The file that a ZIP archive was made for: the only one in it, or the one of its name.

    Raises:
        FetchError: reason "corrupt".
    """
    wanted, archive = PurePosixPath(name).name, ZipFile(_Held(data, remote))
    try:
        member = archive.find(_One(wanted)).get(wanted)
        if member is None:
            raise remote.error("corrupt", f"a ZIP archive that holds {wanted}", "another", remote.other_ways())
        if (error := archive.unreadable(member)) is not None:
            raise error
        hold(len(data) + member.held)
        ((_, result),) = archive.read(plan_runs({wanted: member})[0])
    except FetchError as error:
        raise remote.error("corrupt", error.expected, error.got, error.remedy) from error
    if isinstance(result, FetchError):
        raise result
    return result


class _Held:
    """A small file that is held in memory, as a `File`."""

    def __init__(self, data: bytes, remote: Remote) -> None:
        self._data = data
        self.remedy = remote.other_ways()
        self.error = remote.error

    def size(self) -> int:
        return len(self._data)

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        if end > len(self._data):
            raise self.error("corrupt", f"{end:,} bytes", f"{len(self._data):,}", self.remedy)
        yield self._data[start:end]


class _One:
    """Finds the member of a name, or else the only one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._first: Member | None = None
        self._named: Member | None = None
        self._count = 0

    def may_want(self, name: bytes) -> bool:
        return True

    def offer(self, name: str | bytes, handle: Member, /) -> list[str]:
        self._first = self._first or handle
        self._count += 1
        if PurePosixPath(handle.shown).name == self._name:
            self._named = handle
        return []

    def found(self) -> dict[str, Member]:
        member = self._named or (self._first if self._count == 1 else None)
        return {} if member is None else {self._name: member}


def _s3_md5(response: Response) -> str | None:
    """S3 names an object that was uploaded in one piece by its MD5."""
    headers = response.headers
    is_s3 = headers.get("server") == "AmazonS3" or "x-amz-request-id" in headers
    etag = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("etag", ""))
    keyed = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    return etag[1] if is_s3 and etag and not keyed else None
