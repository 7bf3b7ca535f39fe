"""The rules of 2009 for the spaces that ksmd knows, where they are not those of Linux 6.18.

`ksmemu start --rfc2009`: a space stays listed until it or its process is gone, also when nothing of it is
mergeable any more; withdrawing advice unmerges nothing by itself; and a dead process is noticed only when
the scan comes by.

Source: "[PATCH 0/4] RFC - ksm api change into madvise", Izik Eidus, 14 May 2009, patches 2 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ksmemu.control.files import RFC_2009
from ksmemu.ksmd import connection, rehome
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.ranges import Pages, contains
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.worker import Worker


class Mmlist:
    """All spaces of a domain, as the scanner of 2009 went through them. Runs in: ksmd, one thread."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._touched: set[int] = set()
        """Spaces that were scanned since the full scan began (mm_slot->touched)."""
        self._dead: list[Worker] = []

    def start_scan(self) -> None:
        """A full scan begins: what the last one did not touch is broken where it is merged, and forgotten."""
        for slot in self._domain.slots.values():
            if slot.id not in self._touched:
                pages = slot.rmap.tracked(0, slot.nr_pages)
                states = slot.rmap.state[pages]
                rehome.order(self._domain, slot, pages[states == State.MERGED])
                _forget(slot, pages[states <= State.UNSTABLE])
        self._touched.clear()

    def visit(self, slot: MmSlot) -> bool:
        """The scan comes to a space; return whether its process still has something mergeable."""
        worker = self._domain.owner[slot.id]
        if worker in self._dead:
            self._dead.remove(worker)
            connection.reap(self._domain, worker)
            return False
        if not any(len(one.advised) for one in worker.slots):
            return False
        self._touched.add(slot.id)
        self._leave_unshareable(slot)
        return True

    def _leave_unshareable(self, slot: MmSlot) -> None:
        """Forget the pages that are no longer mergeable, without unmerging them (the rmap_items of 2009)."""
        pages = slot.rmap.tracked(0, slot.nr_pages)
        advised = np.array([(part.start, part.end) for part in slot.advised], dtype=np.int64)
        pages = pages[~contains(advised.reshape(-1, 2), pages)]
        states = slot.rmap.state[pages]
        slot.rmap.move(pages[states == State.MERGED], State.LEFT)
        _forget(slot, pages[states <= State.UNSTABLE])

    def died(self, worker: Worker) -> None:
        """A process is dead; its memory is held until the scan comes by."""
        self._dead.append(worker)

    def drop_dead(self) -> None:
        """Let go of every dead process: nothing is scanned any more (run=0)."""
        for worker in self._dead:
            connection.reap(self._domain, worker)
        self._dead.clear()


def _forget(slot: MmSlot, pages: Pages) -> None:
    slot.rmap.move(pages, State.ABSENT)
    slot.former.append(pages)


def renamed(counters: Mapping[str, int]) -> dict[str, int]:
    """Return the counters that there were in 2009, under the names of that time."""
    shown = {name: value for name, value in counters.items() if name in RFC_2009.stats}
    return shown | {
        "kernel_pages_allocated": counters["pages_shared"],
        "pages_shared": counters["pages_sharing"],
    }
