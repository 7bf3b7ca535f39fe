"""Arrays of half-open ranges, and the pages they stand for. Ascending; nothing a page at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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


def union(*parts: Pages) -> Pages:
    """Return every number in some part, once; the parts are ascending.

    Merging what is sorted is quick; np.union1d() hashes it since numpy 2.3, which took several times as long.
    """
    numbers: Pages = np.sort(np.concatenate(parts), kind="stable")
    is_first: npt.NDArray[np.bool_] = np.append(True, np.diff(numbers) != 0)[: len(numbers)]
    found: Pages = numbers[is_first]
    return found
