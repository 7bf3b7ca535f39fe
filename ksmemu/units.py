"""Units: what an integer counts. Every address, page and frame number says so in its type."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NewType

Vaddr = NewType("Vaddr", int)
"""A virtual address in a worker, in bytes."""
PageNr = NewType("PageNr", int)
"""A page of an address space, counted from the start of the space."""
FrameNr = NewType("FrameNr", int)
"""A frame of the pool, counted from its start."""

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


def pages_for(nr_bytes: int) -> int:
    """Return how many pages hold nr_bytes (rounded up, as the kernel does)."""
    return -(-nr_bytes // PAGE_SIZE)


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Half-open [start, end), in pages or bytes as the place says."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    def __and__(self, other: Range) -> Range:
        """Return what both cover; empty (start == end) where they do not meet."""
        start = max(self.start, other.start)
        return Range(start, max(start, min(self.end, other.end)))
