"""The worst mistakes of each group, with small pictures of them, kept while rows stream by."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

__all__ = ["Mistake", "Mistakes"]


@dataclass(frozen=True)
class Mistake:
    """A row that was answered wrong.

    Attributes:
        path: of the image.
        label, answer: its class, and the one that was named.
        probability: of the class that was named, in [0, 1].
        thumbnail: the image as it was predicted, made smaller.
    """

    path: str
    label: str
    answer: str
    probability: float
    thumbnail: Image.Image


@dataclass
class Mistakes:
    """The `per_group` worst mistakes of each group, by how little probability the right class was given.

    Attributes:
        per_group: how many are kept.
        side: longest side of their pictures, pixels.
    """

    per_group: int = 6
    side: int = 160
    _kept: dict[str, list[tuple[float, int, Mistake]]] = field(default_factory=dict)
    _offered: int = 0

    def offer(
        self,
        group: str,
        right: float,
        path: str,
        label: str,
        answer: str,
        probability: float,
        image: Callable[[], Image.Image],
    ) -> None:
        """Keep a mistake if it is among the worst of its group so far.

        Args:
            group: such as the generator.
            right: probability that the right class was given.
            path, label, answer, probability: see `Mistake`.
            image: gives the picture; called only where it is kept.
        """
        kept = self._kept.setdefault(group, [])
        self._offered += 1
        if len(kept) == self.per_group and -right <= kept[0][0]:
            return
        picture = image().copy()
        picture.thumbnail((self.side, self.side))
        # Of equally wrong ones the first stays.
        entry = (-right, -self._offered, Mistake(path, label, answer, probability, picture))
        (heapq.heappush if len(kept) < self.per_group else heapq.heapreplace)(kept, entry)

    def by_group(self) -> dict[str, list[Mistake]]:
        """Group -> its mistakes, the worst first; groups in alphabetical order."""
        return {group: [item[2] for item in sorted(self._kept[group], reverse=True)] for group in sorted(self._kept)}
