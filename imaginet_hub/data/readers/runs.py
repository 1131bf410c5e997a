"""Members of an archive that lie near one another are read in one request."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

__all__ = ["MAX_MEMBER_BYTES", "Placed", "Run", "Window", "plan_runs"]

#: No image of ImagiNet comes near; a member that claims more is not one.
MAX_MEMBER_BYTES = 256 * 1024**2
#: Wanted bytes of one request: enough that latency vanishes, few enough that connections share the work.
_RUN_BYTES = 4 * 1024**2
#: Reading a gap must be cheaper than another request, and all gaps together stay below this share of what is wanted.
_GAP_BYTES = 128 * 1024
_GAP_SHARE = 0.01


class Placed(Protocol):
    """A member whose place in the archive is known."""

    @property
    def offset(self) -> int:
        """Where it begins."""

    @property
    def end(self) -> int:
        """Where it ends at the latest."""

    @property
    def moved(self) -> int:
        """Bytes that reading it moves."""

    @property
    def held(self) -> int:
        """Bytes that reading it holds in memory."""


Place = TypeVar("Place", bound=Placed)


@dataclass(frozen=True)
class Run(Generic[Place]):
    """Neighbouring members, read with one request."""

    start: int
    end: int
    members: tuple[tuple[str, Place], ...]

    @property
    def held_bytes(self) -> int:
        """What reading it holds in memory at a time."""
        return max(member.held for _, member in self.members)


class Window:
    """A stream as if it could be sliced, forwards only; it holds no more than what is taken and a piece."""

    def __init__(self, pieces: Iterator[bytes], start: int) -> None:
        self._pieces = pieces
        self._start = start
        self._piece = b""

    def take(self, start: int, length: int) -> bytes:
        """Up to `length` bytes from `start`, which is not before the end of what was taken last."""
        out = io.BytesIO()  # which gives its bytes away without a copy
        position, end = start, start + length
        while position < end:
            piece_end = self._start + len(self._piece)
            if position >= piece_end:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._start, self._piece = piece_end, piece
            elif position < self._start:
                break
            else:
                position += out.write(memoryview(self._piece)[position - self._start : end - self._start])
        return out.getvalue()

    @property
    def position(self) -> int:
        """Up to where the stream has been read."""
        return self._start + len(self._piece)

    def drain(self) -> None:
        """Read what is left."""
        for _ in self._pieces:
            pass


def plan_runs(members: Mapping[str, Place]) -> list[Run[Place]]:
    """Which members to read together. Pure.

    Gaps between wanted members are read over, smallest first, as long as they stay below 1 % of the wanted bytes.
    """
    ordered = sorted(members.items(), key=lambda item: (item[1].offset, item[0]))
    gaps = [(b.offset - a.end, number) for number, ((_, a), (_, b)) in enumerate(itertools.pairwise(ordered), start=1)]
    bridged, spent, budget = set(), 0, _GAP_SHARE * sum(member.moved for member in members.values())
    for gap, number in sorted(item for item in gaps if 0 <= item[0] <= _GAP_BYTES):
        spent += gap
        if spent > budget:
            break
        bridged.add(number)
    runs: list[list[tuple[str, Place]]] = []
    for number, (path, member) in enumerate(ordered):
        if number in bridged and member.end - runs[-1][0][1].offset <= _RUN_BYTES:
            runs[-1].append((path, member))
        else:
            runs.append([(path, member)])
    return [Run(run[0][1].offset, max(m.end for _, m in run), tuple(run)) for run in runs]
