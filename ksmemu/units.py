"""Units: pages, and ranges of them or of bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass

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
