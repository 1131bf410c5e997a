"""What the user already has: folders, archives, archives in archives."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from imaginet_hub.data.faces import INDEX_FILE
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.plan import OWN
from imaginet_hub.data.readers import local
from imaginet_hub.data.readers.files import File, LocalFile, Volumes
from imaginet_hub.data.readers.sevenzip import SevenZip
from imaginet_hub.data.readers.zips import Member, ZipFile
from imaginet_hub.data.sources import Source
from imaginet_hub.data.ways.parquet import parquet_jobs
from imaginet_hub.data.ways.sevenzip import find_volumes, local_jobs
from imaginet_hub.data.ways.way import Tools, Way, failing, zip_jobs
from imaginet_hub.data.workers import Delivery, Fatal, Job
from imaginet_hub.errors import FetchError

__all__ = ["own_ways"]


def own_ways(tools: Tools, source: Source, paths: Sequence[Path]) -> Iterator[Way]:
    """One place after another: archives in a folder may hold the same files."""
    for path in paths:
        for place in (path, *local.archives_in(path)):
            yield Way(OWN, source.folders, functools.partial(_jobs, tools, source, place), retries=False)
            if _is_zip(place):
                yield Way(OWN, source.folders, functools.partial(_inner_jobs, tools, source, place), retries=False)
        tables: list[File] = [LocalFile(file, source.key) for file in local.parquet_in(path)]
        if tables:
            yield Way(OWN, source.folders, functools.partial(parquet_jobs, tools, source, OWN, tables), retries=False)


def _is_zip(path: Path) -> bool:
    try:
        return local.kind_of(path) == "zip"
    except OSError:  # `_jobs` says so
        return False


def _jobs(tools: Tools, source: Source, path: Path, records: Sequence[Record]) -> list[Job]:
    """The user's folder or archive."""
    try:
        kind = local.kind_of(path)
        beside = [file.name for file in path.absolute().parent.iterdir()] if kind == "7z" else []
    except OSError as error:
        raise FetchError(
            "missing", source.key, str(path), "a folder or an archive that can be read", str(error), "check --from"
        ) from error
    aliases = tools.faces.names_near(path) if source.key == "ffhq" else {}
    paths = [record.file for record in records]
    if kind == "zip":
        archive = ZipFile(LocalFile(path, source.key))
        finder: Finder[Member] = Finder(source, paths, aliases, local.inside_of(path))
        return zip_jobs(archive, archive.find(finder), finder, records)
    if kind == "tar":
        in_tar: Finder[str] = Finder(source, paths, aliases)
        return [Job(tuple(paths), _tar, (tools, source, path, paths, in_tar))]
    if kind == "7z":
        names, lacking = find_volumes(beside, path.name)
        volumes = [LocalFile(path.with_name(name), source.key) for name in names]
        if lacking is not None:
            remedy = "put all volumes into one folder, name the first"
            raise FetchError("missing", source.key, str(path), "all volumes of the archive", lacking, remedy)
        return local_jobs(tools, (source,), SevenZip(Volumes(volumes)), path, records, source.folders)
    if kind == "parquet":
        return parquet_jobs(tools, source, OWN, [LocalFile(path, source.key)], records)
    if kind != "folder":
        expected, remedy = "a folder, or a ZIP, tar, 7z or Parquet file", "unpack it, name its folder"
        raise FetchError("format", source.key, str(path), expected, "another kind of file", remedy)
    in_folder: Finder[Path] = Finder(source, paths, aliases)
    found = local.find_in_folder(path, in_folder)
    if source.key == "ffhq" and not found and not aliases and tools.faces.listed and not tools.faces.offline:
        # Perhaps in FFHQ's own numbering, which its index translates.
        try:
            in_folder = Finder(source, paths, tools.faces.names())
            found = local.find_in_folder(path, in_folder)
        except Fatal:
            raise
        except FetchError:  # then they are not found, and the remedy says how they may be
            in_folder = Finder(source, paths)

    def job(record: Record) -> Iterator[Delivery]:
        file = found[record.file]
        with tools.workers.memory.held(file.stat().st_size if file.is_file() else 0, tools.http.check):
            yield record.file, local.read_file(file, source.key)

    jobs = [Job((record.file,), job, (record,)) for record in records if record.file in found]
    rest = [record for record in records if record.file not in found]
    errors, ambiguous = {}, in_folder.ambiguous()
    for record in rest:
        two = ambiguous.get(record.file)
        got, remedy = "none", "name a folder or an archive that holds it"
        if source.key == "ffhq" and not tools.faces.numbered:
            remedy += f"; files in FFHQ's own numbering need {INDEX_FILE} beside them"
        if two:
            got, remedy = f"two: {two[0]} and {two[1]}", "name a narrower folder"
        errors[record.file] = FetchError("missing", source.key, str(path), f"a file for {record.path}", got, remedy)
    return [*failing(errors), *jobs]


def _inner_jobs(tools: Tools, source: Source, path: Path, records: Sequence[Record]) -> list[Job]:
    """The tar archives inside the user's ZIP archive: older downloads of ImageNet are such."""
    if not local.tars_in_zip(path, source.key):
        return []
    paths = [record.file for record in records]
    return [Job(tuple(paths), local.read_tars_in_zip, (path, source, paths, tools.http.check))]


def _tar(tools: Tools, source: Source, path: Path, paths: Sequence[str], finder: Finder[str]) -> Iterator[Delivery]:
    """The members of a tar archive, and which ones it lacks."""
    left = dict.fromkeys(paths)
    for found, result in local.read_tar(path, source.key, finder, check=tools.http.check):
        left.pop(found, None)
        yield found, result
    for lacking in left:
        expected, remedy = f"a member for {lacking}", "name an archive that holds it"
        yield lacking, FetchError("missing", source.key, str(path), expected, "none", remedy)
