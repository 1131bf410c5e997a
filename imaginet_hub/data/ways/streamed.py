"""A gzip-compressed tar archive, read as a stream up to the last wanted image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from imaginet_hub.data.ledger import FOLDER
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers.files import File, RemoteFile
from imaginet_hub.data.readers.hosts import remote_for
from imaginet_hub.data.readers.tgz import GzipTar
from imaginet_hub.data.sources import Archive, Source
from imaginet_hub.data.units import human_bytes
from imaginet_hub.data.ways.way import Tools, unmatched
from imaginet_hub.data.workers import Delivery, Job
from imaginet_hub.errors import FetchError

__all__ = ["STREAMS", "StreamWay", "stream_job"]

#: Where it is kept how far streams were read, below the ledger's folder.
STREAMS = "streams"


class StreamWay:
    """A tar archive at a host, compressed with gzip."""

    def __init__(self, tools: Tools, source: Source, archive: Archive) -> None:
        self._tools = tools
        self._source = source
        self._address = archive.address

    def jobs(self, records: Sequence[Record]) -> list[Job]:
        remote = remote_for(self._address, self._source.key, self._tools.endpoints)
        file = RemoteFile(self._tools.http, remote)
        file.size()  # so that its version is known
        files: list[tuple[str, File]] = [(f"{self._address} {remote.version}", file)]
        return [stream_job(self._tools, self._source, files, records)]


def stream_job(tools: Tools, source: Source, files: Sequence[tuple[str, File]], records: Sequence[Record]) -> Job:
    """Read archives (what identifies each, and itself) one after the other, each for what is still wanted."""
    return Job(tuple(record.file for record in records), _stream, (tools, source, files, records))


def _stream(
    tools: Tools, source: Source, files: Sequence[tuple[str, File]], records: Sequence[Record]
) -> Iterator[Delivery]:
    left = {record.file: record for record in records}
    failed: dict[str, FetchError] = {}
    for version, file in files:
        finder: Finder[str] = Finder(source, left)
        name = hashlib.sha256(version.split()[0].encode()).hexdigest()[:16]
        tar = GzipTar(file, version, tools.root / FOLDER / STREAMS / name, tools.http.check)
        told = False
        for path, result in tar.read(lambda stored: finder.offer(stored, stored), list(left)):  # noqa: B023
            if tar.resumed_at and not told:
                told = True
                again = human_bytes(tar.repeated)
                tools.say(
                    f"{source.key}: going on at {human_bytes(tar.resumed_at)} of the stream; {again} are read again"
                )
            if isinstance(result, bytes):
                left.pop(path, None)
                yield path, result
            else:
                failed[path] = result
        for path, record in left.items():
            if path not in failed:
                failed[path] = unmatched(finder, record, file.error, file.remedy)
        if not left:
            return
    for path in left:
        yield path, failed[path]
