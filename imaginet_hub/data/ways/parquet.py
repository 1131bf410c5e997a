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
from imaginet_hub.data.ways.way import Tools, failing, unmatched
from imaginet_hub.data.workers import Job
from imaginet_hub.errors import FetchError

__all__ = ["ParquetWay", "Row", "parquet_jobs"]


@dataclass(frozen=True)
class Row:
    """Where an image is."""

    file: int
    group: int
    row: int


class ParquetWay:
    """A folder of Parquet files of a dataset repository on the Hub."""

    def __init__(self, tools: Tools, source: Source, route: str, archive: Archive) -> None:
        self._tools = tools
        self._source = source
        self._route = route
        self._address = archive.address

    def jobs(self, records: Sequence[Record]) -> list[Job]:
        owner, name, folder = self._address.removeprefix("hf:").split("/", 2)
        repo = f"{owner}/{name}"
        listed = hub_files(self._tools.http, repo, self._source.key, self._tools.endpoints)
        splits = {_split(record.file) for record in records}
        names = [
            path
            for path in sorted(listed)
            if path.startswith(f"{folder}/")
            and path.endswith(".parquet")
            and path.removeprefix(f"{folder}/").startswith(tuple(splits))
        ]
        remotes = [remote_for(f"hf:{repo}/{path}", self._source.key, self._tools.endpoints) for path in names]
        if not remotes:
            here = remote_for(f"{self._address}/", self._source.key, self._tools.endpoints)
            expected = f"Parquet files {', '.join(sorted(f'{folder}/{split}-*.parquet' for split in splits))}"
            raise here.error("missing", expected, "none", here.other_ways())
        files = [RemoteFile(self._tools.http, remote) for remote in remotes]
        return parquet_jobs(self._tools, self._source, self._route, files, records)


def parquet_jobs(
    tools: Tools, source: Source, route: str, files: Sequence[File], records: Sequence[Record]
) -> list[Job]:
    """Read the names in all files, then make a job of each row group that holds something wanted."""
    images: dict[int, ParquetImages] = {}
    names: dict[int, list[tuple[int, list[str | None]]]] = {}
    troubles: dict[int, FetchError] = {}

    def look(number: int) -> None:
        try:
            opened = ParquetImages(files[number])
            names[number] = list(opened.names())
            images[number] = opened
        except FetchError as error:
            troubles[number] = error

    tools.workers.each([functools.partial(look, number) for number in range(len(files))])
    finder: Finder[Row] = Finder(source, [record.file for record in records])
    for number in sorted(images):
        for group, rows in names[number]:
            for row, stored in enumerate(rows):
                if stored is not None and finder.may_want(stored.encode(errors="surrogateescape")):
                    finder.offer(stored, Row(number, group, row))
    found = finder.found()
    trouble = next((troubles[number] for number in sorted(troubles)), None)
    errors = {}
    for record in records:
        if record.file not in found:
            errors[record.file] = trouble or unmatched(finder, record, files[0].error, files[0].remedy)
    groups: dict[tuple[int, int], dict[int, str]] = {}
    for path, place in found.items():
        groups.setdefault((place.file, place.group), {})[place.row] = path
    moved = sum(images[file].bytes_of(group) for file, group in groups)
    if moved:
        every = sum(len(names[number]) for number in images)
        tools.say(
            f"{source.key} by {route}: {len(found):,} images lie in {len(groups):,} of {every:,} row groups; "
            f"{human_bytes(moved)} to move"
        )
    jobs = [
        Job(tuple(rows.values()), images[file].read, (group, rows), 3 * images[file].bytes_of(group))
        for (file, group), rows in sorted(groups.items())
    ]
    return [*failing(errors), *jobs]


def _split(file: str) -> str:
    """Which files hold an image of ImageNet, by the beginning of their names."""
    name = imagenet_basename(file) or ""
    return {"ILSVRC2012_val": "validation", "ILSVRC2012_test": "test"}.get(name.rpartition("_")[0], "train")
