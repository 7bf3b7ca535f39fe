"""The cursor: pages_to_scan pages at a time through every mm_slot, round and round.

harvest ▶ checksum ▶ match ▶ merge. A page is read only when it was not written for one full scan, and not
again until it is written: the cost of a scan follows what was written, not what exists.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ksmemu import _core
from ksmemu.ksmd import merge, rehome, smart
from ksmemu.ksmd.checksum import Reading
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.harvest import Tracker, find_broken, find_written_heritage, harvest
from ksmemu.ksmd.match import Candidates
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.mmlist import Mmlist
from ksmemu.ksmd.place import Places, places
from ksmemu.ksmd.pool import NO_GAPS, Gaps
from ksmemu.ksmd.ranges import Pages, distinct, union
from ksmemu.ksmd.rmap import Rmap, State
from ksmemu.ksmd.stretch import Stretch
from ksmemu.ksmd.table import Fingerprints, low_half
from ksmemu.policy import Space

log = logging.getLogger(__name__)

SLICE_PAGES = 8192
"""Most pages read between two looks at the sockets: bounds how long a dead worker's frames are kept."""
CANDIDATES = 32768
"""Candidates are matched when there are so many, or the scan ends: together they make longer runs."""
READ_AHEAD = 32768
"""Most pages that are being read while others are matched and ordered."""


class _Found(NamedTuple):
    """Candidates: pages, what they hold, and whether that is another than before they were written."""

    where: Places
    fingerprints: Fingerprints
    changed: npt.NDArray[np.bool_]


class _Reading(NamedTuple):
    """Candidates that are being read."""

    slot: MmSlot
    pages: Pages
    fingerprints: Reading


_NOTHING = _Found(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.bool_))


class Scan:
    """Where the scan is, and what it has found but not matched yet."""

    def __init__(self, domain: Domain, tracker: Tracker, mmlist: Mmlist | None = None) -> None:
        self._domain = domain
        self._tracker = tracker
        self._mmlist = mmlist
        self._route: deque[int] = deque()  # spaces that are ahead; the cursor is in the first
        self._laid: set[int] = set()  # all that this full scan has had on its route
        self._page = 0
        self._gaps = NO_GAPS  # that opened in the full scan before
        self._passed_over = NO_GAPS[0]  # contents whose match awaits a page that was skipped
        self._readings: deque[_Reading] = deque()
        self._nr_reading = 0
        self._found: list[_Found] = []
        self._nr_candidates = 0
        self._has_matched = False  # since the last full scan ended

    def step(self, budget: int) -> tuple[int, bool]:
        """Scan up to budget pages of one space.

        Returns:
            (pages, ended): how many pages were passed, and whether a full scan ended with them.
        """
        domain = self._domain
        slot = self._next_slot()
        if slot is None:
            self._laid.clear()
            return 0, True
        if self._mmlist is not None and self._page == 0 and not self._mmlist.visit(slot):
            return 0, self._go_on_after(slot)
        end, count = slot.nr_pages, 0
        try:
            if self._page == 0:
                _discover(slot)
                slot.drop_former()
            end, count = slot.rmap.stop_after(self._page, min(budget, self._slice_pages(slot.rmap)))
            count -= self._scan(slot, self._page, end)
        except OSError as error:
            # It is dying (its pidfd will tell), or it took back what it handed over: its own loss.
            log.info("space %d passed over: %s", slot.id, error)
            end = slot.nr_pages
        domain.stats.pages_scanned += count
        self._page = end
        self._collect(READ_AHEAD)
        if self._nr_candidates >= CANDIDATES:
            self._flush(NO_GAPS)
        return count, end == slot.nr_pages and self._go_on_after(slot)

    def _slice_pages(self, rmap: Rmap) -> int:
        """Return how many pages to pass before the next look at the sockets."""
        reads_more = self._mmlist is not None or rmap.counts[State.WRITTEN] > SLICE_PAGES
        return SLICE_PAGES if reads_more else self._tracker.slice_pages

    def _go_on_after(self, slot: MmSlot) -> bool:
        """Take the cursor to the next space; return whether a full scan has ended."""
        if self._route and self._route[0] == slot.id:
            self._route.popleft()
        self._page = 0
        if self._next_slot() is not None:
            return False
        self._laid.clear()
        return True

    def _next_slot(self) -> MmSlot | None:
        """Return the space at the cursor, or the next one where that one has gone; None: all were scanned."""
        slots = self._domain.slots
        while self._route or self._lay_route():
            if self._route[0] in slots:
                return slots[self._route[0]]
            self._route.popleft()
            self._page = 0
        return None

    def _lay_route(self) -> bool:
        """Put all spaces on the route that this full scan has not had yet; return whether there are any."""
        came = [_space_of(slot) for slot in self._domain.slots.values() if slot.id not in self._laid]
        self._route += [space.number for space in self._domain.policy.order(came)]
        self._laid |= {space.number for space in came}
        return len(self._route) > 0

    def end(self) -> None:
        """Match and order the rest of a full scan, and pages that wait for room or for one that was skipped.

        Room is used a full scan late: only then is known which pages were written with what they held.
        """
        self._collect(0)
        gaps, self._gaps = self._gaps, self._domain.pool.take_gaps()
        passed, self._passed_over = self._passed_over, NO_GAPS[0]
        if len(passed):
            gaps = np.concatenate([gaps[0], passed]), np.pad(gaps[1], (0, len(passed)))
        self._flush(gaps)
        if self._has_matched:  # tables were built anew as they grew: what they left shall not stay here
            self._has_matched = False
            _core.return_memory()

    def _flush(self, gaps: Gaps) -> None:
        """Match and order what has been found so far.

        The kernel takes a page with the checksum it had before one scan earlier than one that changed.
        """
        if not self._found and not len(gaps[0]):
            return
        self._has_matched = True
        where, fingerprints, changed = map(np.concatenate, zip(_NOTHING, *self._found, strict=True))
        self._found, self._nr_candidates = [], 0
        open_to_all = gaps[0], np.zeros_like(gaps[1])
        for which, room in ((~changed, gaps), (changed, open_to_all)):
            merge.merge(self._domain, Candidates(where[which], fingerprints[which], room))
        passed = self._domain.unstable.passed_over(distinct(np.concatenate([fingerprints, gaps[0]])))
        self._passed_over = union(self._passed_over, passed)

    def restart(self) -> None:
        """Begin at the first space again, with nothing found."""
        self._route.clear()
        self._laid.clear()
        self._page = 0
        for reading in self._readings:
            reading.fingerprints.drop()
        self._readings.clear()
        self._found, self._nr_candidates, self._nr_reading = [], 0, 0
        self._domain.pool.take_gaps()
        self._gaps, self._passed_over = NO_GAPS, NO_GAPS[0]

    def forget(self) -> None:
        """Forget every fingerprint: pages that are not merged are looked at anew."""
        self.restart()
        self._domain.unstable.clear()
        for slot in self._domain.slots.values():
            slot.rmap.forget_fingerprints(0, slot.nr_pages)

    def _scan(self, slot: MmSlot, start: int, end: int) -> int:
        """Scan what is tracked in [start, end); return how many pages of it were skipped."""
        domain = self._domain
        if domain.owner[slot.id].is_stalled():
            return 0
        holds_own, holds_merged = slot.rmap.nr_own > 0, slot.rmap.nr_merged > 0
        nr_skipped = 0
        for stretch in slot.rmap.stretches(start, end):
            if slot.ancestors:
                rehome.order(domain, slot, find_written_heritage(slot, stretch))
            if slot.rmap.counts[State.LEFT] and not domain.rules.forgets_unadvised:
                domain.count_left(slot, stretch.pages(~stretch.none()))
            if holds_own:
                nr_skipped += self._harvest(slot, stretch)
            if holds_merged:
                nr_skipped += self._rehome_broken(slot, stretch)
        domain.stats.pages_skipped += nr_skipped
        return nr_skipped

    def _harvest(self, slot: MmSlot, stretch: Stretch) -> int:
        """Learn what was written, and fingerprint what was not; return how many pages were skipped."""
        skipped = smart.skip(slot.rmap, stretch) if self._domain.rules.smart_scan else stretch.none()
        self._become_candidates(
            slot, stretch, harvest(self._tracker, slot, stretch, skipped, self._domain.policy)
        )
        return int(np.count_nonzero(skipped))

    def _rehome_broken(self, slot: MmSlot, stretch: Stretch) -> int:
        """Order home what was merged and written since, but for what can merge with its frame again.

        Returns:
            How many of those pages count as skipped: they merge no more in this scan, as in the kernel.
        """
        broken = find_broken(slot, stretch)
        if not len(broken):
            return 0
        self._domain.stats.pages_broken += len(broken)
        skipped = np.zeros(len(broken), dtype=np.bool_)
        if self._domain.rules.smart_scan:
            skipped = smart.visit(slot.rmap, broken)
        rehome.order(self._domain, slot, broken[skipped])
        rehome.renew(self._domain, slot, broken[~skipped])
        return int(np.count_nonzero(skipped))

    def _become_candidates(self, slot: MmSlot, stretch: Stretch, settled: Pages) -> None:
        """Fingerprint what is settled; in 2009 also what is not, as far as it equals a merged page."""
        if self._mmlist is not None:
            self._become_candidates_of_2009(slot, stretch, settled)
        elif len(settled):
            reading = self._domain.checksum.begin(slot, settled)
            slot.rmap.move(settled, State.SETTLED)
            self._readings.append(_Reading(slot, settled, reading))
            self._nr_reading += len(settled)

    def _become_candidates_of_2009(self, slot: MmSlot, stretch: Stretch, settled: Pages) -> None:
        """The stable tree was searched first, and the checksum looked at after that."""
        found = stretch.pages(slot.rmap.in_states(stretch, State.WRITTEN, State.WRITTEN))
        if not len(found):
            return
        fingerprints = self._domain.fingerprints(slot, found)
        may_merge = np.isin(found, settled) | self._domain.stable.holds(fingerprints)
        slot.rmap.move(found[may_merge], State.SETTLED)
        self._add(slot, found[may_merge], fingerprints[may_merge])

    def _collect(self, most: int) -> None:
        """Take what was read, until no more than so many pages are being read."""
        domain = self._domain
        while self._nr_reading > most:
            slot, pages, reading = self._readings.popleft()
            self._nr_reading -= len(pages)
            try:
                fingerprints = reading.result() ^ domain.marks_of(slot, pages)
            except OSError as error:
                log.info("%d pages of space %d passed over: %s", len(pages), slot.id, error)
                slot.rmap.move(pages[slot.rmap.state[pages] == State.SETTLED], State.WRITTEN)
                continue
            # Some may have gone meanwhile.
            is_there = slot.rmap.state[pages] == State.SETTLED
            self._add(slot, pages[is_there], fingerprints[is_there])

    def _add(self, slot: MmSlot, pages: Pages, fingerprints: Fingerprints) -> None:
        checksums = low_half(fingerprints)
        changed = slot.rmap.tag[pages] != checksums
        slot.rmap.tag[pages] = checksums
        self._found.append(_Found(places(slot.id, pages), fingerprints, changed))
        self._nr_candidates += len(pages)


def _space_of(slot: MmSlot) -> Space:
    """Return what a policy is told of a space. It is looked into only for one that asks what is new."""
    rmap = slot.rmap

    def find_new() -> int:
        with contextlib.suppress(OSError):  # it is dying: the scan finds that too
            _discover(slot)
        return int(rmap.counts[State.NEW])

    return Space(slot.id, rmap.nr_own + rmap.nr_merged, rmap.nr_merged, find_new)


def _discover(slot: MmSlot) -> None:
    if slot.has_unseen_data():
        slot.discover()
