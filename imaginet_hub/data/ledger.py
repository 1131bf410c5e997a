"""The ledger of a ROOT: one line for each file that was verified, appended as soon as the file has its name.

`ROOT/.imaginet/ledger.jsonl` holds JSON objects. A later line about a path replaces an earlier one; a line that a kill
or a full disk cut short is ignored, and the file it spoke of is simply verified again.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from imaginet_hub.data.images import ImageFacts
from imaginet_hub.data.manifest import Record
from imaginet_hub.errors import FetchError

__all__ = ["FOLDER", "Entry", "Ledger", "known_facts", "read_ledger"]

#: What a fetch keeps beside the images.
FOLDER = ".imaginet"
_FILE = "ledger.jsonl"


@dataclass(frozen=True, slots=True)
class Entry:
    """One verified file.

    Attributes:
        path: below ROOT.
        sha256: of its bytes.
        bytes: its size.
        source: key of the source.
        route: how it came: a route's name, `own` (from the user's folders), or `found` (it was there already).
        license: as in the dataset's column.
        when: UTC, ISO 8601.
        split: as in the annotations.
        width, height, format: see `ImageFacts`.
        mtime_ns: its modification time; while size and time are these, the file is taken to be unchanged.
    """

    path: str
    sha256: str
    bytes: int
    source: str
    route: str
    license: str
    when: str
    split: str
    width: int
    height: int
    format: str
    mtime_ns: int

    @classmethod
    def of(cls, record: Record, facts: ImageFacts, route: str, mtime_ns: int) -> Entry:
        """The entry of a file that was verified just now."""
        return cls(
            path=record.file,
            sha256=facts.sha256,
            bytes=facts.size,
            source=record.source,
            route=route,
            license=record.license,
            when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            split=record.split,
            width=facts.width,
            height=facts.height,
            format=facts.format,
            mtime_ns=mtime_ns,
        )

    @property
    def facts(self) -> ImageFacts:
        return ImageFacts(self.sha256, self.width, self.height, self.format, self.bytes)


_SHA256 = re.compile(r"[0-9a-f]{64}")
_KINDS: Mapping[str, type] = {f.name: int if f.type == "int" else str for f in fields(Entry)}


def _entry(line: bytes) -> Entry | None:
    """A line's entry; None for one that was cut short or is not ours."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not all(type(values.get(k)) is kind for k, kind in _KINDS.items()):
        return None
    entry = Entry(**{name: values[name] for name in _KINDS})
    path = PurePosixPath(entry.path)
    inside = str(path) == entry.path and not path.is_absolute() and ".." not in path.parts and "\0" not in entry.path
    return entry if inside and _SHA256.fullmatch(entry.sha256) else None


def read_ledger(root: Path) -> dict[str, Entry]:
    """The entries by path; none if there is no ledger.

    Raises:
        FetchError: (reason "disk") it is there and cannot be read.
    """
    file = root / FOLDER / _FILE
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        remedy = "make it readable, or remove it: files are then verified again"
        raise FetchError("disk", "ledger", str(file), "a file that can be read", str(error), remedy) from error
    entries = (_entry(line) for line in data.split(b"\n") if line)
    return {entry.path: entry for entry in entries if entry is not None}


def known_facts(root: str | os.PathLike[str], records: Iterable[Record]) -> dict[str, ImageFacts]:
    """What the ledger knows of records' files that are unchanged since (same size, same modification time)."""
    root = Path(root)
    entries = read_ledger(root)
    known = {}
    for record in records:
        entry = entries.get(record.file)
        if entry is None:
            continue
        try:
            status = (root / record.file).stat()
        except (OSError, ValueError):
            continue
        if (status.st_size, status.st_mtime_ns) == (entry.bytes, entry.mtime_ns):
            known[record.file] = entry.facts
    return known


class Ledger:
    """A ledger open for appending, by many threads of one process.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / FOLDER / _FILE
        self._lock = threading.Lock()
        self.entries = read_ledger(root)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._cut_short():
            self._rewrite()
        self._file = self._path.open("ab", buffering=0)
        self._torn = False

    def _cut_short(self) -> bool:
        """Whether the last line has no end."""
        with self._path.open("a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            return file.read(1) not in (b"", b"\n")

    def _rewrite(self) -> None:
        """Without the line that was cut short: nothing may be appended to it."""
        whole = "".join(_line(entry) for entry in self.entries.values())
        temporary = self._path.with_suffix(".incomplete")
        temporary.write_text(whole, encoding="utf-8")
        temporary.replace(self._path)

    def append(self, entry: Entry) -> None:
        """Record one file, now."""
        line = _line(entry).encode()
        with self._lock:
            if self._torn:  # not the whole of the last line could be written
                line = b"\n" + line
            self._torn = True
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            self._torn = False
            self.entries[entry.path] = entry

    def close(self) -> None:
        self._file.close()


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry), ensure_ascii=True) + "\n"
