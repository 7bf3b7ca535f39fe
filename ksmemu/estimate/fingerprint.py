"""Step 2: a fingerprint of each page, as ksmd takes them: 64 bits of XXH3, by a seed of this run.

Two different pages have the same one with a probability of n^2 / 2^65 among n pages: for 8 GiB, 10^-7.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ksmemu import _core
from ksmemu.estimate.source import Source
from ksmemu.units import PAGE_SIZE

_CHUNK = 8192
"""Pages that a thread reads before it says so."""

GONE = (1 << 64) - 1
"""Stands for a page that could not be read any more."""

Fingerprints = npt.NDArray[np.uint64]


class Fingerprinter:
    """Reads pages on as many threads as there are cores."""

    def __init__(self) -> None:
        self._seed = int.from_bytes(os.urandom(8), "little")
        self.zero = self._of_bytes(bytes(PAGE_SIZE))

    def take(
        self, sources: Sequence[Source], advance: Callable[[int], None]
    ) -> tuple[Fingerprints, list[Fingerprints]]:
        """Return the fingerprints of all sources, eight bytes a page, and of each: a part of that array.

        Args:
            advance: is told of so many more pages that were read.

        Raises:
            OSError: ENODATA: a file has shrunk, a process has ended. What one has given back is left out.
        """
        everything = np.empty(sum(source.nr_pages for source in sources), dtype=np.uint64)
        parts, at = [], 0
        for source in sources:
            part = everything[at : at + source.nr_pages]
            parts.append(self._take(source, part, advance))
            at += source.nr_pages
        return everything, parts

    def _take(self, source: Source, part: Fingerprints, advance: Callable[[int], None]) -> Fingerprints:
        nr_threads = len(os.sched_getaffinity(0))
        at, reading = 0, deque[Future[int]]()
        with ThreadPoolExecutor(nr_threads) as threads:
            for pages in source.chunks(_CHUNK):
                reading.append(threads.submit(self._read, source, pages, part[at : at + len(pages)]))
                at += len(pages)
                if len(reading) > 2 * nr_threads:  # more would only wait, and take memory
                    advance(reading.popleft().result())
            for chunk in reading:
                advance(chunk.result())
        if source.tail:
            part[at] = self._of_bytes(source.tail.ljust(PAGE_SIZE, b"\0"))
            advance(1)
        if nr_gone := int(np.count_nonzero(part == GONE)):
            source.left_out["gone meanwhile"] = nr_gone
        return part

    def _read(self, source: Source, pages: Fingerprints, found: Fingerprints) -> int:
        """Fill in fingerprints; GONE where a process has given its memory back. Return how many pages."""
        try:
            _core.checksum_pages(source.fd, pages, self._seed, found)
        except OSError as error:
            if error.errno == errno.ENODATA:
                what = "has ended meanwhile" if source.is_process else "has shrunk meanwhile"
                raise OSError(errno.ENODATA, what, source.name) from None
            if not source.is_process:
                raise OSError(error.errno, error.strerror, source.name) from None
            if len(pages) == 1:
                found[:] = GONE
            else:
                middle = len(pages) // 2
                self._read(source, pages[:middle], found[:middle])
                self._read(source, pages[middle:], found[middle:])
        return len(pages)

    def _of_bytes(self, page: bytes) -> int:
        found = np.empty(1, dtype=np.uint64)
        with open(os.memfd_create("page", os.MFD_CLOEXEC), "w+b", buffering=0) as file:
            file.write(page)
            _core.checksum_pages(file.fileno(), np.zeros(1, dtype=np.uint64), self._seed, found)
        return int(found[0])
