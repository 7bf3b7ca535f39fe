"""A table from fingerprint to values, as arrays sorted by fingerprint.

New entries collect in a small sorted array and are merged into the large one in bulk. Entries are not taken
out: whoever asks says which are alive, and the dead are dropped at the next merge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.ranges import is_ascending, is_first

Fingerprints = npt.NDArray[np.uint64]
Values = npt.NDArray[np.uint64]
IsAlive = Callable[[Fingerprints, Values], npt.NDArray[np.bool_]]

_LOW_HALF = np.uint64((1 << 32) - 1)

_RECENT_MIN = 4096
_RECENT_SHARE = 4
"""The small array is merged into the large one when it is longer than this part of it."""


class FingerprintTable:
    """Fingerprint -> values; several values may have the same fingerprint.

    Args:
        is_alive: tells of each entry whether it still holds.
    """

    def __init__(self, is_alive: IsAlive) -> None:
        self._is_alive = is_alive
        self.clear()

    def clear(self) -> None:
        """Drop every entry."""
        empty = (np.empty(0, np.uint64), np.empty(0, np.uint64))
        self._base, self._recent = empty, empty

    def add(self, fingerprints: Fingerprints, values: Values) -> None:
        """Add entries, in any order."""
        self._recent = _merged(self._recent, _sorted(fingerprints, values))
        if len(self._recent[0]) > max(_RECENT_MIN, len(self._base[0]) // _RECENT_SHARE):
            self._compact()

    def _compact(self) -> None:
        fingerprints, values = _merged(self._base, self._recent)
        # The same entry twice: a page that was written, and settled with what it held before.
        alive = self._is_alive(fingerprints, values)
        alive[1:] &= (fingerprints[1:] != fingerprints[:-1]) | (values[1:] != values[:-1])
        self._base = fingerprints[alive], values[alive]
        self._recent = (np.empty(0, np.uint64), np.empty(0, np.uint64))

    def find(self, fingerprints: Fingerprints) -> tuple[npt.NDArray[np.int64], Values]:
        """Find the living entries of each fingerprint; quickest where these ascend.

        Returns:
            (index, value): value belongs to fingerprints[index]; ordered by index, each pair once.
        """
        parts = [_equal_ranges(level, fingerprints) for level in (self._base, self._recent)]
        index = np.concatenate([part[0] for part in parts])
        value = np.concatenate([part[1] for part in parts])
        alive = self._is_alive(fingerprints[index], value)
        index, value = index[alive], value[alive]
        order = np.argsort(index, kind="stable")  # two ascending runs: this merges them
        index, value = index[order], value[order]
        _order_values(index, value)
        first = np.ones(len(index), dtype=np.bool_)
        first[1:] = (index[1:] != index[:-1]) | (value[1:] != value[:-1])
        return index[first], value[first]

    def repeated(self) -> tuple[Fingerprints, Values]:
        """Return the entries whose fingerprint has several, dead ones among them; ascending, each once."""
        if len(self._recent[0]):
            self._compact()
        fingerprints, values = self._base
        same = np.zeros(len(fingerprints) + 1, dtype=np.bool_)
        np.equal(fingerprints[1:], fingerprints[:-1], out=same[1 : len(fingerprints)])
        several = same[1:] | same[:-1]
        return fingerprints[several], values[several]

    def living(self) -> tuple[Fingerprints, Values]:
        """Return (fingerprint, value) of every living entry, in no order; a pair may come twice."""
        fingerprints, values = (np.concatenate(parts) for parts in zip(self._base, self._recent, strict=True))
        alive = self._is_alive(fingerprints, values)
        return fingerprints[alive], values[alive]


def low_half(fingerprints: Fingerprints) -> npt.NDArray[np.uint32]:
    """Return the checksums that go into the books: the low halves."""
    checksums: npt.NDArray[np.uint32] = (fingerprints & _LOW_HALF).astype(np.uint32)
    return checksums


def _sorted(fingerprints: Fingerprints, values: Values) -> tuple[Fingerprints, Values]:
    if not is_ascending(fingerprints):
        order = np.argsort(fingerprints)
        fingerprints, values = fingerprints[order], values[order]
    values = values.copy()
    _order_values(fingerprints, values)
    return fingerprints, values


def _merged(
    left: tuple[Fingerprints, Values], right: tuple[Fingerprints, Values]
) -> tuple[Fingerprints, Values]:
    """Merge two sorted arrays; nothing is sorted again but values of what both have."""
    if not len(left[0]):
        return right
    at = np.searchsorted(left[0], right[0], side="right") + np.arange(len(right[0]))
    is_left = np.ones(len(left[0]) + len(right[0]), dtype=np.bool_)
    is_left[at] = False
    fingerprints, values = (np.empty(len(is_left), dtype=np.uint64) for _ in range(2))
    for merged, old, new in zip((fingerprints, values), left, right, strict=True):
        merged[is_left] = old
        merged[at] = new
    _order_values(fingerprints, values)
    return fingerprints, values


def _order_values(keys: npt.NDArray[Any], values: Values) -> None:
    """Bring the values of each key, which ascend, into order; mostly they are."""
    wrong = (keys[1:] == keys[:-1]) & (values[1:] < values[:-1])
    if wrong.any():
        group = np.cumsum(is_first(keys)) - 1
        has_wrong = np.zeros(group[-1] + 1, dtype=np.bool_)
        has_wrong[group[1:][wrong]] = True
        rows = np.flatnonzero(has_wrong[group])
        values[rows] = values[rows][np.lexsort((values[rows], group[rows]))]


def _equal_ranges(
    level: tuple[Fingerprints, Values], wanted: Fingerprints
) -> tuple[npt.NDArray[np.int64], Values]:
    low = np.searchsorted(level[0], wanted, side="left")
    counts = np.searchsorted(level[0], wanted, side="right") - low
    index = np.repeat(np.arange(len(wanted)), counts)
    before = np.cumsum(counts) - counts
    at = np.repeat(low - before, counts) + np.arange(counts.sum())
    return index, level[1][at]
