"""What the memory of a workload holds: the same for both engines, and known in advance.

A content is made by the worker itself, from a seed: nothing but its name goes through the pipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ksmemu.units import PAGE_SIZE

WORDS = PAGE_SIZE // 8
PageArray = npt.NDArray[np.uint64]
"""Shape (pages, WORDS)."""

_COMMON, _OWN = 1, 1_000
"""Seeds: of what all members have, and, plus its rank, of what one has alone."""
_CHUNK = 2048


class Content(Protocol):
    """How a worker fills its memory."""

    @property
    def nr_pages(self) -> int:
        """Its size."""

    def fill(self, pages: PageArray) -> None:
        """Write every page."""


@dataclass(frozen=True, slots=True)
class Random:
    """Pages without their like, but for other memory with the same seed."""

    nr_pages: int
    seed: int = _COMMON

    def fill(self, pages: PageArray) -> None:
        """See Content."""
        numbers = np.random.SFC64(self.seed)
        for at in range(0, len(pages), _CHUNK):
            part = pages[at : at + _CHUNK]
            part[:] = numbers.random_raw(part.size).reshape(part.shape)


@dataclass(frozen=True, slots=True)
class Scattered:
    """Every second page is common to all ranks, never two of them in a row, at an offset of its own."""

    nr_pages: int
    rank: int

    def fill(self, pages: PageArray) -> None:
        """See Content."""
        Random(len(pages), _OWN + self.rank).fill(pages)
        common = pages[self.rank % 2 :: 2]
        order = np.roll(np.arange(len(common)), 17 * self.rank)
        numbers = np.random.SFC64(_COMMON)
        for index in np.array_split(order, -(-len(order) // _CHUNK)):
            common[index] = numbers.random_raw(len(index) * WORDS).reshape(-1, WORDS)


@dataclass(frozen=True, slots=True)
class Fills:
    """Zeros, then 0xff."""

    nr_pages: int

    def fill(self, pages: PageArray) -> None:
        """See Content."""
        half = len(pages) // 2
        pages[:half] = 0
        pages[half:] = np.uint64((1 << 64) - 1)


@dataclass(frozen=True, slots=True)
class Image:
    """A file: a raw memory image."""

    path: Path

    @property
    def nr_pages(self) -> int:
        """Its whole pages."""
        return self.path.stat().st_size // PAGE_SIZE

    def fill(self, pages: PageArray) -> None:
        """See Content."""
        with self.path.open("rb", buffering=0) as file:
            rest = pages.data.cast("B")
            while rest:
                rest = rest[file.readinto(rest) :]


def own_random(nr_pages: int, rank: int) -> Random:
    """Return pages that only this rank has."""
    return Random(nr_pages, _OWN + rank)
