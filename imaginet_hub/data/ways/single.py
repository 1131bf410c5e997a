"""One request an image."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import kaggle_name
from imaginet_hub.data.readers.hosts import KaggleFile, remote_for
from imaginet_hub.data.readers.http import Remote, Response
from imaginet_hub.data.readers.runs import MAX_MEMBER_BYTES
from imaginet_hub.data.sources import Route, Source
from imaginet_hub.data.ways.way import Tools
from imaginet_hub.data.workers import Delivery, Job
from imaginet_hub.errors import FetchError

__all__ = ["faces_jobs", "files_jobs", "kaggle_jobs"]


def files_jobs(tools: Tools, source: Source, route: Route, records: Sequence[Record]) -> list[Job]:
    """Files whose addresses end as their paths do."""

    def job(record: Record) -> Iterator[Delivery]:
        remote = remote_for(f"{route.address}{record.file}", source.key, tools.endpoints)
        with _reading(tools, remote) as (data, response):
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
        with _reading(tools, remote_for(f"drive:{face.drive_id}", source.key, tools.endpoints)) as (data, _):
            yield record.file, data

    return [Job((record.file,), job, (record,)) for record in records]


def kaggle_jobs(tools: Tools, source: Source, route: Route, records: Sequence[Record]) -> list[Job]:
    """Files by Kaggle's names of them, verified by the MD5 that Google's storage promises."""

    def job(record: Record) -> Iterator[Delivery]:
        name = kaggle_name(record.file)
        if name is None:
            expected, remedy = "a name that ImageNet gives", f"see --from {source.key}=PATH"
            raise FetchError("missing", source.key, route.address, expected, record.path, remedy)
        remote = remote_for(f"{route.address}/{name}", source.key, tools.endpoints)
        with _reading(tools, remote) as (data, response):
            yield record.file, remote.checked(data, response) if isinstance(remote, KaggleFile) else data

    return [Job((record.file,), job, (record,)) for record in records]


@contextlib.contextmanager
def _reading(tools: Tools, remote: Remote) -> Iterator[tuple[bytes, Response]]:
    """A file's bytes, while there is room for them."""
    with contextlib.ExitStack() as held:

        def room(size: int) -> None:
            held.close()
            held.enter_context(tools.workers.memory.held(2 * size, tools.http.check))  # in pieces, and joined

        yield tools.http.read(remote, max_bytes=MAX_MEMBER_BYTES, room=room)


def _s3_md5(response: Response) -> str | None:
    """S3 names an object that was uploaded in one piece by its MD5."""
    headers = response.headers
    is_s3 = headers.get("server") == "AmazonS3" or "x-amz-request-id" in headers
    etag = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("etag", ""))
    keyed = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    return etag[1] if is_s3 and etag and not keyed else None
