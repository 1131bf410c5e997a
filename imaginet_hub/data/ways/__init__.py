"""Every way to get files, as jobs: the user's own, single files, members of archives by range, whole archives."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from imaginet_hub.data.plan import Part
from imaginet_hub.data.sources import PACKED
from imaginet_hub.data.ways.own import own_ways
from imaginet_hub.data.ways.parquet import ParquetWay
from imaginet_hub.data.ways.sevenzip import SevenZipWay, forget_downloads
from imaginet_hub.data.ways.single import faces_jobs, files_jobs, kaggle_jobs
from imaginet_hub.data.ways.streamed import StreamWay
from imaginet_hub.data.ways.tars import tars_jobs
from imaginet_hub.data.ways.way import Tools, Way, top_folder
from imaginet_hub.data.ways.zipped import ZipWay

__all__ = ["Tools", "Way", "forget_downloads", "packed_way", "top_folder", "ways_of"]


def ways_of(tools: Tools, part: Part) -> Iterator[Way]:
    """In the order in which to try them; all but the packed release, which several parts share."""
    source = part.source
    yield from own_ways(tools, source, part.own)
    for route in part.routes:
        if route.name == PACKED:
            continue
        match route.reader:
            case "files":
                yield Way(route.name, route.folders, functools.partial(files_jobs, tools, source, route))
            case "drive-files":
                yield Way(route.name, route.folders, functools.partial(faces_jobs, tools, source))
            case "kaggle-files":
                yield Way(route.name, route.folders, functools.partial(kaggle_jobs, tools, source, route))
            case "zip":
                for archive in route.archives:
                    yield Way(route.name, archive.folders, ZipWay(tools, source, route.name, archive).jobs)
            case "7z":
                for archive in route.archives:
                    seven = SevenZipWay(tools, (source,), route.name, archive)
                    yield Way(route.name, archive.folders, seven.jobs, after=seven.after)
            case "tgz":
                for archive in route.archives:
                    yield Way(route.name, archive.folders, StreamWay(tools, source, archive).jobs)
            case "parquet":
                for archive in route.archives:
                    yield Way(route.name, archive.folders, ParquetWay(tools, source, route.name, archive).jobs)
            case "tars":
                for archive in route.archives:
                    yield Way(route.name, archive.folders, functools.partial(tars_jobs, tools, source, archive))


def packed_way(tools: Tools, parts: Sequence[Part]) -> Way | None:
    """The packed release, for all parts that may use it at once; None if none may."""
    shared = [(part.source, route) for part in parts for route in part.routes if route.name == PACKED]
    if not shared:
        return None
    sources = tuple(source for source, _ in shared)
    seven = SevenZipWay(tools, sources, PACKED, shared[0][1].archives[0])
    folders = tuple(folder for source in sources for folder in source.folders)
    return Way(PACKED, folders, seven.jobs, after=seven.after)
