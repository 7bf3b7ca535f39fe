"""The process that owns the memory of a workload, on either engine."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ksmemu.bench.content import WORDS, Content, PageArray
from ksmemu.errors import NotRunningError
from ksmemu.mm.address_space import MADV_MERGEABLE, MADV_UNMERGEABLE, AddressSpace
from ksmemu.mm.madvise import madvise
from ksmemu.units import PAGE_SIZE

_READ_PAGES = 64
"""What churn() reads between two looks at the clock."""

Numbers = npt.NDArray[np.int64]
"""Of pages."""
Words = npt.NDArray[np.uint64]
"""One of each page: its first."""
Times = tuple[npt.NDArray[np.int64], float]
"""Nanoseconds: of each single write, and of a page of a stream of them."""


@contextlib.contextmanager
def ordinary_memory(nr_pages: int) -> Iterator[PageArray]:
    """Yield anonymous memory that the kernel's KSM may merge, in small pages as KSM has them."""
    with mmap.mmap(-1, nr_pages * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        memory.madvise(mmap.MADV_MERGEABLE)
        yield _as_pages(memory)


@contextlib.contextmanager
def own_memory(nr_pages: int, directory: Path) -> Iterator[PageArray]:
    """Yield memory that ksmemu may merge."""
    with AddressSpace(nr_pages * PAGE_SIZE, instance=directory) as space:
        start = space.mmap(space.size)
        space.madvise(start, space.size, MADV_MERGEABLE)
        with space.view(start, space.size) as view:
            yield _as_pages(view)


def _as_pages(memory: Any) -> PageArray:
    return np.frombuffer(memory, np.uint64).reshape(-1, WORDS)


def work(pipe: Connection[Any, Any], directory: Path | None, content: Content) -> None:
    """Fill the memory, say `filled`, then call the named method for each message until the pipe closes.

    Args:
        pipe: takes (name, *arguments), answers what the method of Worker returns.
        directory: of the ksmd that merges; None: the kernel's KSM does.
        content: what the memory holds.

    Runs in: a process of its own.
    """
    memory = (
        ordinary_memory(content.nr_pages) if directory is None else own_memory(content.nr_pages, directory)
    )
    with contextlib.suppress(EOFError, ConnectionError, BufferError, NotRunningError), memory as pages:
        content.fill(pages)
        worker = Worker(pages)
        pipe.send("filled")
        while True:
            name, *arguments = pipe.recv()
            pipe.send(getattr(worker, name)(*arguments))


class Worker:
    """What a worker is asked to do with its memory, and to measure."""

    def __init__(self, pages: PageArray) -> None:
        self._pages = pages
        self._words = pages[:, 0].copy()
        self._digest = self.digest()

    def digest(self) -> int:
        """Return a number in which every word and the place of every page has a part."""
        place = np.arange(1, len(self._pages) + 1, dtype=np.uint64)
        return int((self._pages.sum(axis=1) * place).sum())

    def is_intact(self) -> bool:
        """Whether the memory holds what it held when it was filled."""
        return self.digest() == self._digest

    def unadvise(self) -> None:
        """Withdraw the advice, of memory that ksmemu merges."""
        madvise(self._pages.ravel(), None, MADV_UNMERGEABLE)

    def mappings(self) -> int:
        """Return how many mappings this process has."""
        return Path("/proc/self/maps").read_bytes().count(b"\n")

    def time_writes(self, numbers: Numbers, stream: tuple[int, int] = (0, 0)) -> Times:
        """Write a word to pages, as it is, without reading them first.

        Args:
            numbers: pages, one at a time.
            stream: pages from here to there, in one go.

        Returns:
            Nanoseconds: of each single write, and of a page of the stream.
        """
        return _time_writes(self._pages, self._words, numbers, stream)

    def time_fresh(self, numbers: Numbers, stream: tuple[int, int]) -> tuple[Times, Times]:
        """The same with as much ordinary memory, advised by nobody: the first time, and the second."""
        with mmap.mmap(-1, self._pages.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            pages = _as_pages(memory)
            first, second = (_time_writes(pages, self._words, numbers, stream) for _ in range(2))
            del pages
        return first, second

    def churn(self, seconds: float, pages_a_second: int, seed: int) -> float:
        """Read the memory as fast as it goes, and rewrite pages of it at random at the given pace.

        Returns:
            How many pages were read a second.
        """
        numbers = np.random.default_rng(seed)
        pages, nr_pages = self._pages, len(self._pages)
        since = time.monotonic()
        read = written = 0
        while (now := time.monotonic()) < since + seconds:
            for number in numbers.integers(nr_pages, size=int((now - since) * pages_a_second) - written):
                pages[number, 0] = self._words[number]
                written += 1
            pages[numbers.integers(nr_pages, size=_READ_PAGES)].sum()
            read += _READ_PAGES
        return read / (now - since)


def _time_writes(pages: PageArray, values: Words, numbers: Numbers, stream: tuple[int, int]) -> Times:
    clock, memory = time.perf_counter_ns, pages.reshape(-1).data
    found = []
    for at, value in zip((numbers * WORDS).tolist(), values[numbers].tolist(), strict=True):
        since = clock()
        memory[at] = value
        found.append(clock() - since)
    start, end = stream
    words, those = pages[start:end, 0], values[start:end]
    since = clock()
    words[:] = those
    return np.array(found), (clock() - since) / max(end - start, 1)
