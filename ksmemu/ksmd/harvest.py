"""Step 1: what was written, what was broken.

harvest.py -> checksum.py -> match.py. Two trackers with one face: the kernel's record of writes, and for
kernels without it (before 6.7) a comparison of checksums, as the kernel's own KSM does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ksmemu import _core
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.ranges import Pages, Ranges, contains, from_core
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.table import Fingerprints, low_half
from ksmemu.units import PAGE_SIZE

_SPAN_GAP = 512
"""Tracked pages closer than this are asked about in one call. Wider holes are left out: arming them would
make page tables for memory that does not exist, 2 GiB of them for a TiB."""


class Tracker(Protocol):
    """Knows which tracked pages were written since it was asked the last time."""

    def written(self, slot: MmSlot, pages: Pages) -> npt.NDArray[np.bool_]:
        """Return for each page whether it was written.

        Raises:
            OSError: ESRCH: the worker is gone.
        """


class WriteTracker:
    """Asks the kernel, which marks each page at its first write (userfaultfd WP_ASYNC, PAGEMAP_SCAN)."""

    def written(self, slot: MmSlot, pages: Pages) -> npt.NDArray[np.bool_]:
        """See Tracker."""
        return contains(_walk(_core.harvest, slot, pages), pages)


class ChecksumTracker:
    """Reads every page and compares its checksum with the last one, kept as the page's tag."""

    def __init__(self, fingerprint: Callable[[MmSlot, Pages], Fingerprints]) -> None:
        self._fingerprint = fingerprint

    def written(self, slot: MmSlot, pages: Pages) -> npt.NDArray[np.bool_]:
        """See Tracker."""
        rmap = slot.rmap
        states = rmap.state[pages]
        is_own = states <= State.UNSTABLE
        own = pages[is_own]
        checksums = low_half(self._fingerprint(slot, own))
        written = np.zeros(len(pages), dtype=np.bool_)
        written[is_own] = (rmap.tag[own] != checksums) | (states[is_own] == State.NEW)
        rmap.tag[own] = checksums
        return written


def harvest(tracker: Tracker, slot: MmSlot, pages: Pages, skipped: npt.NDArray[np.bool_]) -> Pages:
    """Bring the books of tracked pages up to date with what was written.

    Pages that were written are WRITTEN; one that waited as UNSTABLE leaves the unstable table by that. A
    skipped page that was written is to be looked at by a later scan: until then it is UNSEEN.

    Returns:
        The pages that were quiet for a full scan and have no fingerprint yet.
    """
    rmap = slot.rmap
    was_written = tracker.written(slot, pages)
    rmap.forget_obstacle(pages[was_written])
    states = rmap.state[pages]
    is_quiet = ~was_written
    settled: Pages = pages[(states == State.WRITTEN) & is_quiet & ~skipped]
    is_unseen = (states == State.NEW) | (states == State.UNSEEN)
    knew_it = (states >= State.SETTLED) & (states <= State.UNSTABLE)
    rmap.move(pages[(is_unseen | (knew_it & was_written)) & ~skipped], State.WRITTEN)
    rmap.move(pages[((states == State.WRITTEN) | knew_it) & was_written & skipped], State.UNSEEN)
    rmap.move(pages[(states == State.UNSTABLE) & is_quiet & skipped], State.SKIPPED)
    rmap.move(pages[(states == State.SKIPPED) & is_quiet & ~skipped], State.UNSTABLE)
    return settled


def find_broken(slot: MmSlot, pages: Pages) -> Pages:
    """Return those of the tracked pages that were merged and that the kernel copied, as they were written."""
    states = slot.rmap.state[pages]
    merged = pages[(states == State.MERGED) | (states == State.ZERO)]
    broken: Pages = merged[contains(_walk(_core.find_private, slot, merged), merged)]
    return broken


def _walk(walk: Callable[[int, int, int], bytearray], slot: MmSlot, pages: Pages) -> Ranges:
    """Let the core walk the page tables over the pages; return the ranges of pages that it names."""
    if not len(pages):
        return np.empty((0, 2), dtype=np.int64)
    breaks = np.flatnonzero(np.diff(pages) > _SPAN_GAP)
    firsts = pages[np.concatenate([[0], breaks + 1])]
    lasts = pages[np.concatenate([breaks, [len(pages) - 1]])]
    found = bytearray()
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        low, high = slot.start + first * PAGE_SIZE, slot.start + (last + 1) * PAGE_SIZE
        found += walk(slot.pagemap, low, high)
    return from_core(found, PAGE_SIZE, slot.start)
