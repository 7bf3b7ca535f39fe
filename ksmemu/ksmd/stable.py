"""Step 3b: merged pages by content. Above max_page_sharing a content has several frames: a chain of dups."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.pool import Frames, Pool
from ksmemu.ksmd.ranges import counted, is_first
from ksmemu.ksmd.table import Fingerprints, FingerprintTable, Values


class Stable:
    """Finds frames by fingerprint. A frame is in here as long as a page refers to it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._table = FingerprintTable(self._is_alive)

    def add(self, fingerprints: Fingerprints, frames: Frames) -> None:
        """Enter frames that were filled and are referenced."""
        self._pool.fingerprint[frames] = fingerprints
        self._table.add(fingerprints, frames.astype(np.uint64))

    def chains(self) -> tuple[int, int]:
        """Return how many contents have several dups, and how many dups those are."""
        fingerprints, values = self._table.repeated()
        living = fingerprints[self._is_alive(fingerprints, values)]
        _, counts = counted(living)
        several = counts[counts > 1]
        return len(several), int(several.sum())

    def dups(self, fingerprints: Fingerprints) -> tuple[npt.NDArray[np.int64], Frames, Frames]:
        """Return (index, frame, sharers): the frames of each fingerprints[index].

        In the kernel's order of choice: of the dups of a chain, the one with the most sharers first.
        """
        index, values = self._table.find(fingerprints)
        frames = values.astype(np.int64)
        sharers = self._pool.refs[frames].astype(np.int64)
        if not is_first(index).all():
            order = np.lexsort((-sharers, index))
            index, frames, sharers = index[order], frames[order], sharers[order]
        return index, frames, sharers

    def holds(self, fingerprints: Fingerprints) -> npt.NDArray[np.bool_]:
        """Return of each fingerprint whether there is a frame of it."""
        found = np.zeros(len(fingerprints), dtype=np.bool_)
        found[self.dups(fingerprints)[0]] = True
        return found

    def _is_alive(self, fingerprints: Fingerprints, values: Values) -> npt.NDArray[np.bool_]:
        frames = values.astype(np.int64)
        alive: npt.NDArray[np.bool_] = (self._pool.refs[frames] > 0) & (
            self._pool.fingerprint[frames] == fingerprints
        )
        return alive
