"""What the metrics of both tracks share: the stratified bootstrap, vectorised, and groups. Numpy only.

Percentile intervals (Efron & Tibshirani 1993, chapter 13): rows are drawn with replacement within each stratum, such
as a class, so that the sizes of strata stay as they are, and the interval lies between two percentiles of the
statistic over the resamples. A resample is never written out: how often each row was drawn is all that a statistic
needs, and many resamples are computed at once, as rows of one table of such counts. A table holds so many resamples
as fit in a fixed number of cells, whatever the number of resamples.

Percentile intervals are too narrow for classes of a few rows. See `Bootstrap.interval` for the worst of that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from zlib import crc32

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imaginet_hub.errors import UsageError

__all__ = ["Bootstrap", "Strata", "column_values"]

#: Cells of a table of counts: these stay in the processor's cache.
_CELLS = 400_000


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        n_resamples: number of resamples, 1 or more.
        confidence: coverage that the intervals aim at, in (0, 1).
        seed: non-negative; the same seed and data give the same intervals.
    """

    n_resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n_resamples < 1:
            raise UsageError(f"expected n_resamples of 1 or more, got {self.n_resamples}")
        if not 0 < self.confidence < 1:
            raise UsageError(f"expected confidence between 0 and 1, such as 0.95, got {self.confidence}")
        if self.seed < 0:
            raise UsageError(f"expected a seed of 0 or more, got {self.seed}")

    def chunks(self, rows: int) -> Iterator[range]:
        """The resamples by number, as many at a time as are computed at once for so many rows."""
        size = max(1, _CELLS // max(1, rows))
        for start in range(0, self.n_resamples, size):
            yield range(start, min(start + size, self.n_resamples))

    def counts(self, chunk: range, size: int, key: str) -> NDArray[np.intp]:
        """How often each row of a stratum is drawn: as many draws with replacement as it has rows.

        Args:
            chunk: numbers of the resamples, one of `chunks`.
            size: rows of the stratum, 0 or more.
            key: names the stratum. What is drawn depends on the seed, the chunk, the size and this name alone: so an
                interval does not depend on which other ones are computed, and strata of one name and size are the
                same rows drawn.

        Returns:
            (resamples, size), each row with the sum `size`.
        """
        rng = np.random.default_rng([self.seed, crc32(key.encode(errors="surrogatepass")), chunk.start])
        drawn = rng.integers(max(1, size), size=(len(chunk), size))
        drawn += np.arange(len(chunk))[:, None] * size
        return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)

    def interval(
        self, value: float, replicates: NDArray[np.floating], rows: int, *, proportion: bool = True
    ) -> dict[str, float]:
        """A value with its percentile interval: {"value", "low", "high"}.

        Where every resample gives 0, or every one 1, the percentiles leave the interval without a width, as if eight
        rows called right proved that all will be. The end that lies inwards is then the bound that Wilson (1927,
        "Probable inference, the law of succession, and statistical inference", J. Am. Stat. Assoc. 22) gives for 0 or
        n successes of n: 1 has the low end n / (n + z^2), and 0 the high end z^2 / (n + z^2), with z the normal
        quantile of the confidence. For an accuracy that is exact theory, for other metrics a sensible width. Other
        values that no resample changes, such as the .5 of scores that are all equal, keep an interval without width.

        Args:
            value: the statistic on the data themselves.
            replicates: (n_resamples,) the statistic on each resample; undefined ones (NaN) are left out.
            rows: size of the smallest class that the statistic rests on. A single row tells nothing of the spread:
                the bounds are NaN then, as they are for an undefined value.
            proportion: whether the statistic lies in [0, 1], without which there are no Wilson bounds.
        """
        defined = replicates[~np.isnan(replicates)]
        if rows < 2 or np.isnan(value) or not defined.size:
            return {"value": float(value), "low": float("nan"), "high": float("nan")}
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(defined, [tail, 1 - tail])
        if proportion and value in (0, 1) and np.all(defined == value):
            low, high = (1 - self.unseen(rows), 1) if value == 1 else (0, self.unseen(rows))
        return {"value": float(value), "low": float(low), "high": float(high)}

    def unseen(self, rows: int) -> float:
        """Wilson's bound for the share of what none of so many rows showed, z^2 / (rows + z^2)."""
        squared = NormalDist().inv_cdf((1 + self.confidence) / 2) ** 2
        return squared / (rows + squared)


class Strata:
    """Rows of several strata, drawn together: for statistics that share their rows.

    Args:
        labels: (n,) the stratum of each row; anything that numpy can sort.
    """

    def __init__(self, labels: ArrayLike) -> None:
        names, places = np.unique(np.asarray(labels), return_inverse=True)
        self.rows = [np.flatnonzero(places == place) for place in range(len(names))]
        self.order = np.argsort(np.concatenate(self.rows)) if self.rows else np.zeros(0, np.intp)

    def counts(self, bootstrap: Bootstrap, chunk: range) -> NDArray[np.intp]:
        """(resamples, n) how often each row is drawn."""
        drawn = [bootstrap.counts(chunk, len(rows), f"stratum {place}") for place, rows in enumerate(self.rows)]
        return np.take(np.concatenate(drawn, axis=1), self.order, axis=1)


def column_values(groups: Mapping[str, Sequence[str]], n: int) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Every value of every column, with the rows that have it.

    Args:
        groups: for each column, the value of each of the n rows.
        n: number of rows.

    Yields:
        (column, value, mask (n,)); values in alphabetical order.

    Raises:
        UsageError: a column does not have n values.
    """
    for column, values in groups.items():
        array = np.asarray(values, dtype=object)
        if array.shape != (n,):
            raise UsageError(f"column {column!r}: expected one value for each of {n} rows, got {len(values)}")
        for value in sorted(set(values)):
            yield column, value, array == value
