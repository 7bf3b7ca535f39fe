"""Memory of guests: made of the machine's own files, where nobody gives images.

Real memory comes in runs. A guest has runs of 1 to 64 pages, 13 in the mean; half of its pages are in every
guest, at other places, a quarter is zeros, and the rest is its own.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ksmemu.bench.content import WORDS, Content, PageArray, own_random
from ksmemu.units import PAGE_SIZE

_MEAN_RUN, _LONGEST_RUN = 13, 64
_SEED = 20090509
_FOLDERS = ("/usr/lib", "/usr/bin", sysconfig.get_path("stdlib"))


@dataclass(frozen=True, slots=True)
class Guest:
    """The memory of one of several guests of a size."""

    nr_pages: int
    rank: int

    @property
    def nr_common(self) -> int:
        """Pages that are in every guest."""
        return self.nr_pages // 2

    @property
    def nr_zeros(self) -> int:
        """Pages of zeros."""
        return self.nr_pages // 4

    @property
    def nr_own(self) -> int:
        """Pages that no other guest has."""
        return self.nr_pages - self.nr_common - self.nr_zeros

    def fill(self, pages: PageArray) -> None:
        """See Content."""
        first_zero = self.nr_common + self.nr_own
        places = self._places([self.nr_common, first_zero])
        at = 0
        for part in _machine_pages(self.nr_common):
            pages[places[at : at + len(part)]] = part
            at += len(part)
        own: PageArray = np.empty((self.nr_own, WORDS), dtype=np.uint64)
        own_random(len(own), self.rank).fill(own)
        pages[places[at:first_zero]] = own
        pages[places[first_zero:]] = 0

    def _places(self, bounds: list[int]) -> npt.NDArray[np.int64]:
        """Return where each page lies: the runs are those of every guest, in an order of its own.

        Args:
            bounds: pages that begin a run in any case.
        """
        lengths = np.random.Generator(np.random.SFC64(_SEED)).geometric(1 / _MEAN_RUN, self.nr_pages)
        ends = np.cumsum(np.minimum(lengths, _LONGEST_RUN))
        starts = np.union1d([0, *bounds], ends[ends < self.nr_pages])
        lengths = np.diff(starts, append=self.nr_pages)
        order = np.random.Generator(np.random.SFC64(_SEED + 1 + self.rank)).permutation(len(starts))
        moved = np.empty_like(starts)
        moved[order] = np.cumsum(lengths[order]) - lengths[order]
        return np.repeat(moved - starts, lengths) + np.arange(self.nr_pages)


def _machine_pages(nr_pages: int) -> Iterator[PageArray]:
    """Yield pages of files that any machine has; where there are too few, made-up ones follow."""
    seen = set()
    for path in (path.resolve() for folder in _FOLDERS for path in _libraries(folder)):
        if nr_pages == 0:
            return
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        nr_here = min(path.stat().st_size // PAGE_SIZE, nr_pages)
        yield np.fromfile(path, np.uint64, count=nr_here * WORDS).reshape(-1, WORDS)
        nr_pages -= nr_here
    rest: PageArray = np.empty((nr_pages, WORDS), dtype=np.uint64)
    own_random(nr_pages, _SEED).fill(rest)
    yield rest


def _libraries(folder: str) -> Iterator[Path]:
    """Yield what is called a shared library, folder by folder: nobody waits for those that are not needed."""
    for path, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(path, name) for name in sorted(names) if ".so" in name)


@functools.cache
def expected_sharing(contents: tuple[Content, ...], limit: int) -> int:
    """Return how many pages can be saved among these memories with at most `limit` pages a frame."""
    counts = collections.Counter(
        hashlib.blake2b(page, digest_size=16).digest() for content in contents for page in _pages_of(content)
    )
    sites: npt.NDArray[np.int64] = np.fromiter(counts.values(), np.int64)
    return int((sites - -(-sites // limit)).sum())


def _pages_of(content: Content) -> PageArray:
    pages: PageArray = np.empty((content.nr_pages, WORDS), dtype=np.uint64)
    content.fill(pages)
    return pages
