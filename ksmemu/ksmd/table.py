"""A table from fingerprint to values, as arrays sorted by fingerprint.

New entries collect in a small sorted array and are merged into the large one in bulk. Entries are not taken
out: whoever asks says which are alive, and the dead are dropped at the next merge.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Fingerprints = npt.NDArray[np.uint64]
Values = npt.NDArray[np.uint64]
IsAlive = Callable[[Fingerprints, Values], npt.NDArray[np.bool_]]

_LOW_HALF = np.uint64((1 << 32) - 1)

_RECENT_MIN = 4096
_RECENT_SHARE = 8
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
        self._recent = _merged(self._recent, (fingerprints, values))
        if len(self._recent[0]) > max(_RECENT_MIN, len(self._base[0]) // _RECENT_SHARE):
            both = _merged(self._base, self._recent)
            alive = self._is_alive(*both)
            # The same entry twice: a page that was written, and settled with what it held before.
            alive[1:] &= (both[0][1:] != both[0][:-1]) | (both[1][1:] != both[1][:-1])
            self._base = both[0][alive], both[1][alive]
            self._recent = (np.empty(0, np.uint64), np.empty(0, np.uint64))

    def find(self, fingerprints: Fingerprints) -> tuple[npt.NDArray[np.int64], Values]:
        """Find the living entries of each fingerprint.

        Returns:
            (index, value): value belongs to fingerprints[index]; ordered by index, each pair once.
        """
        parts = [_equal_ranges(level, fingerprints) for level in (self._base, self._recent)]
        index = np.concatenate([part[0] for part in parts])
        value = np.concatenate([part[1] for part in parts])
        alive = self._is_alive(fingerprints[index], value)
        index, value = index[alive], value[alive]
        order = np.lexsort((value, index))
        index, value = index[order], value[order]
        first = np.ones(len(index), dtype=np.bool_)
        first[1:] = (index[1:] != index[:-1]) | (value[1:] != value[:-1])
        return index[first], value[first]

    def living(self) -> tuple[Fingerprints, Values]:
        """Return (fingerprint, value) of every living entry, in no order; a pair may come twice."""
        fingerprints, values = (np.concatenate(parts) for parts in zip(self._base, self._recent, strict=True))
        alive = self._is_alive(fingerprints, values)
        return fingerprints[alive], values[alive]


def low_half(fingerprints: Fingerprints) -> npt.NDArray[np.uint32]:
    """Return the checksums that go into the books: the low halves."""
    checksums: npt.NDArray[np.uint32] = (fingerprints & _LOW_HALF).astype(np.uint32)
    return checksums


def _merged(
    left: tuple[Fingerprints, Values], right: tuple[Fingerprints, Values]
) -> tuple[Fingerprints, Values]:
    fingerprints = np.concatenate([left[0], right[0]])
    values = np.concatenate([left[1], right[1]])
    order = np.lexsort((values, fingerprints))
    return fingerprints[order], values[order]


def _equal_ranges(
    level: tuple[Fingerprints, Values], wanted: Fingerprints
) -> tuple[npt.NDArray[np.int64], Values]:
    low = np.searchsorted(level[0], wanted, side="left")
    counts = np.searchsorted(level[0], wanted, side="right") - low
    index = np.repeat(np.arange(len(wanted)), counts)
    before = np.cumsum(counts) - counts
    at = np.repeat(low - before, counts) + np.arange(counts.sum())
    return index, level[1][at]
