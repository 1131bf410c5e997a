"""Every way to get files of a source, as jobs: the user's own, single files, ZIP members by range."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from imaginet_hub.data.faces import INDEX_FILE, Faces
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.plan import OWN, Part
from imaginet_hub.data.readers import local
from imaginet_hub.data.readers.files import LocalFile, RemoteFile
from imaginet_hub.data.readers.hosts import Endpoints, remote_for
from imaginet_hub.data.readers.http import Http, Remote, Response
from imaginet_hub.data.readers.zips import MAX_MEMBER_BYTES, Member, ZipFile, plan_runs
from imaginet_hub.data.sources import Archive, Route, Source
from imaginet_hub.data.workers import Delivery, Fatal, Job, Memory
from imaginet_hub.errors import FetchError

__all__ = ["Way", "Ways", "top_folder"]


@dataclass(frozen=True)
class Way:
    """One way to get files of a source.

    Attributes:
        name: of the route, or `own`.
        folders: top folders of ROOT that it can fill.
        jobs: what to do for these records.
        retries: whether damaged bytes may come right when asked for again.
    """

    name: str
    folders: tuple[str, ...]
    jobs: Callable[[Sequence[Record]], list[Job]]
    retries: bool = True


class Ways:
    """The ways of one fetch.

    Args:
        http: the client.
        endpoints: where hosts are.
        faces: what is known of FFHQ's.
        memory: how much threads may hold together.
    """

    def __init__(self, http: Http, endpoints: Endpoints, faces: Faces, memory: Memory) -> None:
        self._http = http
        self._endpoints = endpoints
        self._faces = faces
        self._memory = memory

    def of(self, part: Part) -> Iterator[Way]:
        """In the order in which to try them."""
        source = part.source
        for path in part.own:
            # One place after another: archives in a folder may hold the same files.
            for place in (path, *local.archives_in(path)):
                yield Way(OWN, source.folders, functools.partial(self._own, source, place), retries=False)
                yield Way(OWN, source.folders, functools.partial(self._own_inner, source, place), retries=False)
        for route in part.routes:
            match route.reader:
                case "files":
                    yield Way(route.name, route.folders, functools.partial(self._files, source, route))
                case "drive-files":
                    yield Way(route.name, route.folders, functools.partial(self._faces_by_id, source))
                case "zip":
                    for archive in route.archives:
                        reader = _ZipWay(self._http, self._endpoints, self._faces, source, archive)
                        yield Way(route.name, archive.folders, reader.jobs)

    def _files(self, source: Source, route: Route, records: Sequence[Record]) -> list[Job]:
        """One request an image."""

        def job(record: Record) -> Iterator[Delivery]:
            remote = remote_for(f"{route.address}{record.file}", source.key, self._endpoints)
            with self._reading(remote) as (data, response):
                promised = _s3_md5(response)
                if promised is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != promised:
                    raise remote.error("corrupt", f"MD5 {promised}", "other bytes", remote.other_ways())
                yield record.file, data

        return [Job((record.file,), job, (record,)) for record in records]

    def _faces_by_id(self, source: Source, records: Sequence[Record]) -> list[Job]:
        """One request a face, by the Drive id of upstream's list."""
        listed = self._faces.required()

        def job(record: Record) -> Iterator[Delivery]:
            face = listed.get(record.file)
            if face is None:
                remedy = f"see --from {source.key}=PATH"
                raise FetchError("missing", source.key, record.path, "a line in the FFHQ list", "none", remedy)
            with self._reading(remote_for(f"drive:{face.drive_id}", source.key, self._endpoints)) as (data, _):
                yield record.file, data

        return [Job((record.file,), job, (record,)) for record in records]

    @contextlib.contextmanager
    def _reading(self, remote: Remote) -> Iterator[tuple[bytes, Response]]:
        """A file's bytes, while there is room for them."""
        with contextlib.ExitStack() as held:

            def room(size: int) -> None:
                held.close()
                held.enter_context(self._memory.held(2 * size, self._http.check))  # in pieces, and joined

            yield self._http.read(remote, max_bytes=MAX_MEMBER_BYTES, room=room)

    def _own(self, source: Source, path: Path, records: Sequence[Record]) -> list[Job]:
        """The user's folder or archive."""
        try:
            kind = local.kind_of(path)
        except OSError as error:
            raise FetchError(
                "missing", source.key, str(path), "a folder or an archive", str(error), "check --from"
            ) from error
        aliases = self._faces.names_near(path) if source.key == "ffhq" else {}
        paths = [record.file for record in records]
        if kind == "zip":
            archive = ZipFile(LocalFile(path, source.key))
            finder: Finder[Member] = Finder(source, paths, aliases, local.inside_of(path))
            return _zip_jobs(archive, archive.find(finder), finder, records)
        if kind == "tar":
            in_tar: Finder[str] = Finder(source, paths, aliases)
            return [Job(tuple(paths), self._tar, (source, path, paths, in_tar))]
        if kind != "folder":
            what = "a 7z archive, which this version cannot read" if kind == "7z" else "another kind of file"
            raise FetchError(
                "format",
                source.key,
                str(path),
                "a folder, or a ZIP or tar archive",
                what,
                "unpack it, name its folder",
            )
        in_folder: Finder[Path] = Finder(source, paths, aliases)
        found = local.find_in_folder(path, in_folder)
        if source.key == "ffhq" and not found and not aliases and self._faces.listed and not self._faces.offline:
            # Perhaps in FFHQ's own numbering, which its index translates.
            try:
                in_folder = Finder(source, paths, self._faces.names())
                found = local.find_in_folder(path, in_folder)
            except Fatal:
                raise
            except FetchError:  # then they are not found, and the remedy says how they may be
                in_folder = Finder(source, paths)

        def job(record: Record) -> Iterator[Delivery]:
            file = found[record.file]
            with self._memory.held(file.stat().st_size if file.is_file() else 0, self._http.check):
                yield record.file, local.read_file(file, source.key)

        jobs = [Job((record.file,), job, (record,)) for record in records if record.file in found]
        rest = [record for record in records if record.file not in found]
        errors = {}
        for record in rest:
            two = in_folder.ambiguous().get(record.file)
            got, remedy = "none", "name a folder or an archive that holds it"
            if source.key == "ffhq" and not self._faces.numbered:
                remedy += f"; files in FFHQ's own numbering need {INDEX_FILE} beside them"
            if two:
                got, remedy = f"two: {two[0]} and {two[1]}", "name a narrower folder"
            errors[record.file] = FetchError(
                "missing", source.key, str(path), f"a file for {record.path}", got, remedy
            )
        return [*_failing(errors), *jobs]

    def _own_inner(self, source: Source, path: Path, records: Sequence[Record]) -> list[Job]:
        """The tar archives inside the user's ZIP archive: older downloads of ImageNet are such."""
        if not path.is_file() or local.kind_of(path) != "zip" or not local.tars_in_zip(path, source.key):
            return []
        paths = [record.file for record in records]
        return [Job(tuple(paths), local.read_tars_in_zip, (path, source, paths, self._http.check))]

    def _tar(self, source: Source, path: Path, paths: Sequence[str], finder: Finder[str]) -> Iterator[Delivery]:
        """The members of a tar archive, and which ones it lacks."""
        left = dict.fromkeys(paths)
        for found, result in local.read_tar(path, source.key, finder, check=self._http.check):
            left.pop(found, None)
            yield found, result
        for lacking in left:
            expected, remedy = f"a member for {lacking}", "name an archive that holds it"
            yield lacking, FetchError("missing", source.key, str(path), expected, "none", remedy)


def _zip_jobs(
    archive: ZipFile, found: Mapping[str, Member], finder: Finder[Member], records: Sequence[Record]
) -> list[Job]:
    """Ranges to read, and what is wrong with members that are not worth reading."""
    ambiguous = finder.ambiguous()
    members, errors = {}, {}
    for record in records:
        path = record.file
        error = archive.unreadable(found[path]) if path in found else None
        if path not in found:
            two = ambiguous.get(path)
            got = f"two: {two[0]!r} and {two[1]!r}" if two else "none"
            error = archive.file.error("missing", f"a member for {record.path}", got, archive.file.remedy)
        if error is None:
            members[path] = found[path]
        else:
            errors[path] = error
    return [
        *_failing(errors),
        *(Job(tuple(p for p, _ in run.members), archive.read, (run,), run.held_bytes) for run in plan_runs(members)),
    ]


class _ZipWay:
    """An archive at a host. Its directory is read once, and again if the archive changes."""

    def __init__(self, http: Http, endpoints: Endpoints, faces: Faces, source: Source, archive: Archive) -> None:
        self._http = http
        self._endpoints = endpoints
        self._faces = faces
        self._source = source
        self._address = archive.address
        self._folders = archive.folders
        self._opened: tuple[ZipFile, dict[str, Member], Finder[Member]] | None = None

    def jobs(self, records: Sequence[Record]) -> list[Job]:
        if self._opened is not None:
            archive, found, finder = self._opened
            try:
                archive.file.size()
            except FetchError as error:
                if error.reason != "changed":
                    raise
                self._opened = None
        if self._opened is None:
            aliases = {}
            if self._source.key == "ffhq":  # whose index is of no use without upstream's list
                self._faces.required()
                aliases = self._faces.names()
            remote = remote_for(self._address, self._source.key, self._endpoints)
            archive = ZipFile(RemoteFile(self._http, remote))
            inside = self._folders[0] if len(self._folders) == 1 else ""
            finder = Finder(self._source, [record.file for record in records], aliases, inside)
            found = archive.find(finder)
            self._opened = archive, found, finder
        return _zip_jobs(archive, found, finder, records)


def _failing(errors: Mapping[str, FetchError]) -> list[Job]:
    """What is known to fail, as a job among jobs."""
    return [Job(tuple(errors), iter, (errors.items(),))] if errors else []


def top_folder(record: Record) -> str:
    return PurePosixPath(record.file).parts[0]


def _s3_md5(response: Response) -> str | None:
    """S3 names an object that was uploaded in one piece by its MD5."""
    headers = response.headers
    is_s3 = headers.get("server") == "AmazonS3" or "x-amz-request-id" in headers
    etag = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("etag", ""))
    keyed = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    return etag[1] if is_s3 and etag and not keyed else None
