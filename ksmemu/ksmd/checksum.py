"""Step 2: fingerprints of what has been quiet.

harvest.py -> checksum.py -> match.py. A fingerprint is of the moment at which the page was read: a claim.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait

import numpy as np

from ksmemu import _core
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.ranges import Pages
from ksmemu.ksmd.table import Fingerprints
from ksmemu.units import PAGE_SIZE

_PAGES_A_THREAD = 2048
"""Fewer than this are not worth a second thread."""


def new_threads() -> ThreadPoolExecutor:
    """Return threads to read pages, one a core; they start when there is something to read."""
    return ThreadPoolExecutor(_nr_threads(), thread_name_prefix="checksum")


def _nr_threads() -> int:
    return len(os.sched_getaffinity(0))


class Reading:
    """Fingerprints that threads may still be at work on; result() or drop() is to be called once.

    Args:
        found: what they fill.
        parts: who is at work; nobody any more, if there are none.
        own: descriptor that they read, closed in the end.
    """

    def __init__(self, found: Fingerprints, parts: Sequence[Future[None]] = (), own: int = -1) -> None:
        self._found, self._parts, self._own = found, parts, own

    def result(self) -> Fingerprints:
        """Return the fingerprints when they are there; OSError when one of them cannot be had."""
        if self._parts:
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
        seed: of this domain and secret, so that nobody can prepare a collision.
        zero, ones: fingerprints of a page of zeros, and of one of 0xff.
    """

    def __init__(self, threads: Executor) -> None:
        self.seed = int.from_bytes(os.urandom(8), "little")
        self._nr_threads = _nr_threads()
        self._threads = threads
        self.zero, self.ones = self._of_fill(b"\x00"), self._of_fill(b"\xff")

    def pages(self, slot: MmSlot, pages: Pages) -> Fingerprints:
        """Return the fingerprint of each page, as its own object holds it now, or what it inherited.

        Raises:
            OSError: ENODATA: the worker has shrunk its object.
        """
        return self.begin(slot, pages).result()

    def begin(self, slot: MmSlot, pages: Pages) -> Reading:
        """Begin to read pages, if they are many, else read them; the space may go before they are read.

        Raises:
            OSError: as pages(); of what is still being read, result() raises it.
        """
        numbers = pages.astype(np.uint64)
        found = np.empty(len(pages), dtype=np.uint64)
        if slot.ancestors:
            self._read_sources(slot, pages, found)
            return Reading(found)
        nr_parts = min(self._nr_threads, -(-len(pages) // _PAGES_A_THREAD))
        own = _second(slot.own) if nr_parts > 1 else None
        if own is None:
            _core.checksum_pages(slot.own, numbers, self.seed, found)
            return Reading(found)
        bounds = np.linspace(0, len(pages), nr_parts + 1).astype(int).tolist()
        parts = [
            self._threads.submit(_core.checksum_pages, own, numbers[low:high], self.seed, found[low:high])
            for low, high in itertools.pairwise(bounds)
        ]
        return Reading(found, parts, own)

    def _read_sources(self, slot: MmSlot, pages: Pages, found: Fingerprints) -> None:
        """Read pages of a space whose process has forked, or was: from wherever each of them is."""
        for file, index in slot.sources(pages):
            part = np.empty(len(index), dtype=np.uint64)
            _core.checksum_pages(file, pages[index].astype(np.uint64), self.seed, part)
            found[index] = part

    def _of_fill(self, byte: bytes) -> int:
        page = os.memfd_create("fill", os.MFD_CLOEXEC)
        try:
            os.write(page, byte * PAGE_SIZE)
            found = np.empty(1, dtype=np.uint64)
            _core.checksum_pages(page, np.zeros(1, dtype=np.uint64), self.seed, found)
        finally:
            os.close(page)
        return int(found[0])


def _second(fd: int) -> int | None:
    """Return a second descriptor of the same file; None when ksmd can have no more."""
    try:
        return os.dup(fd)
    except OSError:
        return None
