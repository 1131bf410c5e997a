"""Fill a ROOT: plan (pure, see `data.plan`), then act. The only downloader.

Every file is verified by the strongest thing that is known of it (SHA-256 or pixel MD5 of a list, CRC-32 of a ZIP, MD5
of S3, and always a complete decode) before it gets its name; then it is entered in the ledger. A fetch that was
killed goes on where it was: what has its name is complete.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import filelock
import numpy as np
from datasets.utils import tqdm
from PIL import Image

from imaginet_hub.data import ledger as ledgers
from imaginet_hub.data.access import credentials, offline
from imaginet_hub.data.images import examine, read_bytes
from imaginet_hub.data.ledger import Entry, Ledger, read_ledger
from imaginet_hub.data.lists import Face, Lists, find_faces, find_lists
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.matching import Finder
from imaginet_hub.data.mini import labelled
from imaginet_hub.data.plan import OWN, OnDisk, Options, Part, Plan, human_bytes, make_plan
from imaginet_hub.data.readers import local
from imaginet_hub.data.readers.hosts import Endpoints, remote_for
from imaginet_hub.data.readers.http import Cancelled, Http, Limits, Remote, Response
from imaginet_hub.data.readers.zips import MAX_MEMBER_BYTES, LocalFile, Member, RemoteFile, ZipFile, plan_runs
from imaginet_hub.data.sources import FFHQ_INDEX, KNOWN_CORRUPT, Archive, Route, Source, source_named
from imaginet_hub.errors import AnnotationError, DataNotFoundError, FetchError, ImageError, UsageError

__all__ = ["MAX_WORKERS", "Summary", "fetch", "plan_fetch"]

MAX_WORKERS = 16
#: A route that fails so often in a row, for reasons that are not the file's own, is given up for this run.
_ENOUGH = 5
_SHARED_REASONS = ("network", "access", "quota", "status", "format", "range")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.incomplete")
_SHOWN = 10
#: Members of archives that may be in memory at a time, all threads together (images that are merely large: ten or so).
_HELD_BYTES = 64 * 1024**2
_INDEX_FILE = "ffhq-dataset-v2.json"
_HOSTILE = (OSError, ValueError, ArithmeticError, LookupError, EOFError, MemoryError, struct.error, zlib.error)

Delivery = tuple[str, bytes | FetchError]


@dataclass(frozen=True)
class Job:
    """Work for one thread: which files it will give, how, and what that holds in memory (where it may be much)."""

    paths: tuple[str, ...]
    run: Callable[..., Iterator[Delivery]]
    args: tuple[Any, ...] = ()
    held_bytes: int = 0


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


@dataclass
class Summary:
    """What a fetch did.

    Attributes:
        root: ROOT.
        plan: what it set out to do.
        fetched: files that came in, by source.
        found: files that were there already and were verified now.
        missing: path -> why it is not here; planned ones only.
        known_corrupt: paths that every known copy of their source holds damaged (`sources.KNOWN_CORRUPT`).
        bytes_moved: body bytes that crossed the network.
        remarks: what the user should know.
    """

    root: Path
    plan: Plan
    fetched: Counter[str] = field(default_factory=Counter)
    found: int = 0
    missing: dict[str, FetchError] = field(default_factory=dict)
    known_corrupt: dict[str, FetchError] = field(default_factory=dict)
    bytes_moved: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for is here (but for files that are damaged everywhere)."""
        return not self.missing

    def text(self) -> str:
        """The summary for people."""
        here = self.plan.verified + sum(self.fetched.values())
        lines = [
            f"{self.root}: {here:,} of {self.plan.listed:,} images are here; {sum(self.fetched.values()):,} came in, "
            f"{human_bytes(self.bytes_moved)} crossed the network"
        ]
        if self.known_corrupt:
            lines.append(f"left out, damaged in every known copy: {', '.join(sorted(self.known_corrupt))}")
        if self.missing:
            lines.append(f"missing: {len(self.missing):,}, listed in {self.root / ledgers.FOLDER / 'missing.txt'}")
            groups = Counter((e.source, e.reason) for e in self.missing.values())
            for (source, reason), count in groups.most_common(_SHOWN):
                example = next(e for e in self.missing.values() if (e.source, e.reason) == (source, reason))
                lines.append(f"  {count:,} {reason}: {example}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON values."""
        return {
            "root": str(self.root),
            "listed": self.plan.listed,
            "verified_before": self.plan.verified,
            "found": self.found,
            "fetched": dict(self.fetched),
            "bytes_moved": self.bytes_moved,
            "complete": self.complete,
            "known_corrupt": sorted(self.known_corrupt),
            "missing": [
                {"path": path, "source": error.source, "reason": error.reason, "message": str(error)}
                for path, error in self.missing.items()
            ],
            "remarks": list(self.remarks),
        }


def _options(
    only: Sequence[str],
    limit: int | None,
    own: Mapping[str, Any] | None,
    routes: Mapping[str, str] | None,
) -> Options:
    paths: dict[str, tuple[Path, ...]] = {}
    for key, given in (own or {}).items():
        each = [given] if isinstance(given, str | os.PathLike) else list(given)
        paths[key] = tuple(Path(path).expanduser() for path in each)
    options = Options(tuple(only), limit, paths, dict(routes or {}), credentials(), offline())
    for key, several in paths.items():
        for path in several:
            if not path.exists():
                raise DataNotFoundError(f"--from {key}={path}: expected a folder or an archive, found nothing")
    return options


def plan_fetch(
    root: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    split: str | None = None,
    own: Mapping[str, Any] | None = None,
    routes: Mapping[str, str] | None = None,
    limit: int | None = None,
    endpoints: Mapping[str, str] | None = None,
) -> tuple[Plan, tuple[str, ...]]:
    """What `fetch` would do, and remarks on the lists; nothing is written. The arguments are those of `fetch`."""
    options = _options(only, limit, own, routes)
    with Http() as http, tempfile.TemporaryDirectory() as store:
        lists = find_lists(
            Path(root).expanduser(),
            None if annotations is None else Path(annotations).expanduser(),
            split,
            http,
            Endpoints.resolve(endpoints),
            store=Path(store),
            offline=options.offline,
        )
    return make_plan(lists.manifest.records, _look(Path(root).expanduser(), lists), options), lists.remarks


def fetch(
    root: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    split: str | None = None,
    own: Mapping[str, Any] | None = None,
    routes: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_workers: int = MAX_WORKERS,
    endpoints: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    show: Callable[[str], None] | None = None,
    confirm: Callable[[Plan], None] | None = None,
) -> Summary:
    """Fill a ROOT in upstream's layout.

    Args:
        root: the folder to fill; made if absent.
        annotations: a list, a table or a folder of lists; by default what ROOT carries, else upstream's own.
        only: keys of sources; by default all.
        split: one split; by default all.
        own: folders and archives that you have, by source: a path or several.
        routes: the one route to use, by source.
        limit: the first so many missing files per source, in list order.
        max_workers: connections (and threads) at a time.
        endpoints: base addresses by host (coco, github, drive, hf), before IMAGINET_ENDPOINTS and HF_ENDPOINT.
        limits: how patient to be with hosts.
        show: is given the plan and remarks as text.
        confirm: is given the plan before the first byte; raises to stop.

    Returns:
        What came of it. Files that could not be had are in its `missing`; they do not raise.

    Raises:
        UsageError, AnnotationError, DataNotFoundError: see `plan_fetch`.
        FetchError: the lists could not be had, ROOT cannot be written, another fetch is at work there, or there is
            not enough disk.
    """
    base = Path(root).expanduser()
    options = _options(only, limit, own, routes)
    where = Endpoints.resolve(endpoints)
    if max_workers < 1:
        raise UsageError(f"max_workers: expected a positive number, got {max_workers}")
    with Http(max_connections=max_workers, limits=limits) as http, _claimed(base):
        lists = find_lists(
            base,
            None if annotations is None else Path(annotations).expanduser(),
            split,
            http,
            where,
            store=base / "annotations",
            offline=options.offline,
        )
        lists = replace(lists, manifest=labelled(base, lists.manifest))
        disk = _look(base, lists)
        plan = make_plan(lists.manifest.records, disk, options)
        say = show or (lambda text: None)
        for remark in lists.remarks:
            say(remark)
        say(plan.text())
        if confirm is not None:
            confirm(plan)
        if plan.lacks_disk:
            raise FetchError(
                "disk",
                "ROOT",
                str(base),
                f"about {human_bytes(plan.bytes)} of free disk",
                f"{human_bytes(plan.free or 0)}",
                "free some, choose another ROOT, or fetch less (--only, --split, --limit)",
            )
        return _Fetch(base, lists, options, where, http, max_workers, say).run(plan, disk)


@contextlib.contextmanager
def _claimed(root: Path) -> Iterator[None]:
    """One fetch at a time per ROOT, which must be writable."""
    folder = root / ledgers.FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.write_bytes(b"")
        probe.unlink()
        lock = filelock.FileLock(folder / "lock", timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise FetchError(
            "busy", "ROOT", str(root), "no other fetch at work there", "one that is", "wait for it, or stop it"
        ) from error
    except OSError as error:
        raise FetchError(
            "disk", "ROOT", str(root), "a folder that can be written", str(error), "choose another ROOT"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _look(root: Path, lists: Lists) -> OnDisk:
    """What is on disk of the listed files."""
    files = {}
    for record in lists.manifest.records:
        try:
            status = os.stat(f"{root}/{record.file}")  # noqa: PTH116 - 200,000 calls
        except (OSError, ValueError):
            continue
        files[record.file] = (status.st_size, status.st_mtime_ns)
    existing = next((p for p in (root, *root.absolute().parents) if p.exists()), None)
    free = shutil.disk_usage(existing).free if existing is not None else None
    return OnDisk(files, read_ledger(root), free)


class _Fetch:
    """One run."""

    def __init__(
        self,
        root: Path,
        lists: Lists,
        options: Options,
        endpoints: Endpoints,
        http: Http,
        max_workers: int,
        say: Callable[[str], None],
    ) -> None:
        self.root = root
        self.lists = lists
        self.options = options
        self.endpoints = endpoints
        self.http = http
        self.max_workers = max_workers
        self.say = say
        self.remarks = list(lists.remarks)
        self.faces: Mapping[str, Face] = {}
        self.faces_error: Exception | None = None
        self.numbers: dict[str, str] = {}
        self.ledger: Ledger
        # A decoded painting may take 100 MB: as many at a time as there are cores to decode them.
        self.decoding = threading.BoundedSemaphore(max(1, os.cpu_count() or 1))
        self.memory = _Memory(_HELD_BYTES)
        self.folders: set[Path] = set()

    def run(self, plan: Plan, disk: OnDisk) -> Summary:
        """Verify what is there, fetch what is not, and say what came of it."""
        summary = Summary(self.root, plan)
        try:
            self.ledger = Ledger(self.root)
        except OSError as error:
            raise self._disk_error(error) from error
        try:
            self._sweep(plan)
            if any(
                r.file.startswith("ffhq/") for r in (*plan.unverified, *(r for p in plan.parts for r in p.records))
            ):
                self._load_faces()
            damaged = self._adopt(plan.unverified, summary)
            # What is there is verified now; what turned out damaged is missing after all.
            files = {path: state for path, state in disk.files.items() if path not in damaged}
            now = OnDisk(files, self.ledger.entries, disk.free)
            plan = summary.plan = make_plan(self.lists.manifest.records, now, self.options)
            for block in plan.blocked:
                no_way = FetchError(block.reason, block.source, "the plan", "a route", block.why, block.remedy)
                summary.missing |= {record.file: no_way for record in block.records}
            for part in plan.parts:
                self._fetch_part(part, summary)
        except OSError as error:
            raise self._disk_error(error) from error
        finally:
            self.ledger.close()
            summary.bytes_moved = self.http.moved
            summary.remarks = tuple(self.remarks)
        for path in [path for path in summary.missing if path in KNOWN_CORRUPT]:
            if summary.missing[path].reason == "corrupt":
                summary.known_corrupt[path] = summary.missing.pop(path)
        self._note_missing(summary)
        return summary

    # --- what is there already ---------------------------------------------------------------------------------------

    def _sweep(self, plan: Plan) -> None:
        """Remove what a killed run had not yet given its name."""
        records = [*plan.unverified, *(record for part in plan.parts for record in part.records)]
        for folder in {(self.root / record.file).parent for record in records}:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for file in folder.iterdir():
                    if _TEMPORARY.fullmatch(file.name):
                        file.unlink(missing_ok=True)

    def _load_faces(self) -> None:
        try:
            self.faces, remarks = find_faces(
                self.root,
                self.lists.place,
                self.http,
                self.endpoints,
                store=self.root / "annotations",
                offline=self.options.offline,
            )
            self.remarks += remarks
        except (FetchError, AnnotationError, DataNotFoundError) as error:
            remarks = (f"the FFHQ list could not be had, so pixels of faces cannot be verified: {error}",)
            self.remarks += remarks
            self.faces_error = error
        for remark in remarks:
            self.say(remark)

    def _adopt(self, records: Sequence[Record], summary: Summary) -> set[str]:
        """Enter files that are there into the ledger; return the paths of those that are not fit."""
        damaged: set[str] = set()

        def look(record: Record) -> Iterator[Delivery]:
            try:
                yield record.file, read_bytes(self.root / record.file)
            except ImageError as error:
                yield record.file, self._image_error(record, "found", error)

        def take(record: Record, data: bytes) -> None:
            facts = self._verified(record, data, "found")
            try:
                mtime = (self.root / record.file).stat().st_mtime_ns
                self.ledger.append(Entry.of(record, facts, "found", mtime))
            except OSError as error:
                raise self._disk_error(error) from error

        def done(path: str, result: bytes | FetchError) -> None:
            if isinstance(result, FetchError):
                damaged.add(path)
            else:
                summary.found += 1
            bar.update(1)

        jobs = [Job((record.file,), look, (record,)) for record in records]
        with tqdm(total=len(records), desc="verifying", unit="img", disable=True if not records else None) as bar:
            self._work(jobs, {record.file: record for record in records}, take, done)
        return damaged

    # --- one source --------------------------------------------------------------------------------------------------

    def _fetch_part(self, part: Part, summary: Summary) -> None:
        """Try each way in turn for what the ways before it did not give."""
        source = source_named(part.source)
        if source is None:
            raise UsageError(f"unknown source {part.source!r}")
        remaining = {record.file: record for record in part.records}
        failures: dict[str, FetchError] = {}
        bar = tqdm(total=part.bytes, desc=part.source, unit="B", unit_scale=True)
        bar.set_postfix_str(f"0/{len(remaining):,} files")
        total = len(remaining)

        def done(path: str, result: bytes | FetchError) -> None:
            if isinstance(result, FetchError):
                failures[path] = result
            elif remaining.pop(path, None) is not None:
                summary.fetched[part.source] += 1
                came = total - len(remaining)
                bar.total = (bar.n + len(result)) * total // came  # so that the ETA follows what came
                bar.update(len(result))
                bar.set_postfix_str(f"{came:,}/{total:,} files", refresh=False)

        blocked = self._blocked_folders(part.records)
        for record in part.records:
            in_the_way = blocked.get(record.file.rpartition("/")[0])
            if in_the_way is not None:
                failures[record.file] = self._no_place(record, f"{in_the_way} is not a folder")
                summary.missing[record.file] = failures[record.file]
                del remaining[record.file]
        with bar:
            for way in self._ways(part, source):
                if remaining:
                    self._try(way, remaining, failures, done)
            bar.total = bar.n
        for path in remaining:
            summary.missing[path] = failures.get(path) or FetchError(
                "missing", part.source, path, "the file in one of the places that were tried", "none", "see --from"
            )

    def _try(
        self,
        way: Way,
        remaining: Mapping[str, Record],
        failures: dict[str, FetchError],
        done: Callable[[str, bytes | FetchError], None],
    ) -> None:
        """One way, with a few more rounds for what came damaged or changed under our hands."""

        def take(record: Record, data: bytes) -> None:
            self._place(record, data, way.name)

        wanted = [record for record in remaining.values() if _top(record) in way.folders]
        for last in (False, False, True):
            if not wanted:
                return
            try:
                self._work(way.jobs(wanted), {record.file: record for record in wanted}, take, done)
            except _Fatal:
                raise
            except FetchError as error:
                failures |= {record.file: error for record in wanted}
            if last or not way.retries:
                return
            wanted = [
                record
                for record in wanted
                if record.file in remaining
                and (failures[record.file].reason == "changed" or _may_come_right(failures[record.file], record))
            ]

    def _ways(self, part: Part, source: Source) -> Iterator[Way]:
        """In the order in which to try them."""
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
                        reader = _ZipWay(self, source, archive)
                        yield Way(route.name, archive.folders, reader.jobs)

    def _files(self, source: Source, route: Route, records: Sequence[Record]) -> list[Job]:
        """One request an image."""

        def job(record: Record) -> Iterator[Delivery]:
            remote = remote_for(f"{route.address}{record.file}", source.key, self.endpoints)
            try:
                data, response = self.http.read(remote, max_bytes=MAX_MEMBER_BYTES)
                promised = _s3_md5(response)
                if promised is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != promised:
                    raise remote.error("corrupt", f"MD5 {promised}", "other bytes", remote.other_ways())
                yield record.file, data
            except FetchError as error:
                yield record.file, error

        return [Job((record.file,), job, (record,)) for record in records]

    def _faces_by_id(self, source: Source, records: Sequence[Record]) -> list[Job]:
        """One request a face, by the Drive id of upstream's list."""
        if not self.faces:
            raise FetchError(
                "missing",
                source.key,
                "ffhq_filenames.txt",
                "upstream's FFHQ list, which holds the Drive ids",
                str(self.faces_error or "none"),
                "put it beside the annotations, or bring the files with --from ffhq=PATH",
            )

        def job(record: Record) -> Iterator[Delivery]:
            face = self.faces.get(record.file)
            if face is None:
                yield (
                    record.file,
                    FetchError(
                        "missing", source.key, record.path, "a line in the FFHQ list", "none", "see --from ffhq=PATH"
                    ),
                )
                return
            remote = remote_for(f"drive:{face.drive_id}", source.key, self.endpoints)
            try:
                data, _ = self.http.read(remote, max_bytes=MAX_MEMBER_BYTES)
                yield record.file, data
            except FetchError as error:
                yield record.file, error

        return [Job((record.file,), job, (record,)) for record in records]

    def zip_jobs(
        self, archive: ZipFile, found: Mapping[str, Member], finder: Finder[Member], records: Sequence[Record]
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
            *(
                Job(tuple(p for p, _ in run.members), archive.read, (run,), run.held_bytes)
                for run in plan_runs(members)
            ),
        ]

    def _own(self, source: Source, path: Path, records: Sequence[Record]) -> list[Job]:
        """The user's folder or archive."""
        try:
            kind = local.kind_of(path)
        except OSError as error:
            raise FetchError(
                "missing", source.key, str(path), "a folder or an archive", str(error), "check --from"
            ) from error
        aliases = self._ffhq_names_near(path) if source.key == "ffhq" else {}
        paths = [record.file for record in records]
        if kind == "zip":
            archive = ZipFile(LocalFile(path, source.key))
            finder: Finder[Member] = Finder(source, paths, aliases, local.inside_of(path))
            return self.zip_jobs(archive, archive.find(finder), finder, records)
        if kind == "tar":
            in_tar: Finder[str] = Finder(source, paths, aliases)
            return [Job(tuple(paths), local.read_tar, (path, source.key, in_tar))]
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
        if source.key == "ffhq" and not found and not aliases and self.faces and not self.options.offline:
            # Perhaps in FFHQ's own numbering, which its index translates.
            with contextlib.suppress(FetchError):
                in_folder = Finder(source, paths, self.ffhq_names())
                found = local.find_in_folder(path, in_folder)

        def job(record: Record) -> Iterator[Delivery]:
            yield record.file, local.read_file(found[record.file], source.key)

        jobs = [Job((record.file,), job, (record,)) for record in records if record.file in found]
        rest = [record for record in records if record.file not in found]
        errors = {}
        for record in rest:
            two = in_folder.ambiguous().get(record.file)
            got, remedy = "none", "name a folder or an archive that holds it"
            if source.key == "ffhq" and not self.numbers:
                remedy += f"; files in FFHQ's own numbering need {_INDEX_FILE} beside them"
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
        return [Job(tuple(paths), local.read_tars_in_zip, (path, source, paths))]

    # --- FFHQ's own numbering ----------------------------------------------------------------------------------------

    def ffhq_names(self) -> dict[str, str]:
        """Path in ROOT -> path in FFHQ's own numbering, by FFHQ's index, which is kept beside the ledger."""
        address, size, md5 = FFHQ_INDEX
        file = self.root / ledgers.FOLDER / _INDEX_FILE
        remote = remote_for(address, "ffhq", self.endpoints)
        if not file.is_file():
            temporary = file.with_suffix(".incomplete")
            try:
                self._download(remote, temporary)
                if "drive" not in self.endpoints.moved:
                    with temporary.open("rb") as stream:
                        found = hashlib.file_digest(stream, "md5").hexdigest()
                    if found != md5:
                        temporary.unlink()
                        raise remote.error("corrupt", f"{size:,} bytes, MD5 {md5}", found, remote.other_ways())
                temporary.replace(file)
            except OSError as error:
                raise self._disk_error(error) from error
        return self._numbered(file)

    def _download(self, remote: Remote, file: Path) -> None:
        """A large file, going on after what an earlier run got of it."""
        start = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab") as out:
                for piece in self.http.stream(remote, start):
                    out.write(piece)
        except FetchError as error:
            if start == 0 or error.reason not in ("range", "changed"):
                raise
            file.unlink()
            remote.forget_version()
            self._download(remote, file)

    def _ffhq_names_near(self, path: Path) -> dict[str, str]:
        """The same from an index that lies with the user's files, if one does."""
        folder = path if path.is_dir() else path.parent
        for near in (folder, folder.parent, self.root / ledgers.FOLDER):
            if (near / _INDEX_FILE).is_file():
                return self._numbered(near / _INDEX_FILE)
        return {}

    def _numbered(self, file: Path) -> dict[str, str]:
        if not self.numbers:
            wanted = {face.pixel_md5: path for path, face in self.faces.items()}
            self.numbers = {wanted[md5]: name for md5, name in ffhq_index(file) if md5 in wanted}
        return self.numbers

    # --- one file ----------------------------------------------------------------------------------------------------

    def _verified(self, record: Record, data: bytes, route: str) -> Any:
        """The facts of bytes that are fit to be this file."""
        face = self.faces.get(record.file)
        pixels: list[str] = []

        def look(image: Image.Image) -> None:
            try:
                rgb = np.asarray(image.convert("RGB"))
            except (OSError, ValueError):  # a mode that has no RGB
                pixels.append(f"none (mode {image.mode})")
                return
            pixels.append(hashlib.md5(rgb.tobytes(), usedforsecurity=False).hexdigest())

        try:
            with self.decoding:
                facts = examine(data, record.path, look if face is not None else None)
        except ImageError as error:
            raise self._image_error(record, route, error) from error
        if record.sha256 is not None and facts.sha256 != record.sha256:
            raise self._wrong(record, route, f"SHA-256 {record.sha256}", facts.sha256)
        if face is not None and pixels != [face.pixel_md5]:
            raise self._wrong(record, route, f"pixels with MD5 {face.pixel_md5}", pixels[0])
        return facts

    def _wrong(self, record: Record, route: str, expected: str, got: str) -> FetchError:
        return FetchError("corrupt", record.source, f"{record.path} by {route}", expected, got, "try another --route")

    def _image_error(self, record: Record, route: str, error: ImageError) -> FetchError:
        return self._wrong(record, route, "an image that decodes completely", error.message)

    def _place(self, record: Record, data: bytes, route: str) -> None:
        """Verify, write beside the final name, rename, enter in the ledger."""
        facts = self._verified(record, data, route)
        target = self.root / record.file
        folder = target.parent
        name = hashlib.sha256(target.name.encode(errors="surrogateescape")).hexdigest()[:16]
        temporary = folder / f".{name}.incomplete"
        try:
            if folder not in self.folders:
                folder.mkdir(parents=True, exist_ok=True)
                self.folders.add(folder)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                mtime = temporary.stat().st_mtime_ns
                if target.exists() or target.is_symlink():
                    self._set_aside(target, record)
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            self.ledger.append(Entry.of(record, facts, route, mtime))
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL):
                raise self._no_place(record, str(error)) from error
            raise self._disk_error(error) from error

    def _no_place(self, record: Record, got: str) -> FetchError:
        target = str(self.root / record.file)
        return FetchError("disk", record.source, target, "a place for the file", got, "make room there")

    def _blocked_folders(self, records: Sequence[Record]) -> dict[str, Path]:
        """Folders of records that cannot be made, and the file that lies where they (or a parent) should be."""
        blocked = {}
        for folder in {record.file.rpartition("/")[0] for record in records}:
            above = (self.root / folder, *(self.root / folder).parents)
            existing = next(path for path in above if path.exists() or path.is_symlink())
            if not existing.is_dir():
                blocked[folder] = existing
        return blocked

    def _set_aside(self, target: Path, record: Record) -> None:
        """A damaged file of the user's (or a folder in its place) is kept, out of the way."""
        folder = self.root / ledgers.FOLDER / "replaced"
        aside, number = folder / record.file, 1
        while aside.exists() or aside.is_symlink():
            number += 1
            aside = folder / f"{record.file}.{number}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        target.replace(aside)

    def _disk_error(self, error: OSError) -> _Fatal:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return _Fatal(
            "disk",
            "ROOT",
            str(self.root),
            "room for the next file" if full else "a folder that can be written",
            str(error),
            "everything that came in is kept: "
            + ("free some disk" if full else "make it writable")
            + " and run the same command again",
        )

    def _note_missing(self, summary: Summary) -> None:
        file = self.root / ledgers.FOLDER / "missing.txt"
        lines = "".join(f"{path}\t{error.reason}\t{error}\n" for path, error in summary.missing.items())
        try:
            if lines:
                file.write_text(lines, encoding="utf-8", errors="backslashreplace")
            else:
                file.unlink(missing_ok=True)
        except OSError as error:
            raise self._disk_error(error) from error

    # --- threads -----------------------------------------------------------------------------------------------------

    def _work(
        self,
        jobs: Sequence[Job],
        records: Mapping[str, Record],
        take: Callable[[Record, bytes], None],
        done: Callable[[str, bytes | FetchError], None],
    ) -> None:
        """Run jobs in threads. `take` verifies and keeps; `done` is told of every file, one at a time."""
        queue = iter(jobs)
        taking, telling = threading.Lock(), threading.Lock()
        breaker = _Breaker()

        def deliver(path: str, result: bytes | FetchError, *, counts: bool = True) -> None:
            if isinstance(result, bytes):
                try:
                    take(records[path], result)
                except _Fatal:
                    raise
                except FetchError as error:
                    result = error
            with telling:
                if counts:
                    breaker.saw(result)
                done(path, result)

        def worker() -> None:
            while True:
                self.http.check()
                with taking:
                    job = next(queue, None)
                if job is None:
                    return
                untold = dict.fromkeys(job.paths)
                error = breaker.tripped
                if error is None:
                    try:
                        with self.memory.held(job.held_bytes, self.http.check):
                            for path, result in _results(job, records):
                                untold.pop(path, None)
                                deliver(path, result)
                                self.http.check()
                    except _Fatal:
                        raise
                    except FetchError as failed:
                        error = failed
                for number, path in enumerate(untold):
                    if error is None:
                        source = records[path].source
                        error = FetchError("missing", source, path, "the file in the archive", "none", "see --from")
                    deliver(path, error, counts=number == 0)  # one failure, however many files it was to bring

        pool = ThreadPoolExecutor(self.max_workers)
        try:
            futures = [pool.submit(worker) for _ in range(min(self.max_workers, len(jobs)))]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException as error:
            self.http.cancel()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, Cancelled):
                raise KeyboardInterrupt from error
            raise
        pool.shutdown()


class _ZipWay:
    """An archive at a host. Its directory is read once, and again if the archive changes."""

    def __init__(self, fetch_: _Fetch, source: Source, archive: Archive) -> None:
        self._fetch = fetch_
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
            aliases = self._fetch.ffhq_names() if self._source.key == "ffhq" else {}
            remote = remote_for(self._address, self._source.key, self._fetch.endpoints)
            archive = ZipFile(RemoteFile(self._fetch.http, remote))
            inside = self._folders[0] if len(self._folders) == 1 else ""
            finder = Finder(self._source, [record.file for record in records], aliases, inside)
            found = archive.find(finder)
            self._opened = archive, found, finder
        return self._fetch.zip_jobs(archive, found, finder, records)


class _Fatal(FetchError):
    """Nothing else can work either: the disk is full, or ROOT is gone."""


class _Memory:
    """Lets as many threads hold large files as fit together, and at least one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, count: int, check: Callable[[], None]) -> Iterator[None]:
        """Wait until there is room; `check` may raise meanwhile."""
        with self._changed:
            while self._held > 0 and self._held + count > self._most:
                check()
                self._changed.wait(0.1)
            self._held += count
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()


class _Breaker:
    """Gives a route up when it fails again and again for reasons that are not the file's own."""

    def __init__(self) -> None:
        self.tripped: FetchError | None = None
        self._row = 0

    def saw(self, result: bytes | FetchError) -> None:
        if isinstance(result, FetchError) and result.reason in _SHARED_REASONS:
            self._row += 1
            if self._row >= _ENOUGH and self.tripped is None:
                got = f"{result.got}, {self._row} times in a row, so that no more was asked for"
                self.tripped = FetchError(
                    result.reason, result.source, result.address, result.expected, got, result.remedy
                )
        else:
            self._row = 0


def _results(job: Job, records: Mapping[str, Record]) -> Iterator[Delivery]:
    """What a job gives; what parsers run into with bytes that nobody foresaw is the file's fault, not the run's."""
    try:
        yield from job.run(*job.args)
    except _HOSTILE as failed:
        path, got = job.paths[0], f"{type(failed).__name__} ({failed})"
        raise FetchError("corrupt", records[path].source, path, "data that can be read", got, "see --from") from failed


def _failing(errors: Mapping[str, FetchError]) -> list[Job]:
    """What is known to fail, as a job among jobs."""
    return [Job(tuple(errors), iter, (errors.items(),))] if errors else []


def _may_come_right(error: FetchError, record: Record) -> bool:
    return error.reason == "corrupt" and record.file not in KNOWN_CORRUPT


def _top(record: Record) -> str:
    return PurePosixPath(record.file).parts[0]


def _s3_md5(response: Response) -> str | None:
    """S3 names an object that was uploaded in one piece by its MD5."""
    headers = response.headers
    is_s3 = headers.get("server") == "AmazonS3" or "x-amz-request-id" in headers
    etag = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("etag", ""))
    keyed = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    return etag[1] if is_s3 and etag and not keyed else None


def ffhq_index(file: Path) -> Iterator[tuple[str, str]]:
    """(MD5 of the pixels, path in FFHQ's own numbering) of every image in ffhq-dataset-v2.json, read as a stream.

    Raises:
        FetchError: reason "format".
    """
    decoder = json.JSONDecoder()
    with file.open(encoding="utf-8", errors="replace") as stream:
        text, position = stream.read(1024**2), 0
        opening = re.compile(r'\s*[{,]\s*("[^"]*")\s*:\s*')
        while True:
            key = opening.match(text, position)
            try:
                if key is None:
                    raise ValueError("no entry here")
                value, end = decoder.raw_decode(text, key.end())
                if end == len(text):  # a number or a word may go on
                    raise ValueError("cut")
                position = end
            except ValueError:
                if re.match(r"\s*(\{\s*)?\}\s*$", text[position:]):
                    return
                more = stream.read(1024**2)
                if not more or len(text) - position > 16 * 1024**2:
                    raise FetchError(
                        "format", "ffhq", str(file), "FFHQ's index", "something else", "delete it and run again"
                    ) from None
                text, position = text[position:] + more, 0
                continue
            image = value.get("image") if isinstance(value, dict) else None
            if isinstance(image, dict):
                md5, path = image.get("pixel_md5"), image.get("file_path")
                if isinstance(md5, str) and isinstance(path, str):
                    yield md5, path
