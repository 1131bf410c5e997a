"""Members of tar archives at a host, by range, where an index says where they are."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers.files import RemoteFile
from imaginet_hub.data.readers.hosts import remote_for
from imaginet_hub.data.readers.tars import IndexedTar, TarMember, bucket_of
from imaginet_hub.data.sources import Archive, Source
from imaginet_hub.data.ways.way import Tools, failing, unmatched
from imaginet_hub.data.workers import Delivery, Job
from imaginet_hub.errors import FetchError

__all__ = ["tars_jobs"]

_MAX_INDEX_BYTES = 64 * 1024**2


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
    return [*failing(errors), *jobs]


def _read(
    tools: Tools, source: Source, archive: Archive, bucket: str, records: Sequence[Record]
) -> Iterator[Delivery]:
    index, _ = tools.http.read(
        remote_for(f"{archive.index}/data-{bucket}.json", source.key, tools.endpoints), max_bytes=_MAX_INDEX_BYTES
    )
    remote = remote_for(f"{archive.address}/data-{bucket}.tar", source.key, tools.endpoints)
    tar = IndexedTar(RemoteFile(tools.http, remote), index)
    del index
    finder: Finder[TarMember] = Finder(source, [record.file for record in records])
    found = tar.find(finder)
    for record in records:
        if record.file not in found:
            yield record.file, unmatched(finder, record, remote.error, remote.other_ways())
    with tools.workers.memory.held(max((m.size for m in found.values()), default=0), tools.http.check):
        yield from tar.read(found)
