"""What a fetch would do: a pure function of the annotations, of what is on disk, and of the options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from imaginet_hub.data.matching import imagenet_basename, kaggle_name
from imaginet_hub.data.sources import (
    KNOWN_CORRUPT,
    PACKED,
    SOURCES,
    UNKNOWN_MEAN_BYTES,
    Route,
    Source,
    source_named,
    source_of,
)
from imaginet_hub.data.units import human_bytes, one_line
from imaginet_hub.errors import UsageError

if TYPE_CHECKING:  # only their names: `imaginet sources` is quick without what they need
    from imaginet_hub.data.ledger import Entry
    from imaginet_hub.data.manifest import Record

__all__ = ["OWN", "Blocked", "OnDisk", "Options", "Part", "Plan", "make_plan", "meant"]

#: A hundred images of ImageNet.
_GROUP_BYTES = 11_000_000
#: What says where the members of a tar archive of Danbooru are; there are a thousand of both.
_INDEX_BYTES, _INDEXES = 1_000_000, 1000
#: How to get an account.
_ACCOUNTS = {
    "hf": "create a token at https://huggingface.co/settings/tokens and run `hf auth login` (or set HF_TOKEN)",
    "kaggle": "create a token at https://www.kaggle.com/settings and set KAGGLE_API_TOKEN (or KAGGLE_USERNAME and "
    "KAGGLE_KEY)",
}
#: The route of files that the user has.
OWN = "own"


@dataclass(frozen=True)
class Options:
    """What is asked for, and what this machine can do.

    Attributes:
        only: keys of the sources to fetch; empty: all.
        limit: the first so many missing files of each source, in the order of the lists.
        own: folders and archives that the user has, by source.
        routes: the one route to use, by source.
        credentials: accounts that this machine knows: hf, kaggle.
        offline: no network.
    """

    only: tuple[str, ...] = ()
    limit: int | None = None
    own: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    routes: Mapping[str, str] = field(default_factory=dict)
    credentials: frozenset[str] = frozenset()
    offline: bool = False

    def __post_init__(self) -> None:
        for key in (*self.only, *self.own, *self.routes):
            if source_named(key) is None:
                raise UsageError(f"unknown source {key!r}{meant(key, (s.key for s in SOURCES))}")
        for key in self.own:
            if self.only and key not in self.only:
                raise UsageError(f"--from {key}: --only leaves {key} out")
        for key, name in self.routes.items():
            names = [OWN, *(route.name for route in _routes(key))]
            if name not in names:
                raise UsageError(f"{key}: unknown route {name!r}{meant(name, names)}")
            if name == OWN and key not in self.own:
                raise UsageError(f"{key}: the route {OWN} needs --from {key}=PATH")
        if self.limit is not None and self.limit < 0:
            raise UsageError(f"limit: expected a number of files, got {self.limit}")


def _routes(key: str) -> tuple[Route, ...]:
    source = source_named(key)
    return source.routes if source else ()


def meant(word: str, known: Iterable[str]) -> str:
    """What to add to a complaint about a word: the one of the known words that it resembles, or all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(known)}"


@dataclass(frozen=True)
class OnDisk:
    """What is there.

    Attributes:
        files: (size, modification time in ns) by path below ROOT, of the listed files that exist.
        ledger: verified files, by path.
        free: bytes free on ROOT's disk, if known.
    """

    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    ledger: Mapping[str, Entry] = field(default_factory=dict)
    free: int | None = None

    def verified(self, record: Record) -> bool:
        """Whether the file is as it was when the ledger took it in, and what the list promises."""
        entry = self.ledger.get(record.file)
        return (
            entry is not None
            and self.files.get(record.file) == (entry.bytes, entry.mtime_ns)
            and record.sha256 in (None, entry.sha256)
        )


@dataclass(frozen=True)
class Part:
    """Files of one source to be had.

    Attributes:
        source: where they are from.
        records: in the order of the lists.
        own: the user's folders and archives, tried first.
        routes: tried after them, in this order.
        bytes: estimate of what they take on disk.
    """

    source: Source
    records: tuple[Record, ...]
    own: tuple[Path, ...]
    routes: tuple[Route, ...]
    bytes: int

    @property
    def ways(self) -> str:
        return ", ".join([*(f"{OWN} ({path})" for path in self.own), *(route.name for route in self.routes)])

    @property
    def costs(self) -> list[str]:
        """What may cross the network beyond the images themselves, where that is much."""
        found = []
        for route in self.routes:
            size = sum(archive.bytes or 0 for archive in route.archives)
            if route.reader == "tgz":
                found.append(f"{route.name}: a stream, read up to the last wanted image: up to {human_bytes(size)}")
            elif route.reader == "parquet":
                most = len(self.records) * _GROUP_BYTES
                found.append(
                    f"{route.name}: row groups of about a hundred images, for each that holds one: up to about "
                    f"{human_bytes(most)}"
                )
            elif route.reader == "tars":
                count = min(_INDEXES, len(self.records))
                found.append(
                    f"{route.name}: an index of about {human_bytes(_INDEX_BYTES)} for each archive that holds one: up "
                    f"to about {human_bytes(count * _INDEX_BYTES)}; originals, whose pixels may not be ImagiNet's"
                )
            elif route.reader == "7z" and (len(self.routes) == 1 or route.name != PACKED):
                found.append(_whole(route))
        return found

    @property
    def whole(self) -> Route | None:
        """The one route left, if it may take the disk for a whole archive."""
        return self.routes[0] if len(self.routes) == 1 and self.routes[0].reader == "7z" else None


def _whole(route: Route) -> str:
    size = sum(archive.bytes or 0 for archive in route.archives)
    return (
        f"{route.name}: by range if it is stored; if not, all of it: about {human_bytes(size)} to move, "
        "and as much disk until its images are out"
    )


@dataclass(frozen=True)
class Blocked:
    """Files that cannot be had here, why, and what helps.

    Attributes:
        reason: access | offline | format | unknown.
    """

    source: str
    records: tuple[Record, ...]
    reason: str
    why: str
    remedy: str


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        listed: how many files the lists (and `only`) name.
        verified: how many are there, as the ledger took them in.
        unverified: files that are there and have to be looked at.
        parts: what to fetch, by source.
        blocked: what cannot be fetched.
        beyond_limit: missing files that `limit` leaves for another time.
        free: bytes free on ROOT's disk, if known.
        known_corrupt: files that every known copy holds damaged (`sources.KNOWN_CORRUPT`) and that cannot be fetched.
        listed_bytes: estimate of what all listed files take, those that are here included.
    """

    listed: int
    verified: int
    unverified: tuple[Record, ...]
    parts: tuple[Part, ...]
    blocked: tuple[Blocked, ...]
    beyond_limit: int
    free: int | None
    known_corrupt: tuple[Record, ...] = ()
    listed_bytes: int = 0

    @property
    def files(self) -> int:
        return sum(len(part.records) for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def lacks_disk(self) -> bool:
        return self.free is not None and self.bytes > self.free

    def text(self) -> str:
        """The plan for people."""
        lines = [
            f"{self.listed:,} images are listed: {self.verified:,} are here and verified, "
            f"{len(self.unverified):,} are here and will be verified, {self.files:,} will be fetched"
            + (f", {self.beyond_limit:,} are left for another time" if self.beyond_limit else "")
        ]
        if self.parts:
            lines.append(f"  {'source':<14}{'images':>8}{'about':>10}  by, in this order")
            for part in self.parts:
                size = human_bytes(part.bytes)
                lines.append(f"  {part.source.key:<14}{len(part.records):>8,}{size:>10}  {one_line(part.ways)}")
                if part.whole is None or part.whole.name != PACKED:
                    lines += [f"{'':34}{cost}" for cost in part.costs]
        shared = [part for part in self.parts if part.whole is not None and part.whole.name == PACKED]
        if shared:
            once = f" (once for all {len(shared)} sources)" if len(shared) > 1 else ""
            lines.append(f"  {_whole(shared[0].routes[0])}{once}")
        for block in self.blocked:
            lines.append(f"  {block.source:<14}{len(block.records):>8,}{'':>10}  not possible here: {block.why}")
            lines.append(f"{'':34}{block.remedy}")
        if self.parts:
            whole = any(part.whole is not None for part in self.parts)
            more = ", and as much as an archive that has to be moved whole, see above" if whole else ""
            free = f"{';' if more else ','} {human_bytes(self.free)} are free" if self.free is not None else ""
            lines.append(f"disk: about {human_bytes(self.bytes)} needed{more}{free}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        """The plan as JSON values."""
        return {
            "listed": self.listed,
            "verified": self.verified,
            "to_verify": len(self.unverified),
            "beyond_limit": self.beyond_limit,
            "bytes_estimate": self.bytes,
            "bytes_free": self.free,
            "fetch": [
                {
                    "source": part.source.key,
                    "images": len(part.records),
                    "bytes_estimate": part.bytes,
                    "routes": [*([OWN] if part.own else []), *(route.name for route in part.routes)],
                    "costs": part.costs,
                    "paths": [record.file for record in part.records],
                }
                for part in self.parts
            ],
            "blocked": [
                {
                    "source": block.source,
                    "images": len(block.records),
                    "reason": block.reason,
                    "why": block.why,
                    "remedy": block.remedy,
                }
                for block in self.blocked
            ],
        }


def make_plan(records: Sequence[Record], disk: OnDisk, options: Options) -> Plan:
    """Decide what to verify, what to fetch and by which routes, and what cannot be had.

    Args:
        records: of the manifest, in list order; a file's source is told by its top folder.
        disk: see `OnDisk`.
        options: see `Options`.
    """
    by_source: dict[str, list[Record]] = {}
    verified, unverified, listed, beyond, listed_bytes = 0, [], 0, 0, 0
    for record in records:
        key = source_of(record.file)[0]
        if options.only and key not in options.only:
            continue
        listed += 1
        listed_bytes += disk.files[record.file][0] if record.file in disk.files else _mean_bytes(source_named(key))
        if record.file not in disk.files:
            by_source.setdefault(key, []).append(record)
        elif disk.verified(record):
            verified += 1
        else:
            unverified.append(record)
    parts, blocked, hopeless = [], [], []
    order = [source.key for source in SOURCES]
    for key in sorted(by_source, key=lambda k: (order.index(k) if k in order else len(order), k)):
        missing = by_source[key]
        wanted = missing if options.limit is None else missing[: options.limit]
        beyond += len(missing) - len(wanted)
        source = source_named(key)
        groups: dict[tuple[Route, ...] | _No, list[Record]] = {}
        for record in wanted:
            groups.setdefault(_ways(source, record, options), []).append(record)
        own = tuple(options.own.get(key, ()))
        possible: list[Record] = []
        routes: list[Route] = []
        for ways, grouped in groups.items():
            members = grouped
            if isinstance(ways, _No):
                hopeless += [record for record in members if record.file in KNOWN_CORRUPT]
                members = [record for record in members if record.file not in KNOWN_CORRUPT]
                if not members:
                    continue
                why = ways.why.replace("{path}", repr(members[0].path))
                blocked.append(Blocked(key, tuple(members), ways.reason, why, ways.remedy))
            else:
                possible += members
                routes += [way for way in ways if way not in routes]
        if possible and source is not None:
            wanted_order = {record.file: n for n, record in enumerate(wanted)}
            possible.sort(key=lambda record: wanted_order[record.file])
            routes.sort(key=source.routes.index)
            size = len(possible) * _mean_bytes(source)
            parts.append(Part(source, tuple(possible), own, tuple(routes), size))
    return Plan(
        listed,
        verified,
        tuple(unverified),
        tuple(parts),
        tuple(blocked),
        beyond,
        disk.free,
        tuple(hopeless),
        listed_bytes,
    )


def _mean_bytes(source: Source | None) -> int:
    return (source.mean_bytes if source else None) or UNKNOWN_MEAN_BYTES


@dataclass(frozen=True)
class _No:
    reason: str
    why: str
    remedy: str


def _ways(source: Source | None, record: Record, options: Options) -> tuple[Route, ...] | _No:
    """The routes that can give a file (none: the user's own files alone), or why there is no way."""
    if source is None:
        folder = PurePosixPath(record.file).parts[0]
        why = f"{folder!r} is not a folder of ImagiNet, so nobody says where its images come from"
        return _No("unknown", why, "put the files under ROOT yourself")
    have_own = source.key in options.own
    by_place = source.key == "imagenet" and imagenet_basename(record.file) is None
    if by_place and kaggle_name(record.file) is None and not have_own:
        why = "names that are in none of ImageNet's conventions, such as {path}"
        remedy = (
            "expected ILSVRC2012_val_########.JPEG or n########_#.JPEG, with or without _n######## before the ending"
        )
        return _No("format", why, remedy)
    forced = options.routes.get(source.key)
    folder = PurePosixPath(record.file).parts[0]
    routes = [r for r in source.routes if folder in r.folders and forced in (None, r.name)]
    bring = f"bring the files yourself with --from {source.key}=PATH ({source.homepage})"
    if options.offline or forced == OWN:
        return () if have_own else _No("offline", "offline mode is on (HF_HUB_OFFLINE)", bring)
    if forced and not routes and not have_own:
        return _No("unknown", f"the route {forced} does not give {folder}", "leave --route out, or " + bring)
    if by_place:  # a name that tells nothing, where Kaggle has its files
        routes = [r for r in routes if r.reader == "kaggle-files"]
    allowed = tuple(r for r in routes if r.credential is None or r.credential in options.credentials)
    if allowed or have_own:
        return allowed
    first = {str(route.credential): route for route in reversed(routes)}
    hows = [f"for {name}, {_ACCOUNTS[name]}, and accept the terms on {first[name].click}" for name in sorted(first)]
    remedy = f"{'; or '.join(hows)} (`imaginet sources` tells more); or {bring}"
    return _No("access", f"an account is needed ({' or '.join(sorted(first))})", remedy)
