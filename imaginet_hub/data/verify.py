"""Check a ROOT again: every file against the ledger, every listed file that the ledger does not know, and twins."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaginet_hub.data.images import examine, read_bytes
from imaginet_hub.data.ledger import Entry, read_ledger
from imaginet_hub.data.manifest import Record, find_annotations, read_annotations
from imaginet_hub.data.progress import progress_bar
from imaginet_hub.errors import DataNotFoundError, ImageError, UsageError

__all__ = ["Verification", "verify"]

_SHOWN = 10


@dataclass(frozen=True)
class Verification:
    """What a look at every file found.

    Attributes:
        root: ROOT.
        intact: files that are as the ledger says.
        unlisted: listed by the annotations, not in the ledger, and readable images.
        problems: path -> (reason, what is wrong): changed | missing | damaged.
        absent: listed by the annotations and not there (a partial ROOT).
        twins: groups of paths with the same bytes, of which some are in one split and some in another.
        listed: whether there were annotations to go by.
    """

    root: Path
    intact: int
    unlisted: tuple[str, ...]
    problems: Mapping[str, tuple[str, str]]
    absent: int
    twins: tuple[tuple[tuple[str, str], ...], ...]
    listed: bool = True

    @property
    def fine(self) -> bool:
        """Whether every file that was verified once is still what it was."""
        return not self.problems

    def text(self) -> str:
        """The result for people."""
        absent = f"{self.absent:,} listed images are not here"
        if not self.listed:
            absent = "without lists (--annotations) nothing is known of what is not here"
        lines = [
            f"{self.root}: {self.intact:,} files are as the ledger says, {len(self.problems):,} are not; "
            f"{len(self.unlisted):,} readable images are not in the ledger; {absent}"
        ]
        problems = sorted(self.problems.items())
        lines += [f"  {reason}: {path}: {what}" for path, (reason, what) in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  ... and {len(problems) - _SHOWN:,} more")
        if problems:
            lines.append(
                "Delete what changed and run the `imaginet fetch` that filled ROOT, to have it fetched again."
            )
        if self.unlisted:
            lines.append("Run the `imaginet fetch` that filled ROOT, to enter what is not in the ledger.")
        if self.twins:
            lines.append(f"{len(self.twins):,} images are in more than one split, byte for byte:")
            shown = [" = ".join(f"{split}:{path}" for path, split in group) for group in self.twins[:_SHOWN]]
            lines += [f"  {line}" for line in shown]
            if len(self.twins) > _SHOWN:
                lines.append(f"  ... and {len(self.twins) - _SHOWN:,} more")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "root": str(self.root),
            "intact": self.intact,
            "not_in_ledger": list(self.unlisted),
            "problems": [
                {"path": path, "reason": reason, "message": what}
                for path, (reason, what) in sorted(self.problems.items())
            ],
            "absent": self.absent,
            "identical_across_splits": [
                [{"path": path, "split": split} for path, split in group] for group in self.twins
            ],
            "fine": self.fine,
        }


def verify(
    root: str | os.PathLike[str],
    *,
    annotations: str | os.PathLike[str] | None = None,
    max_workers: int | None = None,
) -> Verification:
    """Read every file of a ROOT again.

    Args:
        root: a folder that `fetch` filled, or any ROOT with annotations.
        annotations: as for `fetch`; they tell which files should be there, and their splits.
        max_workers: threads. Default: one per core.

    Raises:
        DataNotFoundError: no folder, or neither a ledger nor annotations in it.
        AnnotationError: see `read_annotations`.
        UsageError: `max_workers` is not positive.
    """
    if max_workers is not None and max_workers < 1:
        raise UsageError(f"max_workers: expected a positive number, got {max_workers}")
    base = Path(root).expanduser()
    if not base.is_dir():
        raise DataNotFoundError(f"expected a folder of images (ROOT) at {base}, found none")
    entries = read_ledger(base)
    place = find_annotations(base) if annotations is None else Path(annotations).expanduser()
    records: dict[str, Record] = {}
    if place is not None:
        records = {record.file: record for record in read_annotations(place).records}
    if not entries and not records:
        raise DataNotFoundError(
            f"{base} has neither a ledger (from `imaginet fetch`) nor annotations; name them with --annotations"
        )

    def look(path: str) -> tuple[str, str | None, tuple[str, str] | None]:
        """Path, SHA-256, and what is wrong."""
        entry = entries.get(path)
        try:
            data = read_bytes(base / path)
            digest = hashlib.sha256(data).hexdigest()
            if entry is None:
                examine(data, path)
        except ImageError as error:
            reason = "missing" if error.reason == "missing" else "damaged"
            return path, None, (reason, error.message)
        if entry is not None and digest != entry.sha256:
            return path, digest, ("changed", _difference(entry, len(data), digest))
        return path, digest, None

    paths = [*entries, *(path for path in records if path not in entries)]
    pool = ThreadPoolExecutor(max_workers or os.cpu_count() or 1)
    try:
        found = list(progress_bar(pool.map(look, paths), total=len(paths), desc="verifying", unit="img"))
    finally:
        pool.shutdown(cancel_futures=True)
    problems: dict[str, tuple[str, str]] = {}
    intact, unlisted, absent = 0, [], 0
    by_digest: dict[str, list[tuple[str, str]]] = {}
    for path, digest, problem in found:
        entry = entries.get(path)
        if problem is not None and entry is None and problem[0] == "missing":
            absent += 1
        elif problem is not None:
            problems[path] = problem
        elif entry is None:
            unlisted.append(path)
        else:
            intact += 1
        if digest is not None:
            split = records[path].split if path in records else entry.split if entry is not None else ""
            by_digest.setdefault(digest, []).append((path, split))
    twins = [tuple(sorted(group)) for group in by_digest.values() if len({split for _, split in group}) > 1]
    return Verification(base, intact, tuple(unlisted), problems, absent, tuple(sorted(twins)), bool(records))


def _difference(entry: Entry, size: int, digest: str) -> str:
    if size != entry.bytes:
        return f"expected {entry.bytes:,} bytes as on {entry.when}, found {size:,}"
    return f"expected SHA-256 {entry.sha256} as on {entry.when}, found {digest}"
