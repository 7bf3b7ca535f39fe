"""Step 2: fingerprints of what has been quiet.

harvest.py -> checksum.py -> match.py. A fingerprint is of the moment at which the page was read: a claim.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from ksmemu import _core
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.ranges import Pages
from ksmemu.ksmd.table import Fingerprints

_PAGES_A_THREAD = 2048
"""Fewer than this are not worth a second thread."""


class Reading:
    """Fingerprints that threads are at work on; result() or drop() is to be called once.

    Args:
        own: descriptor that they read; closed in the end.
        found: what they fill.
        parts: who is at work.
    """

    def __init__(self, own: int, found: Fingerprints, parts: Sequence[Future[None]]) -> None:
        self._own, self._found, self._parts = own, found, parts

    def result(self) -> Fingerprints:
        """Return the fingerprints when they are there; OSError when one of them cannot be had."""
        wait(self._parts)
        os.close(self._own)
        for part in self._parts:
            part.result()
        return self._found

    def drop(self) -> None:
        """They are not wanted any more."""
        with contextlib.suppress(OSError):
            self.result()


class Checksum:
    """Fingerprints pages, on as many threads as there are cores; the C core holds no GIL.

    Attributes:
        seed: of this instance and secret, so that nobody can prepare a collision.
        zero: fingerprint of a page of zeros.
    """

    def __init__(self) -> None:
        self.seed = int.from_bytes(os.urandom(8), "little")
        self._nr_threads = len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(self._nr_threads, thread_name_prefix="checksum")
        self.zero = self._of_zeros()

    def pages(self, slot: MmSlot, pages: Pages) -> Fingerprints:
        """Return the fingerprint of each page, as its own object holds it now.

        Raises:
            OSError: ENODATA: the worker has shrunk its object.
        """
        return self.begin(slot, pages).result()

    def begin(self, slot: MmSlot, pages: Pages) -> Reading:
        """Begin to read pages; the space may go before they are read. Errors as pages(), from result()."""
        numbers = pages.astype(np.uint64)
        found = np.empty(len(pages), dtype=np.uint64)
        own = os.dup(slot.own)
        nr_parts = min(self._nr_threads, -(-len(pages) // _PAGES_A_THREAD))
        bounds = np.linspace(0, len(pages), nr_parts + 1).astype(int).tolist()
        parts = [
            self._threads.submit(_core.checksum_pages, own, numbers[low:high], self.seed, found[low:high])
            for low, high in itertools.pairwise(bounds)
        ]
        return Reading(own, found, parts)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _of_zeros(self) -> int:
        hole = os.memfd_create("zeros", os.MFD_CLOEXEC)
        try:
            os.ftruncate(hole, 4096)
            found = np.empty(1, dtype=np.uint64)
            _core.checksum_pages(hole, np.zeros(1, dtype=np.uint64), self.seed, found)
        finally:
            os.close(hole)
        return int(found[0])
