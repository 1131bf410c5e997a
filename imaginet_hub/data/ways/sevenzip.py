"""A 7z archive in volumes at a host: its members by range if it is stored, else all of it."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imaginet_hub.data.keeper import disk_error
from imaginet_hub.data.ledger import FOLDER
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.progress import progress_bar
from imaginet_hub.data.readers.downloads import download
from imaginet_hub.data.readers.files import File, LocalFile, RemoteFile, Span, Volumes
from imaginet_hub.data.readers.hosts import hub_files, remote_for
from imaginet_hub.data.readers.http import Remote
from imaginet_hub.data.readers.runs import plan_runs
from imaginet_hub.data.readers.sevenzip import Entry, SevenZip
from imaginet_hub.data.readers.unpacking import require_unpacker, unpack, unpack_to
from imaginet_hub.data.readers.zips import Member, ZipFile
from imaginet_hub.data.sources import Archive, Source, source_of
from imaginet_hub.data.units import human_bytes
from imaginet_hub.data.ways.costs import allow
from imaginet_hub.data.ways.way import Tools, failing, unmatched, zip_jobs
from imaginet_hub.data.workers import Fatal, Job
from imaginet_hub.errors import FetchError

__all__ = ["DOWNLOADS", "SevenZipWay", "find_volumes", "local_jobs"]

#: Where whole archives lie until their images are out, below the ledger's folder.
DOWNLOADS = "downloads"
_VOLUME = re.compile(r"(?P<name>.+\.7z)(\.(?P<number>\d{3,}))?")


def find_volumes(names: Sequence[str], first: str) -> tuple[list[str], str | None]:
    """The volumes of an archive among the files of a repository or a folder, and what is wrong with them. Pure.

    Args:
        names: paths.
        first: the first volume; it may also lie in another folder.

    Returns:
        Their paths in order; and None, or what is missing.
    """
    wanted = _VOLUME.fullmatch(first.rpartition("/")[2])
    base = wanted["name"] if wanted else first
    found: dict[str, dict[int, str]] = {}
    for path in names:
        folder, _, name = path.rpartition("/")
        match = _VOLUME.fullmatch(name)
        if match and match["name"] == base:
            found.setdefault(folder, {})[int(match["number"] or 1)] = path
    if not found:
        return [], f"no {base} in volumes"
    home = first.rpartition("/")[0]
    volumes = found[home] if home in found else found[min(found, key=lambda folder: (len(folder), folder))]
    lacking = [number for number in range(1, max(volumes) + 1) if number not in volumes]
    trouble = f"no volume {', '.join(f'{number:03d}' for number in lacking[:5])}" if lacking else None
    return [volumes[number] for number in sorted(volumes)], trouble


@dataclass(frozen=True)
class _Volume:
    remote: Remote
    name: str
    size: int
    sha256: str | None


class SevenZipWay:
    """An archive at a host, for one source or several."""

    def __init__(self, tools: Tools, sources: Sequence[Source], route: str, archive: Archive) -> None:
        self._tools = tools
        self._sources = sources
        self._route = route
        self._archive = archive
        self._moved_whole = False

    @property
    def _folder(self) -> Path:
        name = self._archive.address.removeprefix("hf:").removesuffix(".001").replace("/", "--")
        return self._tools.root / FOLDER / DOWNLOADS / name

    def jobs(self, records: Sequence[Record]) -> list[Job]:
        if self._moved_whole:  # what is damaged in there stays damaged
            return []
        volumes = self._volumes()
        files = [RemoteFile(self._tools.http, volume.remote) for volume in volumes]
        archive = SevenZip(Volumes(files, [volume.size for volume in volumes]))

        def whole(members: Sequence[Entry], wanted: Sequence[Record]) -> list[Job]:
            self._have_all(archive.file, volumes, members, wanted)
            local = [LocalFile(self._folder / volume.name, self._sources[0].key) for volume in volumes]
            here = SevenZip(Volumes(local))
            return local_jobs(self._tools, self._sources, here, local[0].path, wanted, self._archive.folders)

        return _jobs(self._tools, self._sources, archive, records, self._archive.folders, whole)

    def after(self) -> None:
        """Everything is out of it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.parent.rmdir()

    def _volumes(self) -> list[_Volume]:
        source, endpoints = self._sources[0].key, self._tools.endpoints
        owner, name, first = self._archive.address.removeprefix("hf:").split("/", 2)
        listed = hub_files(self._tools.http, f"{owner}/{name}", source, endpoints)
        paths, trouble = find_volumes(list(listed), first)
        if trouble is not None:
            here = remote_for(self._archive.address, source, endpoints)
            raise here.error("missing", "all volumes of the archive", trouble, here.other_ways())
        volumes = []
        for path in paths:
            remote = remote_for(f"hf:{owner}/{name}/{path}", source, endpoints)
            size = listed[path].size
            size = self._tools.http.probe(remote) if size is None else size
            volumes.append(_Volume(remote, path.rpartition("/")[2], size, listed[path].sha256))
        return volumes

    def _have_all(
        self, archive: File, volumes: Sequence[_Volume], members: Sequence[Entry], wanted: Sequence[Record]
    ) -> None:
        """Download the volumes."""
        require_unpacker(archive)
        cost = sum(volume.size for volume in volumes)
        had = sum(file.stat().st_size for file in self._folder.iterdir()) if self._folder.is_dir() else 0
        images = [member for member in members if not member.name.lower().endswith(".zip")]
        inner = sum(member.size for member in members) - sum(member.size for member in images)
        allow(
            self._tools,
            self._sources,
            self._route,
            f"{self._archive.address} is not stored, so that it has to be moved whole",
            max(0, cost - had),
            len(wanted),
            archive,
            disk=max(0, cost - had) + inner,
            wanted_bytes=sum(member.size for member in images) if images else None,
        )
        self._moved_whole = True
        name = volumes[0].name.removesuffix(".001")
        with progress_bar(total=cost, desc=name, unit="B", unit_scale=True) as bar:
            telling = threading.Lock()

            def moved(count: int) -> None:
                with telling:
                    bar.update(count)

            def one(volume: _Volume) -> None:
                try:
                    target = self._folder / volume.name
                    download(self._tools.http, volume.remote, target, volume.size, volume.sha256, moved)
                except OSError as error:
                    raise disk_error(self._tools.root, error) from error

            self._tools.workers.each([functools.partial(one, volume) for volume in volumes])


Whole = Callable[[Sequence[Entry], Sequence[Record]], list[Job]]


def local_jobs(
    tools: Tools,
    sources: Sequence[Source],
    archive: SevenZip,
    first_volume: Path,
    records: Sequence[Record],
    folders: Sequence[str],
) -> list[Job]:
    """Jobs for an archive on this disk, stored or not."""

    def whole(members: Sequence[Entry], wanted: Sequence[Record]) -> list[Job]:
        require_unpacker(archive.file)
        inner = next((member for member in members if member.name.lower().endswith(".zip")), None)
        if inner is not None:
            return _inner_jobs(tools, sources, archive, first_volume, inner, wanted, folders)
        found, _ = _find(sources, archive, wanted, folders)
        return [Job(tuple(found), unpack, (archive, first_volume, found, tools.http.check))]

    return _jobs(tools, sources, archive, records, folders, whole)


def _inner_jobs(
    tools: Tools,
    sources: Sequence[Source],
    archive: SevenZip,
    first_volume: Path,
    inner: Entry,
    records: Sequence[Record],
    folders: Sequence[str],
) -> list[Job]:
    """Jobs for a ZIP archive that lies compressed in a 7z archive: it has to be unpacked to the disk first."""
    target = tools.root / FOLDER / DOWNLOADS / f"{first_volume.name}.inner" / "inner.zip"
    if not target.is_file() or target.stat().st_size != inner.size:
        free = shutil.disk_usage(tools.root).free
        if free < inner.size:
            expected, got = f"{human_bytes(inner.size)} of free disk for {inner.name}", human_bytes(free)
            raise archive.file.error("disk", expected, got, "free some, or choose another ROOT")
        try:
            unpack_to(archive, first_volume, inner, target, tools.http.check)
        except OSError as error:
            raise disk_error(tools.root, error) from error
    return _zip_jobs(sources, ZipFile(LocalFile(target, sources[0].key)), records, folders)


def _jobs(
    tools: Tools,
    sources: Sequence[Source],
    archive: SevenZip,
    records: Sequence[Record],
    folders: Sequence[str],
    whole: Whole,
) -> list[Job]:
    """Ranges of what is stored; the rest is `whole`'s."""
    found, finders = _find(sources, archive, records, folders)
    zips = [entry for entry in archive.entries if entry.name.lower().endswith(".zip")]
    if not found and zips:  # an archive around an archive
        zips.sort(key=lambda entry: -entry.size)
        if archive.blocks[zips[0].block].stored:
            inner = ZipFile(Span(archive.file, zips[0].offset, zips[0].size))
            return _zip_jobs(sources, inner, records, folders)
        return whole(zips[:1], records)
    errors: dict[str, FetchError] = {}
    stored: dict[str, Entry] = {}
    packed: list[Record] = []
    for record in records:
        entry = found.get(record.file)
        if entry is None:
            finder = finders[source_of(record.file)[0]]
            errors[record.file] = unmatched(finder, record, archive.file.error, archive.file.remedy)
        elif (error := archive.unreadable(entry)) is not None:
            errors[record.file] = error
        elif archive.blocks[entry.block].stored:
            stored[record.file] = entry
        else:
            packed.append(record)
    jobs = failing(errors)
    jobs += [Job(tuple(p for p, _ in r.members), archive.read, (r,), r.held_bytes) for r in plan_runs(stored)]
    if packed:
        try:
            jobs += whole([found[record.file] for record in packed], packed)
        except Fatal:
            raise
        except FetchError as error:
            jobs += failing(dict.fromkeys((record.file for record in packed), error))
    return jobs


def _find(
    sources: Sequence[Source], archive: SevenZip, records: Sequence[Record], folders: Sequence[str]
) -> tuple[dict[str, Entry], dict[str, Finder[Entry]]]:
    """Which members are which images, and what looked for those of each source."""
    inside = folders[0] if len(folders) == 1 else ""
    finders: dict[str, Finder[Entry]] = {}
    for source in sources:
        wanted = [record.file for record in records if source_of(record.file)[0] == source.key]
        finders[source.key] = Finder(source, wanted, {}, inside)
    for entry in archive.entries:
        name = entry.name.encode("utf-8", errors="surrogatepass")
        for finder in finders.values():
            if finder.may_want(name):
                finder.offer(entry.name, entry)
    return {path: entry for finder in finders.values() for path, entry in finder.found().items()}, finders


def _zip_jobs(
    sources: Sequence[Source], archive: ZipFile, records: Sequence[Record], folders: Sequence[str]
) -> list[Job]:
    jobs = []
    for source in sources:
        own = [record for record in records if source_of(record.file)[0] == source.key]
        inside = folders[0] if len(folders) == 1 else ""
        finder: Finder[Member] = Finder(source, [record.file for record in own], {}, inside)
        jobs += zip_jobs(archive, archive.find(finder), finder, own)
    return jobs
