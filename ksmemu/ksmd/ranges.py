"""Arrays of half-open ranges, and the pages they stand for. Ascending; nothing a page at a time."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)

Pages = npt.NDArray[np.int64]
"""Page numbers, ascending."""
Ranges = npt.NDArray[np.int64]
"""Shape (n, 2): start and end of each range, ascending and disjoint."""


def from_core(buffer: bytearray, unit: int, origin: int = 0) -> Ranges:
    """Return what the core found, in `unit` bytes from `origin`."""
    ranges: Ranges = (np.frombuffer(buffer, np.int64).reshape(-1, 2) - origin) // unit
    return ranges


def expand(ranges: Ranges) -> Pages:
    """Return every number in the ranges."""
    starts, ends = ranges[:, 0], ranges[:, 1]
    lengths = ends - starts
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def contains(ranges: Ranges, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return for each number whether some range holds it."""
    if not len(ranges):
        return np.zeros(len(numbers), dtype=np.bool_)
    at = np.searchsorted(ranges[:, 0], numbers, side="right") - 1
    inside: npt.NDArray[np.bool_] = (at >= 0) & (numbers < ranges[at, 1])
    return inside


def joined(ranges: Ranges, gap: int) -> Ranges:
    """Return the ranges with those made one that are at most gap apart."""
    if len(ranges) < 2:
        return ranges
    is_hole = ranges[1:, 0] - ranges[:-1, 1] > gap
    starts = ranges[np.concatenate([[True], is_hole]), 0]
    ends = ranges[np.concatenate([is_hole, [True]]), 1]
    return np.stack([starts, ends], axis=1)


def union(*parts: npt.NDArray[T]) -> npt.NDArray[T]:
    """Return every number in some part, once; the parts are ascending, so that to sort is to merge them."""
    numbers = np.sort(np.concatenate(parts), kind="stable")
    return numbers[is_first(numbers)]


def counted(numbers: npt.NDArray[T]) -> tuple[npt.NDArray[T], npt.NDArray[np.int64]]:
    """Return every number once, ascending, and how often it is there.

    By sorting, unless they ascend; np.unique() hashes since numpy 2.3, which takes forty times as long.
    """
    ordered = numbers if is_ascending(numbers) else np.sort(numbers)
    first = np.flatnonzero(is_first(ordered))
    return ordered[first], np.diff(first, append=len(ordered))


def is_ascending(numbers: npt.NDArray[T]) -> bool:
    """Whether no number is less than the one before."""
    return bool(np.greater_equal(numbers[1:], numbers[:-1]).all())


def is_first(ordered: npt.NDArray[T]) -> npt.NDArray[np.bool_]:
    """Return of each of these ascending numbers whether it is the first of its like."""
    first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first


def distinct(numbers: npt.NDArray[T]) -> npt.NDArray[T]:
    """Return every number once, ascending."""
    return counted(numbers)[0]


def sorting(numbers: npt.NDArray[T]) -> npt.NDArray[np.int64]:
    """Return the stable order of numbers: np.argsort(kind="stable"), in half its time."""
    order = np.argsort(numbers)
    ordered = numbers[order]
    first = is_first(ordered)
    if first.all():
        return order
    # What is equal was left in any order. Both halves of the key are less than 2**32.
    key = ((np.cumsum(first) - 1) << 32) | order
    key.sort()
    return key & ((1 << 32) - 1)


def sorting_small(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the stable order of numbers from 0 on; those below 65,536 numpy sorts by their digits."""
    small = len(numbers) > 0 and numbers.max() < 1 << 16
    return np.argsort(numbers.astype(np.uint16) if small else numbers, kind="stable")
