"""Images that occur more than once, as they are or nearly so: groups of row numbers. Numpy only.

Exact copies have equal digests. Near ones have perceptual hashes that differ in at most `HAMMING_LIMIT` of 64 bits
*and* thumbnails that look alike: of flat or dark images the hash says nothing, the thumbnail does. A group is what is
connected by such pairs, so its ends may be less alike. Mirrored and rotated copies are not found.

Pairs are found by the pigeonhole principle: of 8 bands of 8 bits, two hashes that differ in 7 bits have one in common.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from imaginet_hub.errors import UsageError

__all__ = ["HAMMING_LIMIT", "describe_groups", "exact_groups", "near_groups"]

#: Bits of 64 in which the hashes of near duplicates may differ.
HAMMING_LIMIT = 7
# Thumbnails look alike when their root mean square difference is at most this share of the smaller of their standard
# deviations, or one level: what contrast there is has to be the same, in bright and in dark images.
_CONTRAST_SHARE = 0.45
_LEVELS = 1.0
_BANDS, _BAND_BITS = 8, 8
_TILE = 1_000_000  # hashes compared at a time: 8 MB
_VERIFIED = 16_384  # thumbnails compared at a time: 33 MB
_LEADERS = 64  # rows of a large band that all others in it are compared with first


def exact_groups(keys: Sequence[Hashable]) -> list[list[int]]:
    """Rows of equal keys, such as SHA-256 of files: groups of two or more, each in order, by their first row."""
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return [group for group in rows.values() if len(group) > 1]


def near_groups(hashes: ArrayLike, thumbnails: ArrayLike) -> list[list[int]]:
    """Groups of images that look alike, exact copies included.

    Memory is bounded by tiles of pairs. Images with equal hash and thumbnail count once. Others that share a band are
    compared with a few of them first, so that many copies of one image are one group soon, and then pair by pair
    where they are not in one group yet.

    Args:
        hashes: (n,) 64-bit perceptual hashes (`data.traits.perceptual_hash`).
        thumbnails: (n, k) luma 0..255 of images shrunk to one size (`data.traits.thumbnail`).

    Returns:
        Groups of two or more row numbers, each in order, by their first row.

    Raises:
        UsageError: shapes that do not belong together.
    """
    bits, luma = np.asarray(hashes, np.uint64), np.asarray(thumbnails, np.uint8)
    if bits.ndim != 1 or luma.ndim != 2 or len(bits) != len(luma):
        raise UsageError(f"expected hashes (n,) and thumbnails (n, k), got {bits.shape} and {luma.shape}")
    if not len(bits):
        return []
    both = np.concatenate([bits[:, None].view(np.uint8), luma], axis=1)
    # Rows as single values: `np.unique` sorts these much faster than it does rows.
    _, first, same = np.unique(both.view(f"V{both.shape[1]}").ravel(), return_index=True, return_inverse=True)
    distinct = _Forest(len(first))
    looks = _Looks(luma[first])
    for left, right in _close_pairs(bits[first], distinct):
        # What is in one set by now need not be looked at, so the looks grow: from the first of many copies to all.
        start, most = 0, 256
        while start < len(left):
            i, j = distinct.apart(left[start : start + most], right[start : start + most])
            alike = looks.alike(i, j)
            distinct.join(i[alike], j[alike])
            start, most = start + most, min(2 * most, _VERIFIED)
    return exact_groups(distinct.roots(np.arange(len(first)))[same].tolist())


def describe_groups(
    groups: Sequence[Sequence[int]], columns: dict[str, Sequence[Any]], *, examples: int = 12, shown: int = 6
) -> dict[str, Any]:
    """How many groups there are, and how many of them span splits or labels.

    Args:
        groups: row numbers.
        columns: "label", "split" and "path" of each row, and others to show.
        examples: groups to show: those across labels first, then across splits, then the largest.
        shown: rows to show of each: as many different ones as there are, then the first.

    Returns:
        - `groups`, `images` (in groups), `redundant` (images beyond the first of each group);
        - `across_labels`, `within_labels`, `across_splits`, `within_splits`: groups;
        - `leaked`: {split: images in it that have a copy in another split};
        - `examples`: [{"size", "labels", "splits", "rows": [{"row", column: value, ...}]}].
    """
    labels, splits = columns["label"], columns["split"]
    mixed = [(len({labels[k] for k in group}) > 1, len({splits[k] for k in group}) > 1) for group in groups]
    leaked: dict[str, int] = dict.fromkeys(sorted(set(splits)), 0)
    for group, (_, across) in zip(groups, mixed, strict=True):
        for row in group if across else ():
            leaked[splits[row]] += 1
    order = sorted(range(len(groups)), key=lambda k: (*(not m for m in mixed[k]), -len(groups[k]), groups[k][0]))
    images = sum(map(len, groups))
    across_labels, across_splits = (sum(m[k] for m in mixed) for k in (0, 1))
    return {
        "groups": len(groups),
        "images": images,
        "redundant": images - len(groups),
        "across_labels": across_labels,
        "within_labels": len(groups) - across_labels,
        "across_splits": across_splits,
        "within_splits": len(groups) - across_splits,
        "leaked": leaked,
        "examples": [
            {
                "size": len(groups[k]),
                "labels": sorted({labels[row] for row in groups[k]}),
                "splits": sorted({splits[row] for row in groups[k]}),
                "rows": [
                    {"row": row} | {name: values[row] for name, values in columns.items()}
                    for row in _varied(groups[k], labels, splits, shown)
                ],
            }
            for k in order[:examples]
        ],
    }


def _varied(group: Sequence[int], labels: Sequence[Any], splits: Sequence[Any], most: int) -> list[int]:
    kinds = {(labels[row], splits[row]): row for row in reversed(group)}
    first = set(kinds.values())
    return sorted([*sorted(first), *(row for row in group if row not in first)][:most])


def _close_pairs(hashes: NDArray[np.uint64], known: _Forest) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs of rows whose hashes differ in `HAMMING_LIMIT` bits at most and that are not in one set yet.

    The sets are looked up as the pairs are asked for: those that were joined meanwhile are left out.
    """
    for band in range(_BANDS):
        key = (hashes >> np.uint64(_BAND_BITS * band)).astype(np.uint8)
        order = np.argsort(key, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
            if len(rows) ** 2 > _TILE:
                yield from _led_pairs(rows, hashes, known)
            yield from _pairs_of_sets(rows, hashes, known, band)


def _led_pairs(
    rows: NDArray[np.intp], hashes: NDArray[np.uint64], known: _Forest
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """A few rows, each with all others."""
    for leader in rows[np.linspace(0, len(rows) - 1, _LEADERS).astype(np.intp)]:
        near = rows[np.bitwise_count(hashes[rows] ^ hashes[leader]) <= HAMMING_LIMIT]
        pairs = known.apart(np.full(len(near), leader), near)
        if len(pairs[0]):
            yield pairs


def _pairs_of_sets(
    rows: NDArray[np.intp], hashes: NDArray[np.uint64], known: _Forest, band: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows that have a band in common, each with those of other sets, but for pairs that an earlier band had."""
    rows = rows[np.argsort(known.roots(rows), kind="stable")]
    sets, values = known.roots(rows), hashes[rows]
    ends = np.searchsorted(sets, sets, side="right")
    start = 0
    while (after := int(ends[start])) < len(rows):
        some = slice(start, start + max(1, _TILE // (len(rows) - after)))
        close = np.bitwise_count(values[some, None] ^ values[None, after:]) <= HAMMING_LIMIT
        i, j = np.nonzero(close)
        i, j = i + start, j + after
        new = ends[i] <= j  # of a later set
        for earlier in range(band):
            shift = np.uint64(_BAND_BITS * earlier)
            new &= ((values[i] ^ values[j]) >> shift).astype(np.uint8) != 0
        i, j = known.apart(rows[i[new]], rows[j[new]])
        if len(i):
            yield i, j
        start = min(some.stop, len(rows) - 1)


class _Looks:
    """Thumbnails, to be compared."""

    def __init__(self, thumbnails: NDArray[np.uint8]) -> None:
        self._thumbnails = thumbnails
        self._mean = thumbnails.mean(axis=1, dtype=np.float64)
        self._limit = np.maximum(_LEVELS, _CONTRAST_SHARE * thumbnails.std(axis=1, dtype=np.float64))

    def alike(self, left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.bool_]:
        limit = np.minimum(self._limit[left], self._limit[right])
        found = np.abs(self._mean[left] - self._mean[right]) <= limit  # which their rms is no less than
        rows = np.flatnonzero(found)
        apart = self._thumbnails[left[rows]].astype(np.float32) - self._thumbnails[right[rows]]
        found[rows] = np.sqrt((apart * apart).mean(axis=1, dtype=np.float64)) <= limit[rows]
        return found


class _Forest:
    """Disjoint sets of the numbers below n (union-find, vectorised)."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)

    def roots(self, of: NDArray[np.intp]) -> NDArray[np.intp]:
        root = self._parent[of]
        while ((above := self._parent[root]) != root).any():
            root = above
        self._parent[of] = root
        return root

    def apart(self, left: NDArray[np.intp], right: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """The pairs that are not in one set."""
        different = self.roots(left) != self.roots(right)
        return left[different], right[different]

    def join(self, left: NDArray[np.intp], right: NDArray[np.intp]) -> None:
        """Unite the sets of each pair: the smaller root becomes the root of both, until all pairs agree."""
        while len(left):
            left, right = self.roots(left), self.roots(right)
            low, high = np.minimum(left, right), np.maximum(left, right)
            np.minimum.at(self._parent, high, low)
            left, right = self.apart(low, high)
