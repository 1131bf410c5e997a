"""What a run that reads a stream leaves to the next."""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from imaginet_hub.data.readers.deflate import WINDOW, Broken, Point

__all__ = ["MAX_NAME", "StreamState"]

#: No system takes longer names.
MAX_NAME = 4096
#: What names may fill before they are written, how often the state says how far the download is, the longest line that
#: is believed, where it stops growing.
_NAMES, _REACHED, _MAX_LINE, _MAX_STATE = 512 * 1024, 1024**2, 16 * 1024**2, 1024**3


class StreamState:
    """What a run leaves to the next: a file that only grows, of lines with a checksum each.

    The first says whose it is. The others hold any of: a point, members listed since the line before (offset, name),
    where the listing stands, how far the download was. A torn last line is as if it were not there. What cannot be
    written is not kept: it only costs the next run.

    Attributes:
        points: place in the tar archive of each known point, of its line in the file, and up to where the tar archive
            was listed before that line.
        listed: up to where the tar archive was listed.
        ended: whether that was its end.
        reached: compressed bytes that earlier runs had.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self._path = path
        self._identity = identity
        self._file: BinaryIO | None = None
        self._members: list[tuple[int, str]] = []
        self._names = 0
        self._told = 0
        self._first = 0
        self._kept = 0
        self._written = 0
        self.points: list[tuple[int, int, int]] = []
        self.listed = 0
        self.ended = False
        self.reached = 0

    def load(
        self, match: Callable[[str], list[str]], left: Iterable[str], check: Callable[[], None]
    ) -> dict[int, tuple[str, list[str]]]:
        """Read what is there, and make ready to add to it.

        Returns:
            Members that are wanted, by offset: name, and the wanted paths that it stands for.
        """
        known: dict[int, tuple[str, list[str]]] = {}
        if self._path is None:
            return known
        sought = set(left)
        good = 0
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._file = self._path.open("a+b", buffering=0)
            with self._path.open("rb") as lines:
                while line := lines.readline(_MAX_LINE):
                    check()
                    entry = _unpacked(line)
                    if entry is None or not (self._take(entry, good) if good else entry == self._identity):
                        break
                    good += len(line)
                    self._first = self._first or good
                    for offset, name in entry.get("members", ()):
                        paths = [path for path in match(name) if path in sought]
                        if paths:
                            sought.difference_update(paths)  # the first one counts
                            known[offset] = name, paths
            file.truncate(good)
            self._kept = good
            if not good:
                self._write(self._identity)
                self._first = self._kept
        except OSError:
            self._give_up()
        self._told, self._written = self.reached, self.listed
        return known

    def _take(self, entry: dict[str, Any], at: int) -> bool:
        """Believe one line, if its values can be."""
        total = self._identity["bytes"]
        listed, reached, members = entry.get("listed"), entry.get("reached"), entry.get("members", [])
        if not (_number(listed) and _number(reached) and isinstance(members, list)):
            return False
        if not (self.listed <= listed and reached <= total):
            return False
        for member in members:
            if not (isinstance(member, list) and len(member) == 2 and isinstance(member[1], str)):
                return False
            if not (_number(member[0]) and self.listed <= member[0] < listed):
                return False
        if "point" in entry:
            point = _point(entry["point"], total)
            if point is None or point.out > listed or (self.points and point.out <= self.points[-1][0]):
                return False
            self.points.append((point.out, at, self.listed))
        self.listed, self.reached = listed, max(self.reached, reached)
        self.ended = self.ended or entry.get("ended") is True
        return True

    def before(self, offset: int) -> int | None:
        """The number of the last point that is not after a place."""
        return next((n for n in range(len(self.points) - 1, -1, -1) if self.points[n][0] <= offset), None)

    def point(self, number: int) -> Point:
        """A point whole, which is not kept in memory."""
        entry = None
        if self._path is not None:
            with contextlib.suppress(OSError), self._path.open("rb") as lines:
                lines.seek(self.points[number][1])
                entry = _unpacked(lines.readline(_MAX_LINE))
        point = _point(entry["point"], self._identity["bytes"]) if entry and "point" in entry else None
        if point is None or point.out != self.points[number][0]:
            raise Broken("a state that changed meanwhile")
        return point

    def add(self, offset: int, name: str, listed: int) -> None:
        """A member was passed; the next begins at `listed`. What was known already is not told again.

        Args:
            name: empty if nobody can want it.
        """
        if listed <= self.listed:
            return
        self.listed = listed
        if self._file is not None and name:
            self._members.append((offset, name))
            self._names += len(name) + 32

    def progress(self, position: int, point: Point | None, reached: int) -> None:
        """Between two members: keep what is worth it."""
        last = self.points[-1][0] if self.points else 0
        if point is not None and last < point.out <= position and self._file is not None:
            self.points.append((point.out, self._kept, self._written))
            self.save(reached, point)
        elif self._names >= _NAMES or reached >= self._told + _REACHED:
            self.save(reached)

    def save(self, reached: int, point: Point | None = None) -> None:
        """Write what is new."""
        entry: dict[str, Any] = {"listed": self.listed, "reached": max(reached, self._told)}
        if self._members:
            entry["members"] = self._members
        if self.ended:
            entry["ended"] = True
        if point is not None:
            window = base64.b64encode(point.window).decode()
            entry["point"] = [point.at, point.bit, point.out, point.crc, point.length, window]
        self._write(entry)
        self._members, self._names, self._written = [], 0, self.listed
        self._told = max(reached, self._told)

    def _write(self, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        text = json.dumps(entry, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        try:
            done = self._kept + len(line) <= _MAX_STATE and self._file.write(line) == len(line)
        except OSError:
            done = False
        if done:
            self._kept += len(line)
        else:
            self._give_up()

    def _give_up(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None

    def rewind(self, reached: int) -> None:
        """The archive breaks further on: keep what lies before the last point, which may be of damaged bytes."""
        if self._file is None:
            return
        _, self._kept, self.listed = self.points.pop() if self.points else (0, self._first, 0)
        self._members, self._names, self.ended = [], 0, False
        try:
            self._file.truncate(self._kept)
        except OSError:
            self.forget()
        self.save(reached)
        self._give_up()

    def forget(self) -> None:
        """There was nothing."""
        self._give_up()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)

    close = _give_up


def _unpacked(line: bytes) -> dict[str, Any] | None:
    """What a line of the state says, if it is whole."""
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:-1]) or line[-1:] != b"\n":
            return None
        entry = json.loads(line[9:-1])
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _point(values: object, total: int) -> Point | None:
    """A point as the state has it, if its values can be true."""
    if not (isinstance(values, list) and len(values) == 6 and all(map(_number, values[:5]))):
        return None
    at, bit, out, crc, length, text = values
    if not (isinstance(text, str) and at < total and bit < 8 and crc < 2**32 and length <= out):
        return None
    try:
        window = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return Point(at, bit, out, crc, length, window) if len(window) == min(length, WINDOW) else None
