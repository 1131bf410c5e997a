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
from imaginet_hub.data.ways.way import Tools, all_unmatched
from imaginet_hub.data.workers import Delivery, Job
from imaginet_hub.errors import FetchError

__all__ = ["STREAMS", "StreamWay", "stream_jobs"]

#: Where it is kept how far streams were read, below the ledger's folder.
STREAMS = "streams"


class StreamWay:
    """A tar archive at a host, compressed with gzip. Each version of it is read once, and no more if it is damaged."""

    def __init__(self, tools: Tools, source: Source, archive: Archive) -> None:
        self._tools = tools
        self._source = source
        self._address = archive.address
        self._tried: set[str] = set()

    def jobs(self, records: Sequence[Record]) -> list[Job]:
        remote = remote_for(self._address, self._source.key, self._tools.endpoints)
        file = RemoteFile(self._tools.http, remote)
        size = file.size()  # so that its version is known
        version = f"{self._address} {remote.version} {size}"
        return stream_jobs(self._tools, self._source, [(version, file)], records, self._tried)


def stream_jobs(
    tools: Tools, source: Source, files: Sequence[tuple[str, File]], records: Sequence[Record], tried: set[str]
) -> list[Job]:
    """Read archives one after the other, each for what is still wanted: a job, or none.

    Args:
        files: what identifies each (its address without spaces, a space, its version), and itself.
        tried: versions that another round would read in vain: damaged bytes of these stay what they are. Is added to.
    """
    files = [(version, file) for version, file in files if version not in tried]
    if not files:
        return []
    return [Job(tuple(record.file for record in records), _stream, (tools, source, files, records, tried))]


def _stream(
    tools: Tools,
    source: Source,
    files: Sequence[tuple[str, File]],
    records: Sequence[Record],
    tried: set[str],
) -> Iterator[Delivery]:
    versions = {version for version, _ in files}
    tried |= versions
    try:
        yield from _all(tools, source, files, records)
    except FetchError as error:
        if error.reason == "changed":
            tried -= versions
        raise


def _all(
    tools: Tools, source: Source, files: Sequence[tuple[str, File]], records: Sequence[Record]
) -> Iterator[Delivery]:
    left = {record.file: record for record in records}
    failed: dict[str, FetchError] = {}
    for version, file in files:
        finder: Finder[str] = Finder(source, left)
        name = hashlib.sha256(version.split()[0].encode()).hexdigest()[:16]
        tar = GzipTar(file, version, tools.root / FOLDER / STREAMS / name, tools.http.check)
        told = False
        try:
            for path, result in tar.read(lambda stored: finder.offer(stored, stored), list(left)):  # noqa: B023
                if tar.resumed_at and not told:
                    told = True
                    tools.say(f"{source.key}: going on at {human_bytes(tar.resumed_at)} of the stream")
                if isinstance(result, bytes):
                    left.pop(path, None)
                    yield path, result
                else:
                    failed[path] = result
        except FetchError as error:
            if error.reason != "corrupt":
                raise
            failed |= dict.fromkeys(left, error)  # but the next may have it
        if tar.repeated:
            tools.say(f"{source.key}: {human_bytes(tar.repeated)} of the stream were read again")
        if not left:
            return
        lacking = [record for path, record in left.items() if path not in failed]
        failed |= all_unmatched(finder, lacking, file.error, file.remedy)
    for path in left:
        yield path, failed[path]
