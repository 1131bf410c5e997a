"""Members of tar archives at a host, by range, where an index says where they are."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers.files import RemoteFile
from imaginet_hub.data.readers.hosts import remote_for
from imaginet_hub.data.readers.tars import IndexedTar, TarMember, bucket_of
from imaginet_hub.data.sources import Archive, Source
from imaginet_hub.data.ways.way import Tools, all_unmatched, failing
from imaginet_hub.data.workers import Delivery, Job
from imaginet_hub.errors import FetchError

__all__ = ["tars_jobs"]

_MAX_INDEX_BYTES = 64 * 1024**2
#: What an index may take while it is parsed, in its own bytes.
_PARSED = 16


def tars_jobs(tools: Tools, source: Source, archive: Archive, records: Sequence[Record]) -> list[Job]:
    """A job for each archive: read its index, then what is wanted of it."""
    buckets: dict[str, list[Record]] = {}
    errors: dict[str, FetchError] = {}
    for record in records:
        bucket = bucket_of(record.file)
        if bucket is None:
            expected = "a name that is a number, as those of the archives are"
            errors[record.file] = FetchError(
                "missing", source.key, archive.address, expected, record.path, f"see --from {source.key}=PATH"
            )
        else:
            buckets.setdefault(bucket, []).append(record)
    read = functools.partial(_read, tools, source, archive)
    jobs = [Job(tuple(r.file for r in members), read, (bucket, members)) for bucket, members in buckets.items()]
    return [*jobs, *failing(errors)]


def _read(
    tools: Tools, source: Source, archive: Archive, bucket: str, records: Sequence[Record]
) -> Iterator[Delivery]:
    remote = remote_for(f"{archive.address}/data-{bucket}.tar", source.key, tools.endpoints)
    finder: Finder[TarMember] = Finder(source, [record.file for record in records])
    with contextlib.ExitStack() as held:

        def hold(count: int) -> None:
            held.close()
            held.enter_context(tools.workers.memory.held(count, tools.http.check))

        described = remote_for(f"{archive.index}/data-{bucket}.json", source.key, tools.endpoints)
        index, _ = tools.http.read(described, max_bytes=_MAX_INDEX_BYTES, room=lambda size: hold(2 * size))
        hold(_PARSED * len(index))
        tar = IndexedTar(RemoteFile(tools.http, remote), index)
        del index
        found = tar.find(finder)
        tar.forget()
    lacking = [record for record in records if record.file not in found]
    yield from all_unmatched(finder, lacking, remote.error, remote.other_ways()).items()
    with tools.workers.memory.held(max((m.size for m in found.values()), default=0), tools.http.check):
        yield from tar.read(found)
