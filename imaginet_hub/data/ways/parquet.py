"""Images in Parquet files at a host: names first, then the row groups that hold wanted ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder, imagenet_basename
from imaginet_hub.data.readers.files import File, RemoteFile
from imaginet_hub.data.readers.hosts import hub_files, remote_for
from imaginet_hub.data.readers.parquet import ParquetImages
from imaginet_hub.data.sources import Archive, Source
from imaginet_hub.data.units import human_bytes
from imaginet_hub.data.ways.way import Tools, all_unmatched, failing
from imaginet_hub.data.workers import Job
from imaginet_hub.errors import FetchError

__all__ = ["ParquetWay", "Row", "parquet_jobs"]


@dataclass(frozen=True)
class Row:
    """Where an image is."""

    file: int
    group: int
    row: int


class _Shard:
    """A Parquet file, and which of its names may be wanted. The names are read once.

    Attributes:
        images: it, once its names were read.
        names: of what may be wanted, by row and row group.
        groups: how many row groups it has.
        trouble: why its names could not be read.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.images: ParquetImages | None = None
        self.names: list[tuple[int, dict[int, str]]] = []
        self.groups = 0
        self.trouble: FetchError | None = None

    def look(self, finder: Finder[Row]) -> None:
        """Read the names, if that has not been done."""
        if self.images is not None:
            return
        try:
            images, names, groups = ParquetImages(self.file), [], 0
            for group, stored in images.names():
                wanted = {
                    row: name
                    for row, name in enumerate(stored)
                    if name is not None and finder.may_want(name.encode(errors="surrogateescape"))
                }
                groups += 1
                if wanted:
                    names.append((group, wanted))
            self.images, self.names, self.groups, self.trouble = images, names, groups, None
        except FetchError as error:
            self.trouble = error

    @property
    def usable(self) -> bool:
        """Whether its names are known, and those of the file that is there now as far as anybody has seen."""
        if self.images is None:
            return False
        try:
            if isinstance(self.file, RemoteFile):
                self.file.remote.check_version()
        except FetchError:
            return False
        return True


class ParquetWay:
    """A folder of Parquet files of a dataset repository on the Hub.

    Their names are read once, and again of those that change or could not be read.
    """

    def __init__(self, tools: Tools, source: Source, route: str, archive: Archive) -> None:
        self._tools = tools
        self._source = source
        self._route = route
        self._address = archive.address
        self._shards: dict[str, _Shard] = {}

    def jobs(self, records: Sequence[Record]) -> list[Job]:
        for path in self._shards or dict.fromkeys(self._paths(records)):
            if path not in self._shards or not self._shards[path].usable:
                remote = remote_for(f"hf:{path}", self._source.key, self._tools.endpoints)
                self._shards[path] = _Shard(RemoteFile(self._tools.http, remote))
        return _jobs(self._tools, self._source, self._route, list(self._shards.values()), records)

    def _paths(self, records: Sequence[Record]) -> list[str]:
        """The files that may hold images, with their repository before them."""
        owner, name, folder = self._address.removeprefix("hf:").split("/", 2)
        repo = f"{owner}/{name}"
        listed = hub_files(self._tools.http, repo, self._source.key, self._tools.endpoints)
        splits = sorted({_split(record.file) for record in records})
        begins = tuple(f"{folder}/{split}" for split in splits)
        paths = [path for path in sorted(listed) if path.startswith(begins) and path.endswith(".parquet")]
        if not paths:
            here = remote_for(f"{self._address}/", self._source.key, self._tools.endpoints)
            expected = f"Parquet files {', '.join(f'{begin}-*.parquet' for begin in begins)}"
            raise here.error("missing", expected, "none", here.other_ways())
        return [f"{repo}/{path}" for path in paths]


def parquet_jobs(
    tools: Tools, source: Source, route: str, files: Sequence[File], records: Sequence[Record]
) -> list[Job]:
    """Read the names in all files, then make a job of each row group that holds something wanted."""
    return _jobs(tools, source, route, [_Shard(file) for file in files], records)


def _jobs(tools: Tools, source: Source, route: str, shards: Sequence[_Shard], records: Sequence[Record]) -> list[Job]:
    finder: Finder[Row] = Finder(source, [record.file for record in records])

    def look(shard: _Shard) -> None:
        refused = next((s.trouble for s in shards if s.trouble is not None and s.trouble.reason == "access"), None)
        if refused is not None and not any(s.images for s in shards):
            shard.trouble = refused  # whoever may not read one of them may read none
        else:
            shard.look(finder)

    if shards:
        look(shards[0])
    tools.workers.each([functools.partial(look, shard) for shard in shards[1:]])
    for number, shard in enumerate(shards):
        for group, names in shard.names:
            for row, stored in names.items():
                finder.offer(stored, Row(number, group, row))
    found = finder.found()
    lacking = [record for record in records if record.file not in found]
    trouble = next((shard.trouble for shard in shards if shard.trouble is not None), None)
    if trouble is not None:
        errors = {record.file: trouble for record in lacking}
    else:
        errors = all_unmatched(finder, lacking, shards[0].file.error, shards[0].file.remedy)
    wanted: dict[tuple[int, int], dict[int, str]] = {}
    for path, place in found.items():
        wanted.setdefault((place.file, place.group), {})[place.row] = path
    jobs, moved = [], 0
    for (number, group), rows in sorted(wanted.items()):
        images = shards[number].images
        if images is not None:
            size = images.bytes_of(group)
            moved += size
            jobs.append(Job(tuple(rows.values()), images.read, (group, rows), 3 * size))
    if moved:
        tools.say(
            f"{source.key} by {route}: {len(found):,} images lie in {len(jobs):,} of "
            f"{sum(shard.groups for shard in shards):,} row groups; {human_bytes(moved)} to move"
        )
    return [*jobs, *failing(errors)]


def _split(file: str) -> str:
    """Which files hold an image of ImageNet, by the beginning of their names."""
    name = imagenet_basename(file) or ""
    return {"ILSVRC2012_val": "validation", "ILSVRC2012_test": "test"}.get(name.rpartition("_")[0], "train")
