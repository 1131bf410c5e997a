"""Look at every image once before anything is written: what is there, what is not fit to go in, and why."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets.utils import tqdm

from imaginet_hub.data.images import ImageFacts, examine, read_bytes
from imaginet_hub.data.manifest import Manifest, Record
from imaginet_hub.data.sources import KNOWN_CORRUPT
from imaginet_hub.errors import BuildError, DataNotFoundError, ImageError, UsageError

__all__ = ["ON_ERROR", "LeftOut", "Scan", "content_fingerprint", "examine_file", "fingerprint", "is_missing", "scan"]

ON_ERROR = ("raise", "skip")
_SHOWN = 200


@dataclass(frozen=True)
class LeftOut:
    """One image that did not go in.

    Attributes:
        path: as written in the annotations.
        split: where it would have gone.
        reason: missing | unreadable | truncated | oversized | checksum.
        message: what was expected and what was found.
        policy: "on_error" when the user chose to skip, "known_corrupt" for files damaged in every known copy,
            "allow_partial" for files that are not there in a ROOT that need not be complete.
    """

    path: str
    split: str
    reason: str
    message: str
    policy: str


@dataclass(frozen=True)
class Scan:
    """The images that are fit to go in, with their facts, and those that are not.

    Attributes:
        kept: records in the manifest's order.
        facts: by `Record.file`.
        left_out: in the manifest's order.
    """

    kept: tuple[Record, ...]
    facts: Mapping[str, ImageFacts]
    left_out: tuple[LeftOut, ...]

    def left_out_json(self) -> list[dict[str, Any]]:
        """The left-out images as JSON objects, but for those of a partial ROOT, which `missing` lists."""
        return [asdict(item) for item in self.left_out if item.policy != "allow_partial"]

    @property
    def missing(self) -> tuple[str, ...]:
        """Paths of the images that a partial ROOT does not have, as written in the annotations."""
        return tuple(item.path for item in self.left_out if item.policy == "allow_partial")


def examine_file(root: Path, record: Record) -> tuple[bytes, ImageFacts]:
    """The bytes of one record's file and their facts, its checksum verified when the list gives one.

    Raises:
        ImageError: missing, unreadable, truncated, oversized, or other bytes than the list promises.
    """
    data = read_bytes(root / record.file)
    if record.sha256 is not None:
        found = hashlib.sha256(data).hexdigest()
        if found != record.sha256:
            raise ImageError("checksum", f"{record.path}: expected SHA-256 {record.sha256}, found {found}")
    return data, examine(data, record.path)


def scan(
    root: str | os.PathLike[str],
    manifest: Manifest,
    *,
    on_error: str = "raise",
    allow_partial: bool = False,
    num_proc: int | None = None,
    known: Mapping[str, ImageFacts] | None = None,
) -> Scan:
    """Read, hash and completely decode every image of a manifest.

    Args:
        root: the folder that the manifest's paths are relative to.
        manifest: what should be there.
        on_error: "raise" (after all have been looked at) or "skip". Files of `sources.KNOWN_CORRUPT` are left out
            under either when they turn out damaged or missing.
        allow_partial: leave out files that are not there under either.
        num_proc: threads; decoding releases the interpreter lock. Default: one per core.
        known: by `Record.file`, what an earlier complete look found at files that the caller vouches for. While a
            file has the size it had then, it is not opened; readers compare its checksum (see `builder.row_of`).

    Raises:
        BuildError: with on_error="raise", listing every offender (also in its `offenders` attribute); under any
            setting when nothing is left.
        DataNotFoundError: `root` is not a folder.
    """
    root = Path(root)
    if on_error not in ON_ERROR:
        raise UsageError(f"on_error: expected one of {', '.join(ON_ERROR)}, got {on_error!r}")
    if not root.is_dir():
        raise DataNotFoundError(f"expected a folder of images at {root}, found none")

    def look(record: Record) -> ImageFacts | LeftOut:
        facts = (known or {}).get(record.file)
        if facts is not None and record.sha256 in (None, facts.sha256) and _has_size(root / record.file, facts.size):
            return facts
        try:
            return examine_file(root, record)[1]
        except ImageError as error:
            policy = "on_error"
            if allow_partial and error.reason == "missing":
                policy = "allow_partial"
            elif record.file in KNOWN_CORRUPT:
                policy = "known_corrupt"
            return LeftOut(record.path, record.split, error.reason, error.message, policy)

    workers = max(1, num_proc or os.cpu_count() or 1)
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        results = list(
            tqdm(pool.map(look, manifest.records), total=len(manifest.records), desc="Checking images", unit="img")
        )
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the files in flight, not for the rest

    kept, facts, left_out = [], {}, []
    for record, result in zip(manifest.records, results, strict=True):
        if isinstance(result, LeftOut):
            left_out.append(result)
        else:
            kept.append(record)
            facts[record.file] = result
    offenders = [item for item in left_out if item.policy == "on_error"]
    if offenders and on_error == "raise":
        raise offenders_error(root, offenders, len(manifest.records))
    if not kept:
        raise offenders_error(
            root, left_out, len(manifest.records), remedy="Nothing would be left; repair or fetch some"
        )
    return Scan(tuple(kept), facts, tuple(left_out))


def _has_size(path: Path, size: int) -> bool:
    """Whether there is a regular file of that many bytes."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def is_missing(path: Path) -> bool:
    """Whether there is nothing at a path; something that cannot be read is not missing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def offenders_error(root: Path, offenders: Sequence[LeftOut], total: int, remedy: str | None = None) -> BuildError:
    """One error that lists all images that cannot go in."""
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in Counter(o.reason for o in offenders).most_common())
    lines = [f"  {item.message}" for item in offenders[:_SHOWN]]
    if len(offenders) > _SHOWN:
        tops = Counter(Path(o.path).parts[0] for o in offenders)
        folders = ", ".join(f"{n:,} in {top}" for top, n in tops.most_common())
        lines.append(f"  ... and {len(offenders) - _SHOWN:,} more ({folders})")
    if remedy is None:
        remedy = "Repair or fetch them, or leave them out and on record with on_error='skip' (--on-error skip)"
        if any(o.reason == "missing" for o in offenders):
            remedy += "; with allow_partial=True (--allow-partial) what is there is built and the missing ones counted"
    error = BuildError(
        f"{len(offenders):,} of {total:,} images under {root} cannot go in ({reasons}):\n"
        + "\n".join(lines)
        + f"\n{remedy}."
    )
    error.offenders = tuple(offenders)  # type: ignore[attr-defined]
    return error


def fingerprint(root: str | os.PathLike[str], manifest: Manifest) -> str:
    """A name for the state of a ROOT that changes when a list or a file changes; files are not opened.

    Size, modification and status-change times stand for a file's content, as in make and rsync.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256()
    base = os.path.realpath(root)
    digest.update(base.encode(errors="surrogateescape"))
    for name, sha256 in manifest.lists:
        digest.update(f"\n{Path(name).name} {sha256}".encode())
    for record in manifest.records:
        try:
            status = os.stat(f"{base}/{record.file}")  # noqa: PTH116 - 200,000 calls
            state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        except (OSError, ValueError):
            state = "missing"
        digest.update(f"\n{record.file} {state}".encode())
    return digest.hexdigest()[:16]


def content_fingerprint(rows: Iterable[tuple[str, ...]]) -> str:
    """A name for a set of labelled images: the same wherever, in whatever order and in whichever splits they are.

    So datasets whose splits were swapped or cut anew have one fingerprint; their splits, one by one, have others.

    Args:
        rows: (sha256, label, generator_family, generator) per image, class names.

    Returns:
        16 hexadecimal digits of the SHA-256 over the sorted rows.
    """
    digest = hashlib.sha256()
    for row in sorted("\t".join(row) for row in rows):
        digest.update(row.encode() + b"\n")
    return digest.hexdigest()[:16]
