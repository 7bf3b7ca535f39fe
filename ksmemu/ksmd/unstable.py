"""Step 3a: pages that are quiet and unique so far, by fingerprint.

The kernel empties its unstable tree every full scan, because the pages in it may have changed unseen. Here
a write is seen: a page that was written has left the state UNSTABLE, and its entry is dead.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import Places, by_slot, pages_of
from ksmemu.ksmd.ranges import distinct
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.table import Fingerprints, FingerprintTable, low_half


class Unstable:
    """Finds waiting pages by fingerprint."""

    def __init__(self, slots: Mapping[int, MmSlot]) -> None:
        self._slots = slots
        self._table = FingerprintTable(self._is_alive)

    def add(self, fingerprints: Fingerprints, where: Places) -> None:
        """Let pages wait."""
        for slot_id, index in by_slot(where):
            rmap, pages = self._slots[slot_id].rmap, pages_of(where[index])
            rmap.move(pages, State.UNSTABLE)
            rmap.tag[pages] = low_half(fingerprints[index])
        self._table.add(fingerprints, where)

    def waiting(self, fingerprints: Fingerprints) -> tuple[npt.NDArray[np.int64], Places]:
        """Return (index, place): the pages that wait with fingerprints[index]; without the SKIPPED ones."""
        index, where = self._table.find(fingerprints)
        waits = self._has_state(where, State.UNSTABLE)
        return index[waits], where[waits]

    def passed_over(self, fingerprints: Fingerprints) -> Fingerprints:
        """Return those of distinct fingerprints with which a page waits that the last scan SKIPPED."""
        if not any(slot.rmap.counts[State.SKIPPED] for slot in self._slots.values()):
            return fingerprints[:0]
        index, where = self._table.find(fingerprints)
        return fingerprints[distinct(index[self._has_state(where, State.SKIPPED)])]

    def _has_state(self, where: Places, state: State) -> npt.NDArray[np.bool_]:
        has = np.zeros(len(where), dtype=np.bool_)
        for slot_id, index in by_slot(where):
            has[index] = self._slots[slot_id].rmap.state[pages_of(where[index])] == state
        return has

    def everyone(self) -> tuple[Fingerprints, Places]:
        """Return (fingerprint, place) of every page that waits, in no order; a pair may come twice."""
        return self._table.living()

    def clear(self) -> None:
        """Forget all entries."""
        self._table.clear()

    def _is_alive(self, fingerprints: Fingerprints, where: Places) -> npt.NDArray[np.bool_]:
        alive = np.zeros(len(where), dtype=np.bool_)
        for slot_id, index in by_slot(where):
            slot = self._slots.get(slot_id)
            if slot is None:
                continue
            pages = pages_of(where[index])
            states = slot.rmap.state[pages]
            waits = (states == State.UNSTABLE) | (states == State.SKIPPED)
            alive[index] = waits & (slot.rmap.tag[pages] == low_half(fingerprints[index]))
        return alive
