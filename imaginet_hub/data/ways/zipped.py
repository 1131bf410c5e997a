"""Members of a ZIP archive at a host, by range."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder, shown
from imaginet_hub.data.readers import local
from imaginet_hub.data.readers.files import RemoteFile, seeks
from imaginet_hub.data.readers.hosts import remote_for
from imaginet_hub.data.readers.zips import Member, ZipFile
from imaginet_hub.data.sources import Archive, Source
from imaginet_hub.data.ways.costs import allow
from imaginet_hub.data.ways.streamed import stream_jobs
from imaginet_hub.data.ways.way import Tools, zip_jobs
from imaginet_hub.data.workers import Job
from imaginet_hub.errors import FetchError

__all__ = ["ZipWay"]

_GZIP = (".tar.gz", ".tgz")


class ZipWay:
    """An archive at a host. Its directory is read once, and again if the archive changes.

    Older archives of ImageNet hold nothing but a tar archive; that one can only be read as a stream.
    """

    def __init__(self, tools: Tools, source: Source, route: str, archive: Archive) -> None:
        self._tools = tools
        self._source = source
        self._route = route
        self._address = archive.address
        self._folders = archive.folders
        self._version = ""
        self._tried: set[str] = set()
        self._opened: tuple[ZipFile, dict[str, Member], Finder[Member], list[Member]] | None = None

    def jobs(self, records: Sequence[Record]) -> list[Job]:
        if self._opened is not None:
            archive, found, finder, tars = self._opened
            try:
                archive.file.size()
            except FetchError as error:
                if error.reason != "changed":
                    raise
                self._opened = None
        if self._opened is None:
            aliases = {}
            if self._source.key == "ffhq":  # whose index is of no use without upstream's list
                self._tools.faces.required()
                aliases = self._tools.faces.names()
            remote = remote_for(self._address, self._source.key, self._tools.endpoints)
            archive = ZipFile(RemoteFile(self._tools.http, remote))
            inside = self._folders[0] if len(self._folders) == 1 else ""
            finder = Finder(self._source, [record.file for record in records], aliases, inside)
            found = archive.find(finder)
            tars = list(local.tars_in(archive).values()) if not found else []
            self._opened = archive, found, finder, tars
            self._version = remote.version
        if tars and not found:
            return self._streams(archive, tars, records)
        return zip_jobs(archive, found, finder, records)

    def _streams(self, archive: ZipFile, tars: Sequence[Member], records: Sequence[Record]) -> list[Job]:
        """One tar archive after the other, each for what the ones before it lack."""
        streams = [tar for tar in tars if tar.shown.lower().endswith(_GZIP)]
        left_out = [shown(tar.name) for tar in tars if not tar.shown.lower().endswith(_GZIP)]
        others = ", ".join(left_out[:3])
        if not streams:
            got = f"a tar archive that is not gzip-compressed: {others}"
            raise archive.file.error("format", "images, or a tar.gz archive of them", got, archive.file.remedy)
        versions = {f"{self._address}/{quote(tar.shown)} {self._version} {tar.crc:08x}": tar for tar in streams}
        new = {version: tar for version, tar in versions.items() if version not in self._tried}
        if not new:
            return []
        if others:
            note = f"{self._address} also holds what is left out, a tar archive that is not gzip-compressed: {others}"
            self._tools.say(note)
        files = [(version, archive.data(tar)) for version, tar in new.items()]
        names = ", ".join(shown(tar.name) for tar in list(new.values())[:3])
        what = f"{names} in {self._address}, which can only be read as a stream"
        if not all(seeks(file) for _, file in files):
            what += ", from its beginning each time"
        cost = sum(tar.compressed for tar in new.values())
        allow(self._tools, (self._source,), self._route, what, cost, len(records), archive.file, disk=0)
        return stream_jobs(self._tools, self._source, files, records, self._tried)
