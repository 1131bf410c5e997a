"""A 7z archive in volumes at a host: its members by range if it is stored, else all of it."""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imaginet_hub.data.keeper import disk_error
from imaginet_hub.data.ledger import FOLDER
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder, shown, why_refused
from imaginet_hub.data.progress import progress_bar
from imaginet_hub.data.readers.downloads import download, had
from imaginet_hub.data.readers.files import File, LocalFile, RemoteFile, Span, Volumes
from imaginet_hub.data.readers.hosts import hub_files, remote_for
from imaginet_hub.data.readers.http import Remote
from imaginet_hub.data.readers.local import inside_of
from imaginet_hub.data.readers.runs import plan_runs
from imaginet_hub.data.readers.sevenzip import Entry, SevenZip
from imaginet_hub.data.readers.unpacking import py7zr_is_here, require_unpacker, unpack, unpack_to
from imaginet_hub.data.readers.zips import Member, ZipFile
from imaginet_hub.data.sources import Archive, Source, source_of
from imaginet_hub.data.units import human_bytes
from imaginet_hub.data.ways.costs import allow
from imaginet_hub.data.ways.way import Tools, all_unmatched, failing, zip_jobs
from imaginet_hub.data.workers import Delivery, Fatal, Job
from imaginet_hub.errors import FetchError

__all__ = ["DOWNLOADS", "SevenZipWay", "find_volumes", "forget_downloads", "local_jobs"]

#: Where whole archives lie until their images are out, below the ledger's folder.
DOWNLOADS = "downloads"
_VOLUME = re.compile(r"(?P<name>.+\.7z)(\.(?P<number>[0-9]{3,5}))?", re.IGNORECASE | re.DOTALL)
_SHA256 = re.compile("[0-9a-f]{64}")
#: In each folder of downloads: the images that it is there for.
_WANTED = "wanted.txt"


def forget_downloads(root: Path, here: Collection[str]) -> None:
    """Remove whole archives whose images are all out, whichever run it was that wanted them.

    Args:
        root: ROOT.
        here: paths of images that were verified and are not missing.
    """
    for note in (root / FOLDER / DOWNLOADS).glob(f"*/{_WANTED}"):
        with contextlib.suppress(OSError):
            wanted = _noted(note)
            if wanted and all(path in here and (root / path).is_file() for path in wanted):
                _remove(note.parent)


def _noted(note: Path) -> list[str]:
    return note.read_text(encoding="utf-8", errors="surrogateescape").splitlines() if note.is_file() else []


def _note_wanted(folder: Path, records: Sequence[Record]) -> None:
    """Write down what an archive is there for, besides what it was there for already."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = dict.fromkeys([*_noted(folder / _WANTED), *(record.file for record in records)])
    lines = "".join(f"{path}\n" for path in paths)
    (folder / _WANTED).write_text(lines, encoding="utf-8", errors="surrogateescape")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # other downloads are there
        folder.parent.rmdir()


def find_volumes(names: Sequence[str], first: str) -> tuple[list[str], str | None]:
    """The volumes of an archive among the files of a repository or a folder, and what is wrong with them. Pure.

    Args:
        names: paths.
        first: one of the volumes, or the archive where it is not split; they may also lie in another folder.

    Returns:
        Their paths in order, those beside `first` if they are complete; and None, or what is missing.
    """
    wanted = _VOLUME.fullmatch(first.rpartition("/")[2])
    if wanted is None:
        return ([first], None) if first in names else ([], f"no {first}")
    base = wanted["name"]
    split: dict[str, dict[int, str]] = {}
    whole: dict[str, dict[int, str]] = {}
    for path in names:
        folder, _, name = path.rpartition("/")
        match = _VOLUME.fullmatch(name)
        if match and match["name"] == base:
            number = match["number"]
            (split if number else whole).setdefault(folder, {})[int(number or 1)] = path
    home = first.rpartition("/")[0]
    kinds = (split, whole) if wanted["number"] else (whole, split)
    found = [
        (bool(lacking), folder != home, rank, len(folder), folder, volumes, lacking)
        for rank, kind in enumerate(kinds)
        for folder, volumes in kind.items()
        for lacking in [[number for number in range(1, max(volumes) + 1) if number not in volumes]]
    ]
    if not found:
        return [], f"no {base} in volumes"
    *_, volumes, lacking = min(found, key=lambda item: item[:5])
    trouble = f"no volume {', '.join(f'{number:03d}' for number in lacking[:5])}" if lacking else None
    return [volumes[number] for number in sorted(volumes)], trouble


@dataclass(frozen=True)
class _Volume:
    remote: Remote
    name: str
    size: int
    sha256: str | None


class _Abandoned(Exception):
    """Another volume could not be had, and this one alone is of no use now."""


class SevenZipWay:
    """An archive at a host, for one source or several."""

    def __init__(self, tools: Tools, sources: Sequence[Source], route: str, archive: Archive) -> None:
        self._tools = tools
        self._sources = sources
        self._route = route
        self._archive = archive
        self._opened: tuple[SevenZip, list[_Volume]] | None = None
        self._moved_whole = False
        self._owed: set[str] = set()  # what may still come out of it
        self._final = False  # whether what is damaged now will always be

    @property
    def _folder(self) -> Path:
        name = self._archive.address.removeprefix("hf:").removesuffix(".001").replace("/", "--")
        return self._tools.root / FOLDER / DOWNLOADS / name

    def jobs(self, records: Sequence[Record]) -> list[Job]:
        if self._moved_whole:  # what is damaged in there stays damaged
            return []
        archive, volumes = self._open()

        def whole(members: Sequence[Entry], wanted: Sequence[Record]) -> list[Job]:
            self._have_all(archive.file, volumes, members, wanted)
            local = [LocalFile(self._folder / volume.name, self._sources[0].key) for volume in volumes]
            here = SevenZip(Volumes(local))
            inside = _inside(self._archive.folders)
            jobs = _local_jobs(self._tools, self._sources, here, local[0].path, wanted, inside, self._folder / "inner")
            return [replace(job, run=self._watched, args=(job.run, *job.args)) for job in jobs]

        return _jobs(self._sources, archive, records, _inside(self._archive.folders), whole)

    def after(self) -> None:
        """When everything is out of it, it is removed; else it is kept for another run, and the user is told."""
        if not self._moved_whole:
            return
        if not self._owed and not self._tools.limited:
            _remove(self._folder)
            return
        why = (
            f"{len(self._owed):,} images did not come out of it"
            if self._owed
            else "more is listed than --limit let in"
        )
        self._tools.say(
            f"{why}, so that what was downloaded of {self._archive.address} is kept in {self._folder}; remove it if "
            "you do not want it"
        )

    def _watched(self, run: Callable[..., Iterator[Delivery]], *args: Any) -> Iterator[Delivery]:
        for path, result in run(*args):
            if isinstance(result, bytes) or (self._final and result.reason == "corrupt"):
                self._owed.discard(path)
            yield path, result

    def _open(self) -> tuple[SevenZip, list[_Volume]]:
        """The archive; once, unless it was replaced on the host meanwhile."""
        if self._opened is not None:
            try:
                for volume in self._opened[1]:
                    volume.remote.check_version()
                return self._opened
            except FetchError:
                self._opened = None
        volumes = self._volumes()
        files = [RemoteFile(self._tools.http, volume.remote) for volume in volumes]
        self._opened = SevenZip(Volumes(files, [volume.size for volume in volumes])), volumes
        return self._opened

    def _volumes(self) -> list[_Volume]:
        source, endpoints = self._sources[0].key, self._tools.endpoints
        owner, name, first = self._archive.address.removeprefix("hf:").split("/", 2)
        listed = hub_files(self._tools.http, f"{owner}/{name}", source, endpoints)
        paths, trouble = find_volumes([path for path in listed if why_refused(path) is None and path.isascii()], first)
        if trouble is not None:
            here = remote_for(self._archive.address, source, endpoints)
            raise here.error("missing", "all volumes of the archive", trouble, here.other_ways())
        volumes = []
        for path in paths:
            remote = remote_for(f"hf:{owner}/{name}/{path}", source, endpoints)
            size, sha256 = listed[path].size, (listed[path].sha256 or "").lower()
            size = self._tools.http.probe(remote) if size is None or size < 0 else size
            volumes.append(
                _Volume(remote, path.rpartition("/")[2], size, sha256 if _SHA256.fullmatch(sha256) else None)
            )
        return volumes

    def _have_all(
        self, archive: File, volumes: Sequence[_Volume], members: Sequence[Entry], wanted: Sequence[Record]
    ) -> None:
        """Download the volumes."""
        require_unpacker(archive)
        left = sum(volume.size - had(self._folder / volume.name, volume.size, volume.sha256) for volume in volumes)
        images = [member for member in members if not _is_zip(member)]
        inner = sum(member.size for member in members) - sum(member.size for member in images)
        keys = {source_of(record.file)[0] for record in wanted}
        allow(
            self._tools,
            [source for source in self._sources if source.key in keys],
            self._route,
            f"{self._archive.address} is not stored, so that it has to be moved whole",
            left,
            len(wanted),
            archive,
            disk=left + inner,
            wanted_bytes=sum(member.size for member in images) if images else None,
        )
        self._moved_whole = True
        self._owed = {record.file for record in wanted}
        self._final = all(volume.sha256 is not None for volume in volumes) and py7zr_is_here()
        try:
            _note_wanted(self._folder, wanted)
        except OSError as error:
            raise disk_error(self._tools.root, error) from error
        failures: list[FetchError] = []
        name = volumes[0].name.removesuffix(".001")
        total = sum(volume.size for volume in volumes)
        with progress_bar(total=total, desc=name, unit="B", unit_scale=True) as bar:
            telling = threading.Lock()

            def moved(count: int) -> None:
                with telling:
                    bar.update(count)
                if failures:
                    raise _Abandoned

            def one(volume: _Volume) -> None:
                # A failure that was raised here would stop the whole fetch.
                target = self._folder / volume.name
                try:
                    if not failures:
                        download(self._tools.http, volume.remote, target, volume.size, volume.sha256, moved)
                except _Abandoned:
                    pass
                except FetchError as error:
                    failures.append(error)
                except OSError as error:
                    raise disk_error(self._tools.root, error) from error

            self._tools.workers.each([functools.partial(one, volume) for volume in volumes])
        if failures:
            raise failures[0]


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
    inside = _inside(folders) or inside_of(first_volume)
    store = tools.root / FOLDER / DOWNLOADS / f"{first_volume.name}.inner"
    return _local_jobs(tools, sources, archive, first_volume, records, inside, store)


def _local_jobs(
    tools: Tools,
    sources: Sequence[Source],
    archive: SevenZip,
    first_volume: Path,
    records: Sequence[Record],
    inside: str,
    store: Path,
) -> list[Job]:
    def whole(members: Sequence[Entry], wanted: Sequence[Record]) -> list[Job]:
        require_unpacker(archive.file)
        inner = next((member for member in members if _is_zip(member)), None)
        if inner is not None:
            return _inner_jobs(tools, sources, archive, first_volume, inner, wanted, inside, store)
        found, _ = _find(sources, archive, wanted, inside)
        most = max(entry.size for entry in found.values())
        return [Job(tuple(found), unpack, (archive, first_volume, found, tools.http.check), most)]

    return _jobs(sources, archive, records, inside, whole)


def _inner_jobs(
    tools: Tools,
    sources: Sequence[Source],
    archive: SevenZip,
    first_volume: Path,
    inner: Entry,
    records: Sequence[Record],
    inside: str,
    store: Path,
) -> list[Job]:
    """Jobs for a ZIP archive that lies compressed in a 7z archive: it has to be unpacked to the disk first.

    It is removed when the last job is done; what a killed run had unpacked is used by the next.
    """
    target = store / f"{inner.crc or 0:08x}.zip"
    if not target.is_file() or target.stat().st_size != inner.size:
        shutil.rmtree(store, ignore_errors=True)  # of a run that was killed
        free = shutil.disk_usage(tools.root).free
        if free < inner.size:
            expected, got = f"{human_bytes(inner.size)} of free disk for {shown(inner.name)}", human_bytes(free)
            raise archive.file.error("disk", expected, got, "free some, or choose another ROOT")
        tools.say(f"unpacking {shown(inner.name)} ({human_bytes(inner.size)}), which the images are in")
        try:
            _note_wanted(store, records)
            unpack_to(archive, first_volume, inner, target, tools.http.check)
        except OSError as error:
            raise disk_error(tools.root, error) from error
    jobs = _zip_jobs(sources, ZipFile(LocalFile(target, sources[0].key)), records, _below(inside, inner))
    counting, left = threading.Lock(), len(jobs)

    def counted(run: Callable[..., Iterator[Delivery]], *args: Any) -> Iterator[Delivery]:
        nonlocal left
        try:
            yield from run(*args)
        finally:
            with counting:
                left -= 1
                if not left:
                    _remove(store)

    return [replace(job, run=counted, args=(job.run, *job.args)) for job in jobs]


def _jobs(
    sources: Sequence[Source], archive: SevenZip, records: Sequence[Record], inside: str, whole: Whole
) -> list[Job]:
    """Ranges of what is stored; the rest is `whole`'s."""
    found, finders = _find(sources, archive, records, inside)
    zips = [entry for entry in archive.entries if _is_zip(entry) and not entry.link]
    if not found and zips:  # an archive around an archive
        largest = max(zips, key=lambda entry: entry.size)
        block = archive.blocks[largest.block]
        if block.stored:
            inner = ZipFile(Span(archive.file, largest.offset, largest.size))
            return _zip_jobs(sources, inner, records, _below(inside, largest))
        if block.refusal is not None:
            expected = f"a member {largest.name!r} to unpack"
            raise archive.file.error("corrupt", expected, block.refusal, archive.file.remedy)
        return whole([largest], records)
    errors: dict[str, FetchError] = {}
    for key, finder in finders.items():
        lacking = [record for record in records if record.file not in found and source_of(record.file)[0] == key]
        errors |= all_unmatched(finder, lacking, archive.file.error, archive.file.remedy)
    stored: dict[str, Entry] = {}
    packed: list[Record] = []
    for record in records:
        entry = found.get(record.file)
        if entry is None:
            continue
        if (error := archive.unreadable(entry)) is not None:
            errors[record.file] = error
        elif archive.blocks[entry.block].stored:
            stored[record.file] = entry
        else:
            packed.append(record)
    jobs = [Job(tuple(p for p, _ in r.members), archive.read, (r,), r.held_bytes) for r in plan_runs(stored)]
    if packed:
        try:
            jobs += whole([found[record.file] for record in packed], packed)
        except Fatal:
            raise
        except FetchError as error:
            errors |= dict.fromkeys((record.file for record in packed), error)
    return [*jobs, *failing(errors)]


def _is_zip(entry: Entry) -> bool:
    return entry.name.lower().endswith(".zip")


def _inside(folders: Sequence[str]) -> str:
    """Where the members of an archive lie that fills these top folders, if that is sure."""
    return folders[0] if len(folders) == 1 else ""


def _below(inside: str, inner: Entry) -> str:
    """Where the members of an inner archive lie."""
    return f"{inside}/{inner.name[: -len('.zip')]}"


def _find(
    sources: Sequence[Source], archive: SevenZip, records: Sequence[Record], inside: str
) -> tuple[dict[str, Entry], dict[str, Finder[Entry]]]:
    """Which members are which images, and what looked for those of each source."""
    finders: dict[str, Finder[Entry]] = {}
    for source in sources:
        wanted = [record.file for record in records if source_of(record.file)[0] == source.key]
        finders[source.key] = Finder(source, wanted, {}, inside)
    for entry in archive.entries:
        name = entry.name.encode("utf-8", errors="surrogatepass")
        for finder in finders.values():
            if finder.may_want(name):
                if entry.link:
                    finder.refuse(entry.name, "a symbolic link", entry)
                else:
                    finder.offer(entry.name, entry)
    return {path: entry for finder in finders.values() for path, entry in finder.found().items()}, finders


def _zip_jobs(sources: Sequence[Source], archive: ZipFile, records: Sequence[Record], inside: str) -> list[Job]:
    jobs = []
    for source in sources:
        own = [record for record in records if source_of(record.file)[0] == source.key]
        finder: Finder[Member] = Finder(source, [record.file for record in own], {}, inside)
        jobs += zip_jobs(archive, archive.find(finder), finder, own)
    return jobs
