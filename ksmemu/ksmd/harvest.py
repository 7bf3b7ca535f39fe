"""Step 1: what was written, what was broken.

harvest.py -> checksum.py -> match.py. Two trackers with one face: the kernel's record of writes, and for
kernels without it (before 6.7) a comparison of checksums, as the kernel's own KSM does it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ksmemu import _core
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.ranges import Pages, Ranges, contains, expand, from_core
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.table import Fingerprints
from ksmemu.units import PAGE_SIZE

_LOW_HALF = np.uint64((1 << 32) - 1)


class Tracker(Protocol):
    """Knows which pages of a slice were written since it was asked the last time."""

    def written(self, slot: MmSlot, start: int, end: int) -> Ranges:
        """Return ranges of pages in [start, end) that were written; may name pages without data.

        Raises:
            OSError: ESRCH: the worker is gone.
        """


class WriteTracker:
    """Asks the kernel, which marks each page at its first write (userfaultfd WP_ASYNC, PAGEMAP_SCAN)."""

    def written(self, slot: MmSlot, start: int, end: int) -> Ranges:
        """See Tracker."""
        low, high = slot.start + start * PAGE_SIZE, slot.start + end * PAGE_SIZE
        return from_core(_core.harvest(slot.pagemap, low, high), PAGE_SIZE, slot.start)


class ChecksumTracker:
    """Reads every page and compares its checksum with the last one, kept as the page's tag."""

    def __init__(self, fingerprint: Callable[[MmSlot, Pages], Fingerprints]) -> None:
        self._fingerprint = fingerprint

    def written(self, slot: MmSlot, start: int, end: int) -> Ranges:
        """See Tracker."""
        rmap = slot.rmap
        slot.discover(start, end)
        pages = rmap.tracked(start, end)
        pages = pages[rmap.state[pages] <= State.UNSTABLE]
        checksums = (self._fingerprint(slot, pages) & _LOW_HALF).astype(np.uint32)
        differs = (rmap.tag[pages] != checksums) | (rmap.state[pages] == State.NEW)
        rmap.tag[pages] = checksums
        changed = pages[differs]
        return np.stack([changed, changed + 1], axis=1)


def harvest(tracker: Tracker, slot: MmSlot, start: int, end: int) -> Pages:
    """Bring the books of [start, end) up to date with what was written.

    Pages that hold data for the first time are tracked. Pages that were written are WRITTEN; a page that
    waited as UNSTABLE leaves the unstable table by that.

    Returns:
        The pages that were quiet for a full scan and have no fingerprint yet.
    """
    rmap = slot.rmap
    pages = rmap.tracked(start, end)
    ranges = tracker.written(slot, start, end)
    states = rmap.state[pages]
    was_written = contains(ranges, pages)
    settled: Pages = pages[(states == State.WRITTEN) & ~was_written]
    moved = (states == State.NEW) | (was_written & ((states == State.SETTLED) | (states == State.UNSTABLE)))
    rmap.move(pages[moved], State.WRITTEN)
    _track_new(slot, ranges)
    return settled


def _track_new(slot: MmSlot, ranges: Ranges) -> None:
    """Track what was written where no data was; a named page may be a hole that was only read."""
    rmap = slot.rmap
    for low, high in _stretches(ranges):
        part = expand(ranges[low:high])
        absent = part[rmap.state[part] == State.ABSENT]
        if not len(absent):
            continue
        first, last = int(absent[0]), int(absent[-1]) + 1
        found = _core.data_extents(slot.own, first * PAGE_SIZE, last * PAGE_SIZE)
        data = from_core(found, PAGE_SIZE)
        rmap.track(absent[contains(data, absent)], State.WRITTEN)


def _stretches(ranges: Ranges) -> list[tuple[int, int]]:
    """Cut a list of ranges into pieces whose pages fit into memory easily."""
    if not len(ranges):
        return []
    total = np.cumsum(ranges[:, 1] - ranges[:, 0]) >> 20
    cuts = [0, *(np.flatnonzero(np.diff(total)) + 1).tolist(), len(ranges)]
    return list(itertools.pairwise(cuts))


def find_broken(slot: MmSlot, start: int, end: int) -> Pages:
    """Return the merged pages in [start, end) that the kernel copied, because they were written."""
    rmap = slot.rmap
    if not rmap.counts[State.MERGED] + rmap.counts[State.ZERO]:
        return np.empty(0, dtype=np.int64)
    low, high = slot.start + start * PAGE_SIZE, slot.start + end * PAGE_SIZE
    private = from_core(_core.find_private(slot.pagemap, low, high), PAGE_SIZE, slot.start)
    pages = rmap.tracked(start, end)
    states = rmap.state[pages]
    merged = pages[(states == State.MERGED) | (states == State.ZERO)]
    broken: Pages = merged[contains(private, merged)]
    return broken
