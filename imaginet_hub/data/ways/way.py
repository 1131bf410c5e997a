"""What a way to get images is, and what all ways share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from imaginet_hub.data.faces import Faces
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.readers.hosts import Endpoints
from imaginet_hub.data.readers.http import Http
from imaginet_hub.data.readers.runs import plan_runs
from imaginet_hub.data.readers.zips import Member, ZipFile
from imaginet_hub.data.workers import Delivery, Job, Workers
from imaginet_hub.errors import FetchError

__all__ = ["Tools", "Way", "all_unmatched", "failing", "top_folder", "zip_jobs"]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Way:
    """One way to get files.

    Attributes:
        name: of the route, or `own`.
        folders: top folders of ROOT that it can fill.
        jobs: what to do for these records.
        retries: whether damaged bytes may come right when asked for again.
        after: to be called when everything that could come has come.
    """

    name: str
    folders: tuple[str, ...]
    jobs: Callable[[Sequence[Record]], list[Job]]
    retries: bool = True
    after: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Tools:
    """What the ways of one fetch work with.

    Attributes:
        root: ROOT.
        http: the client.
        endpoints: where hosts are.
        faces: what is known of FFHQ's.
        workers: the threads.
        say: is told what the user should know.
        chosen: sources whose route the user named; such a route may cost what it costs.
        limited: whether more is listed than this fetch asks for.
    """

    root: Path
    http: Http
    endpoints: Endpoints
    faces: Faces
    workers: Workers
    say: Callable[[str], None]
    chosen: frozenset[str] = frozenset()
    limited: bool = False


def top_folder(record: Record) -> str:
    return PurePosixPath(record.file).parts[0]


def failing(errors: Mapping[str, FetchError]) -> list[Job]:
    """What is known to fail, as a job: the last one, for after many failures in a row no other job is begun."""
    return [Job(tuple(errors), _each, (errors,))] if errors else []


def _each(errors: Mapping[str, FetchError]) -> Iterator[Delivery]:
    yield from errors.items()


def all_unmatched(
    finder: Finder[Any], records: Sequence[Record], error: Callable[[str, str, str, str], FetchError], remedy: str
) -> dict[str, FetchError]:
    """Why an archive gives nothing for any of these records, by path."""
    errors, refusals, ambiguous = {}, finder.refusals(), finder.ambiguous()
    for record in records:
        expected = f"a member for {record.path}"
        if record.file in refusals:
            errors[record.file] = error("corrupt", expected, refusals[record.file][0], remedy)
        else:
            two = ambiguous.get(record.file)
            got = f"two: {two[0]!r} and {two[1]!r}" if two else "none"
            errors[record.file] = error("missing", expected, got, remedy)
    return errors


def zip_jobs(
    archive: ZipFile, found: Mapping[str, Member], finder: Finder[Member], records: Sequence[Record]
) -> list[Job]:
    """Ranges to read, and what is wrong with members that are not worth reading."""
    members: dict[str, Member] = {}
    lacking = [record for record in records if record.file not in found]
    errors = all_unmatched(finder, lacking, archive.file.error, archive.file.remedy)
    for record in records:
        path = record.file
        if path not in found:
            continue
        if (error := archive.unreadable(found[path])) is not None:
            errors[path] = error
        else:
            members[path] = found[path]
    return [
        *(Job(tuple(p for p, _ in run.members), archive.read, (run,), run.held_bytes) for run in plan_runs(members)),
        *failing(errors),
    ]
