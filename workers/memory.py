"""Memory that knows what it must hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from ksmemu import MADV_MERGEABLE, AddressSpace
from ksmemu.bench.content import WORDS, Content, PageArray
from ksmemu.units import PAGE_SIZE

_CHUNK_BYTES = 256 * PAGE_SIZE


class Memory:
    """One address space, mapped in full and mergeable, and what each page that was put must hold.

    Advised before it is filled: there is nothing to be moved. A page that was never put is a hole.

    Raises:
        OSError: as AddressSpace and its madvise(); nothing is left behind.
    """

    def __init__(self, nr_pages: int, name: str, directory: str | None, domain: str | None) -> None:
        self.nr_pages = nr_pages
        self.space = AddressSpace(nr_pages * PAGE_SIZE, name=name, instance=directory, domain=domain)
        self._digests: dict[int, bytes] = {}
        try:
            self.space.mmap(self.space.size, self.space.start)
            self.space.madvise(self.space.start, self.space.size, MADV_MERGEABLE)
        except BaseException:
            self.space.close()
            raise

    def put(self, first: int, content: bytes | memoryview) -> None:
        """Write pages from `first` on; the last one is filled up with zeros.

        What they must hold is noted from the content, not from memory.
        """
        source = memoryview(content).cast("B")
        for at in range(0, len(source), _CHUNK_BYTES):
            self._put_chunk(first + at // PAGE_SIZE, bytes(source[at : at + _CHUNK_BYTES]))

    def _put_chunk(self, first: int, chunk: bytes) -> None:
        chunk += bytes(-len(chunk) % PAGE_SIZE)
        for at in range(0, len(chunk), PAGE_SIZE):
            self._digests[first + at // PAGE_SIZE] = _digest(chunk[at : at + PAGE_SIZE])
        self.space.write(self.space.start + first * PAGE_SIZE, chunk)

    def fill(self, content: Content, first: int = 0) -> None:
        """Put a content, which makes itself in ordinary memory."""
        pages: PageArray = np.empty((content.nr_pages, WORDS), dtype=np.uint64)
        content.fill(pages)
        self.put(first, pages.data)

    def read(self, page: int) -> bytes:
        """Return the bytes of a page."""
        return self.space.read(self.space.start + page * PAGE_SIZE, PAGE_SIZE)

    def is_intact(self, page: int) -> bool:
        """Whether a page holds what was put there last; what was never put is not looked at."""
        return page not in self._digests or _digest(self.read(page)) == self._digests[page]

    def lost_pages(self) -> Iterator[int]:
        """Yield every page that is not intact."""
        return (page for page in self._digests if not self.is_intact(page))


def _digest(page: bytes) -> bytes:
    return hashlib.blake2b(page, digest_size=16).digest()
