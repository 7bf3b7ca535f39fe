"""Step 1: what was written, what was broken.

harvest.py -> checksum.py -> match.py. Two trackers with one face: the kernel's record of writes, and for
kernels without it (before 6.7) a comparison of checksums, as the kernel's own KSM does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ksmemu import _core
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.ranges import Pages, from_core
from ksmemu.ksmd.rmap import Rmap, State
from ksmemu.ksmd.stretch import Mask, Stretch
from ksmemu.ksmd.table import Fingerprints, low_half
from ksmemu.policy import Policy, Seen
from ksmemu.units import PAGE_SIZE

_SPAN_GAP = 512
"""Tracked pages closer than this are asked about in one call. Wider holes are left out: arming them would
make page tables for memory that does not exist, 2 GiB of them for a TiB."""
_COPY_GAP = 32
"""The same where copies on write are looked for: as many pages of the own object cost about a call."""

_MOVES = {
    (False, False): {
        State.NEW: State.WRITTEN,
        State.UNSEEN: State.WRITTEN,
        State.SKIPPED: State.UNSTABLE,
    },
    (False, True): {State.UNSTABLE: State.SKIPPED},
    (True, False): dict.fromkeys(
        (State.NEW, State.UNSEEN, State.SETTLED, State.SKIPPED, State.UNSTABLE), State.WRITTEN
    ),
    (True, True): dict.fromkeys((State.WRITTEN, State.SETTLED, State.SKIPPED, State.UNSTABLE), State.UNSEEN),
}
"""What becomes of a page, by whether it was written, and whether it is skipped; others stay what they are."""


class Tracker(Protocol):
    """Knows which tracked pages were written since it was asked the last time.

    Attributes:
        slice_pages: most pages to ask about between two looks at the sockets.
    """

    slice_pages: int

    def written(self, slot: MmSlot, stretch: Stretch) -> Mask:
        """Return for each page whether it was written; what ksmd cannot read was not.

        Raises:
            OSError: ESRCH: the worker is gone.
        """


class WriteTracker:
    """Asks the kernel, which marks each page at its first write (userfaultfd WP_ASYNC, PAGEMAP_SCAN)."""

    slice_pages = 1 << 17

    def written(self, slot: MmSlot, stretch: Stretch) -> Mask:
        """See Tracker."""
        own = slot.rmap.in_states(stretch, State.NEW, State.ORDERED)
        return _walk(_core.harvest, slot, stretch, own, _SPAN_GAP)


class ChecksumTracker:
    """Reads every page and compares its checksum with the last one, kept as the page's tag."""

    slice_pages = 1 << 13

    def __init__(self, fingerprint: Callable[[MmSlot, Pages], Fingerprints]) -> None:
        self._fingerprint = fingerprint

    def written(self, slot: MmSlot, stretch: Stretch) -> Mask:
        """See Tracker."""
        rmap = slot.rmap
        is_own = rmap.in_states(stretch, State.NEW, State.UNSTABLE)
        own = stretch.pages(is_own)
        checksums = low_half(self._fingerprint(slot, own))
        written = stretch.none()
        written[is_own] = (rmap.tag[own] != checksums) | (rmap.state[own] == State.NEW)
        rmap.tag[own] = checksums
        return written


def harvest(tracker: Tracker, slot: MmSlot, stretch: Stretch, skipped: Mask, policy: Policy) -> Pages:
    """Bring the books of tracked pages up to date with what was written.

    Pages that were written are WRITTEN; one that waited as UNSTABLE leaves the unstable table by that. A
    skipped page that was written is to be looked at by a later scan: until then it is UNSEEN.

    Returns:
        The pages to read now: by default those that were quiet for a full scan and have no fingerprint yet.
    """
    rmap = slot.rmap
    written = tracker.written(slot, stretch)
    rmap.forget_obstacles(stretch, written)
    quiet = rmap.in_states(stretch, State.WRITTEN, State.WRITTEN) & ~(written | skipped)
    candidates = policy.candidates(
        Seen(written, quiet, skipped, lambda: rmap.in_states(stretch, State.NEW, State.NEW))
    )
    for which, before, after in _moving(rmap, stretch, written, skipped):
        rmap.move_some(stretch, which, before, after)
    if np.count_nonzero(candidates):  # whatever the policy says: others are not to be had
        candidates = candidates & rmap.in_states(stretch, State.WRITTEN, State.WRITTEN)
    return stretch.pages(candidates)


def _moving(rmap: Rmap, stretch: Stretch, written: Mask, skipped: Mask) -> list[tuple[Mask, State, State]]:
    """Return what moves: which pages, from which state, and to which."""
    states, nr_in = rmap.state[stretch.index], rmap.counts.tolist()
    any_written, any_skipped = np.count_nonzero(written) > 0, np.count_nonzero(skipped) > 0
    return [
        ((states == before) & (written == was_written) & (skipped == was_skipped), before, after)
        for (was_written, was_skipped), moves in _MOVES.items()
        if was_written <= any_written and was_skipped <= any_skipped
        for before, after in moves.items()
        if nr_in[before]
    ]


def find_broken(slot: MmSlot, stretch: Stretch) -> Pages:
    """Return those of the tracked pages that were merged and that the kernel copied, as they were written."""
    return _copied(slot, stretch, slot.rmap.in_states(stretch, State.MERGED, State.ZERO))


def find_written_heritage(slot: MmSlot, stretch: Stretch) -> Pages:
    """Return the same of those that show what was there before a fork."""
    own = slot.rmap.in_states(stretch, State.NEW, State.UNSTABLE)
    return _copied(slot, stretch, own & (slot.home[stretch.index] > 0))


def _copied(slot: MmSlot, stretch: Stretch, which: Mask) -> Pages:
    return stretch.pages(which & _walk(_core.find_private, slot, stretch, which, _COPY_GAP))


def _walk(
    walk: Callable[[int, int, int], bytearray], slot: MmSlot, stretch: Stretch, which: Mask, gap: int
) -> Mask:
    """Let the core walk the page tables over the pages that a mask names; return which pages it names."""
    if not np.count_nonzero(which):
        return which
    found = bytearray()
    spans = slot.start + stretch.ranges(which, gap) * PAGE_SIZE
    for start, end in spans.tolist():
        found += walk(slot.pagemap, start, end)
    if not found:
        return stretch.none()
    return stretch.within(from_core(found, PAGE_SIZE, slot.start))
