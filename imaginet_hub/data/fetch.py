"""Fill a ROOT: plan (pure, see `data.plan`), then act. The only downloader.

Every file is verified by the strongest thing that is known of it (SHA-256 or pixel MD5 of a list, CRC-32 of a ZIP, MD5
of S3, and always a complete decode) before it gets its name; then it is entered in the ledger. A fetch that was
killed goes on where it was: what has its name is complete.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock

from imaginet_hub.data.access import credentials, offline
from imaginet_hub.data.faces import Faces
from imaginet_hub.data.images import read_bytes
from imaginet_hub.data.keeper import FOUND, REPLACED, Keeper, disk_error
from imaginet_hub.data.ledger import FOLDER, Ledger, read_ledger
from imaginet_hub.data.lists import Lists, find_lists
from imaginet_hub.data.manifest import Record
from imaginet_hub.data.mini import labelled
from imaginet_hub.data.plan import OnDisk, Options, Part, Plan, make_plan
from imaginet_hub.data.progress import progress_bar, progress_paused
from imaginet_hub.data.readers.hosts import Endpoints
from imaginet_hub.data.readers.http import Http, Limits
from imaginet_hub.data.rights import select
from imaginet_hub.data.sources import KNOWN_CORRUPT, source_of
from imaginet_hub.data.units import human_bytes, one_line
from imaginet_hub.data.ways import Tools, Way, forget_downloads, packed_way, top_folder, ways_of
from imaginet_hub.data.workers import HOSTILE, Delivery, Fatal, Job, Workers, unforeseen
from imaginet_hub.errors import DataNotFoundError, FetchError, ImageError, UsageError

__all__ = ["MAX_WORKERS", "Summary", "claimed", "fetch", "fetch_lists", "plan_fetch"]

MAX_WORKERS = 16
#: How often a host is asked for what came damaged, or from an archive that changed meanwhile.
_ROUNDS = 3
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.incomplete")
_SHOWN = 10
#: Of the places that failed besides the one that explains most, how many an error tells of; the others are counted.
_OTHERS = 3


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
        damaged: files that were there and are not what they should be -> why; those that could be were replaced.
        bytes_moved: body bytes that crossed the network.
        remarks: what the user should know.
    """

    root: Path
    plan: Plan
    fetched: Counter[str] = field(default_factory=Counter)
    found: int = 0
    missing: dict[str, FetchError] = field(default_factory=dict)
    known_corrupt: dict[str, FetchError] = field(default_factory=dict)
    damaged: dict[str, FetchError] = field(default_factory=dict)
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
            lines.append(one_line(f"left out, damaged in every known copy: {', '.join(sorted(self.known_corrupt))}"))
        if self.missing:
            lines.append(f"missing: {len(self.missing):,}, listed in {self.root / FOLDER / 'missing.txt'}")
            groups = Counter((e.source, e.reason) for e in self.missing.values())
            for (source, reason), count in groups.most_common(_SHOWN):
                example = next(e for e in self.missing.values() if (e.source, e.reason) == (source, reason))
                lines.append(one_line(f"  {count:,} {reason}: {example}"))
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
            "beyond_limit": self.plan.beyond_limit,
            "known_corrupt": sorted(self.known_corrupt),
            "damaged": {path: str(error) for path, error in self.damaged.items()},
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
            if not os.path.exists(path):  # noqa: PTH110 - what may not be looked into is not there
                raise DataNotFoundError(f"--from {key}={path}: expected a folder or an archive, found nothing")
    return options


def plan_fetch(
    root: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    split: str | None = None,
    labels: Collection[str] = (),
    licenses: str | Sequence[str] | None = None,
    own: Mapping[str, Any] | None = None,
    routes: Mapping[str, str] | None = None,
    limit: int | None = None,
    endpoints: Mapping[str, str] | None = None,
) -> tuple[Plan, tuple[str, ...]]:
    """What `fetch` would do, and remarks on the lists; nothing is written. The arguments are those of `fetch`."""
    base = Path(root).expanduser()
    options = _options(only, limit, own, routes)
    if base.exists() and not base.is_dir():
        raise FetchError("disk", "ROOT", str(base), "a folder", "a file", "choose another ROOT")
    with Http() as http, tempfile.TemporaryDirectory() as store:
        where = Endpoints.resolve(endpoints)
        lists = _listed(base, annotations, split, labels, licenses, http, where, Path(store), options)
    return make_plan(lists.manifest.records, _look(base, lists), options), lists.remarks


def fetch(
    root: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    only: Sequence[str] = (),
    split: str | None = None,
    labels: Collection[str] = (),
    licenses: str | Sequence[str] | None = None,
    own: Mapping[str, Any] | None = None,
    routes: Mapping[str, str] | None = None,
    limit: int | None = None,
    max_workers: int = MAX_WORKERS,
    endpoints: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    wait: bool = False,
    show: Callable[[str], None] | None = None,
    confirm: Callable[[Plan], None] | None = None,
) -> Summary:
    """Fill a ROOT in upstream's layout.

    Args:
        root: the folder to fill; made if absent.
        annotations: a list, a table or a folder of lists; by default what ROOT carries, else upstream's own.
        only: keys of sources; by default all.
        split: one split; by default all.
        labels: of these images only ("real", "synthetic"); by default all.
        licenses: of these images only: "commercial", "redistributable" or names of licences, see `rights.selection`.
        own: folders and archives that you have, by source: a path or several.
        routes: the one route to use, by source.
        limit: the first so many missing files per source, in list order.
        max_workers: connections (and threads) at a time.
        endpoints: base addresses by host (coco, github, drive, hf), before IMAGINET_ENDPOINTS and HF_ENDPOINT.
        limits: how patient to be with hosts.
        wait: for another fetch that is at work in ROOT, instead of raising.
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
    with Http(max_connections=max_workers, limits=limits) as http, claimed(base, wait=wait):
        lists = _listed(base, annotations, split, labels, licenses, http, where, base / "annotations", options)
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


def fetch_lists(
    root: Path, annotations: str | os.PathLike[str] | None, split: str | None, *, wait: bool = True
) -> None:
    """Only have upstream's lists that are needed and not here; no image.

    Raises:
        FetchError, DataNotFoundError, AnnotationError: see `fetch`.
    """
    options = _options((), None, None, None)
    with Http() as http, claimed(root, wait=wait):
        _listed(root, annotations, split, (), None, http, Endpoints.resolve(), root / "annotations", options)


def _listed(
    root: Path,
    annotations: str | os.PathLike[str] | None,
    split: str | None,
    labels: Collection[str],
    licenses: str | Sequence[str] | None,
    http: Http,
    endpoints: Endpoints,
    store: Path,
    options: Options,
) -> Lists:
    place = None if annotations is None else Path(annotations).expanduser()
    lists = find_lists(root, place, split, http, endpoints, store=store, offline=options.offline)
    manifest = labelled(root, lists.manifest)
    if labels:
        manifest = replace(manifest, records=tuple(r for r in manifest.records if r.label in labels))
    if licenses is not None:  # of what is asked for: what else the lists name does not matter
        asked = [r for r in manifest.records if not options.only or source_of(r.file)[0] in options.only]
        manifest = replace(manifest, records=select(asked, licenses)[0])
    return replace(lists, manifest=manifest)


@contextlib.contextmanager
def claimed(root: Path, *, wait: bool = False) -> Iterator[None]:
    """One fetch at a time per ROOT, which must be writable."""
    folder = root / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / "lock", timeout=-1 if wait else 0)
        with lock:
            probe = folder / ".write-test"
            probe.write_bytes(b"")
            probe.unlink(missing_ok=True)
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


@dataclass
class _Pending:
    """What of a part is not there yet, and why not."""

    part: Part
    remaining: dict[str, Record] = field(default_factory=dict)
    why: dict[str, _Why] = field(default_factory=dict)

    def conclude(self, summary: Summary) -> None:
        """What did not come is missing."""
        key = self.part.source.key
        for path in self.remaining:
            why = self.why.get(path)
            summary.missing[path] = (
                why.error()
                if why is not None
                else FetchError(
                    "missing", key, path, "the file in one of the places that were tried", "none", "see --from"
                )
            )


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
        self.http = http
        self.say = say
        self.remarks = list(lists.remarks)
        self.faces = Faces(root, http, endpoints, offline=options.offline)
        self.workers = Workers(http, max_workers)
        chosen = frozenset(options.routes)
        self.tools = Tools(root, http, endpoints, self.faces, self.workers, self._note, chosen)

    def run(self, plan: Plan, disk: OnDisk) -> Summary:
        """Verify what is there, fetch what is not, and say what came of it."""
        summary = Summary(self.root, plan)
        try:
            with contextlib.closing(Ledger(self.root)) as ledger:
                self._run(plan, disk, ledger, summary)
            self._note_missing(summary)
        except OSError as error:
            raise disk_error(self.root, error) from error
        finally:
            summary.bytes_moved = self.http.moved
            summary.remarks = tuple(self.remarks)
        return summary

    def _run(self, plan: Plan, disk: OnDisk, ledger: Ledger, summary: Summary) -> None:
        records = [*plan.unverified, *(record for part in plan.parts for record in part.records)]
        self._sweep(records)
        if any(top_folder(record) == "ffhq" for record in records):
            self._remark(*self.faces.load(self.lists.place))
        keeper = Keeper(self.root, ledger, self.faces.listed, self.http.check)
        summary.damaged = self._adopt(plan.unverified, disk, keeper, summary)
        # What is there is verified now; what turned out damaged is missing after all.
        files = {path: state for path, state in disk.files.items() if path not in summary.damaged}
        now = OnDisk(files, ledger.entries, disk.free)
        plan = summary.plan = make_plan(self.lists.manifest.records, now, self.options)
        for block in plan.blocked:
            no_way = FetchError(block.reason, block.source, "the plan", "a route", block.why, block.remedy)
            summary.missing |= {record.file: no_way for record in block.records}
        self.tools = replace(self.tools, limited=plan.beyond_limit > 0)
        pending = [self._fetch_part(part, keeper, summary) for part in plan.parts]
        self._fetch_packed(pending, keeper, summary)
        for each in pending:
            each.conclude(summary)
        if not plan.beyond_limit:
            forget_downloads(self.root, ledger.entries.keys() - summary.missing.keys())
        for path in [path for path in summary.missing if path in KNOWN_CORRUPT]:
            if summary.missing[path].reason in ("corrupt", "missing"):
                summary.known_corrupt[path] = summary.missing.pop(path)
        for record in plan.known_corrupt:
            summary.known_corrupt[record.file] = FetchError(
                "missing", record.source, record.path, "a route", "none here", "it is damaged in every known copy"
            )
        if keeper.set_aside:
            folder = self.root / FOLDER / REPLACED
            self._remark(
                f"{len(keeper.set_aside):,} files were there, but damaged ({', '.join(keeper.set_aside[:3])}"
                f"{' ...' if len(keeper.set_aside) > 3 else ''}); they were replaced and are kept in {folder}"
            )

    def _note(self, text: str) -> None:
        """A line for people, above the bars."""
        with progress_paused():
            self.say(text)

    def _remark(self, *remarks: str) -> None:
        for remark in remarks:
            self.remarks.append(remark)
            self.say(remark)

    def _sweep(self, records: Iterable[Record]) -> None:
        """Remove what a killed run had not yet given its name."""
        for folder in {(self.root / record.file).parent for record in records}:
            with contextlib.suppress(OSError):  # what cannot be looked into cannot be written to, and says so then
                for file in folder.iterdir():
                    if _TEMPORARY.fullmatch(file.name):
                        file.unlink(missing_ok=True)

    def _adopt(
        self, records: Sequence[Record], disk: OnDisk, keeper: Keeper, summary: Summary
    ) -> dict[str, FetchError]:
        """Enter files that are there into the ledger; return those that are not fit, and why."""
        damaged: dict[str, FetchError] = {}

        def look(record: Record) -> Iterator[Delivery]:
            try:
                yield record.file, read_bytes(self.root / record.file)
            except ImageError as error:
                yield record.file, keeper.wrong(record, FOUND, "a file that can be read", error.message)

        def take(record: Record, data: bytes) -> None:
            keeper.adopt(record, data, disk.files[record.file][1])

        def done(path: str, result: bytes | FetchError) -> None:
            if isinstance(result, FetchError):
                damaged[path] = result
            else:
                summary.found += 1
            bar.update(1)

        jobs = [Job((record.file,), look, (record,)) for record in records]
        with progress_bar(
            total=len(records), desc="verifying", unit="img", disable=True if not records else None
        ) as bar:
            self.workers.run(jobs, {record.file: record for record in records}, take, done)
        return damaged

    def _fetch_part(self, part: Part, keeper: Keeper, summary: Summary) -> _Pending:
        """Try each way in turn for what the ways before it did not give; all but the one that several parts share."""
        blocked = keeper.blocked_folders(part.records)
        pending = _Pending(part)
        for record in part.records:
            in_the_way = blocked.get(record.file.rpartition("/")[0])
            if in_the_way is None:
                pending.remaining[record.file] = record
            else:
                summary.missing[record.file] = keeper.no_place(record, f"{in_the_way} is not a folder")
        self._try_all(ways_of(self.tools, part), [pending], part.source.key, keeper, summary)
        return pending

    def _fetch_packed(self, pending: Sequence[_Pending], keeper: Keeper, summary: Summary) -> None:
        """What is left, of all parts at once, by the release that holds everything."""
        left = [each for each in pending if each.remaining]
        way = packed_way(self.tools, [each.part for each in left])
        if way is not None:
            able = [each for each in left if any(top_folder(r) in way.folders for r in each.remaining.values())]
            self._try_all([way], able, way.name, keeper, summary)

    def _try_all(
        self, ways: Iterable[Way], pending: Sequence[_Pending], title: str, keeper: Keeper, summary: Summary
    ) -> None:
        """Try ways in turn for what is pending."""
        owners = {path: each for each in pending for path in each.remaining}
        total = len(owners)
        size = sum(each.part.bytes * len(each.remaining) // max(1, len(each.part.records)) for each in pending)
        failures: dict[str, FetchError] = {}
        came = 0

        def done(path: str, result: bytes | FetchError) -> None:
            nonlocal came
            if isinstance(result, FetchError):
                failures[path] = result
            elif owners[path].remaining.pop(path, None) is not None:
                summary.fetched[owners[path].part.source.key] += 1
                came += 1
                bar.total = (bar.n + len(result)) * total // came  # so that the ETA follows what came
                bar.update(len(result))
                bar.set_postfix_str(f"{came:,}/{total:,} files", refresh=False)

        with progress_bar(total=size, desc=title, unit="B", unit_scale=True) as bar:
            bar.set_postfix_str(f"0/{total:,} files")
            for way in ways:
                failures.clear()
                remaining = {path: record for each in pending for path, record in each.remaining.items()}
                if not remaining:
                    break
                self._try(way, remaining, failures, keeper, done)
                for path, error in failures.items():
                    if path in owners[path].remaining:
                        why = owners[path].why.get(path)
                        if why is None:
                            owners[path].why[path] = _Why(error)
                        else:
                            why.add(error)
            bar.total = bar.n

    def _try(
        self,
        way: Way,
        remaining: dict[str, Record],
        failures: dict[str, FetchError],
        keeper: Keeper,
        done: Callable[[str, bytes | FetchError], None],
    ) -> None:
        """One way, with a few more rounds for what came damaged or changed under our hands."""

        def take(record: Record, data: bytes) -> None:
            keeper.place(record, data, way.name)

        def told(path: str, result: bytes | FetchError) -> None:
            if isinstance(result, bytes):
                remaining.pop(path, None)
            done(path, result)

        folders = frozenset(way.folders)
        wanted = [record for path, record in remaining.items() if path.partition("/")[0] in folders]
        rounds = _ROUNDS if way.retries else 1
        for number in range(1, rounds + 1):
            if not wanted:
                break
            try:
                self.workers.run(_jobs(way, wanted), {record.file: record for record in wanted}, take, told)
            except Fatal:
                raise
            except FetchError as error:
                failures |= {record.file: error for record in wanted}
            if number < rounds:
                wanted = [r for r in wanted if r.file in remaining and _may_come_right(failures.get(r.file), r)]
        way.after()

    def _note_missing(self, summary: Summary) -> None:
        file = self.root / FOLDER / "missing.txt"
        lines = "".join(
            f"{one_line(path)}\t{error.reason}\t{one_line(str(error))}\n" for path, error in summary.missing.items()
        )
        if lines:
            file.write_text(lines, encoding="utf-8", errors="backslashreplace")
        else:
            file.unlink(missing_ok=True)


def _jobs(way: Way, wanted: Sequence[Record]) -> list[Job]:
    """What a way has to do. Bytes that nobody foresaw, in what tells it that, are this way's fault, not the run's."""
    try:
        return way.jobs(wanted)
    except HOSTILE as failed:
        raise unforeseen(failed, wanted[0].source, f"the route {way.name}") from failed


def _may_come_right(error: FetchError | None, record: Record) -> bool:
    """Whether asking the same host again is worth it."""
    if error is None:
        return False
    return error.reason == "changed" or (error.reason == "corrupt" and record.file not in KNOWN_CORRUPT)


def _telling(error: FetchError) -> int:
    """A damaged copy explains more than a host that fails, and that more than a place which lacks the file."""
    return {"missing": 0, "cost": 1, "access": 2, "corrupt": 4}.get(error.reason, 3)


class _Why:
    """Why one file did not come: what explains most, and a few of the other places; there may be thousands."""

    __slots__ = ("_main", "_more", "_others")

    def __init__(self, first: FetchError) -> None:
        self._main = first
        self._others: list[FetchError] = []
        self._more = 0

    def add(self, now: FetchError) -> None:
        """Another place failed, too; of two that explain as much the later one leads."""
        if now.args == self._main.args:
            return
        if len(self._others) == _OTHERS and now.reason == self._main.reason == "missing":  # then so are the others
            self._main = now
            self._more += 1
            return
        other = now
        if _telling(now) >= _telling(self._main):
            self._main, other = now, self._main
        self._others.append(other)
        if len(self._others) > _OTHERS:
            least = min(map(_telling, self._others))
            last = max(n for n, error in enumerate(self._others) if _telling(error) == least)
            del self._others[last]
            self._more += 1

    def error(self) -> FetchError:
        """All of it in one."""
        main = self._main
        told = [f"from {other.address}: {other.got}" for other in self._others]
        if self._more:
            told.append(f"from {self._more:,} other place{'s' if self._more > 1 else ''}")
        got = f"{main.got} (and {'; '.join(told)})" if told else main.got
        return FetchError(main.reason, main.source, main.address, main.expected, got, main.remedy)
