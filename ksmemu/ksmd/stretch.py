"""A stretch: pages of one space that the scan passes together, as an index into the columns of the books.

Where data lie side by side the index is a slice, and what is done to a column costs a fraction of a
nanosecond a page; a slice may hold ABSENT pages. Where data lie far apart it is an array of tracked pages.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.ranges import Pages, Ranges, contains, joined

Index = slice | Pages
"""What a column is indexed by."""
Mask = npt.NDArray[np.bool_]
"""A bool for each page of a stretch."""
T = TypeVar("T", bound=np.generic)


class Stretch:
    """Pages by number, ascending.

    Args:
        index: of the pages; both ends of a slice are given.
    """

    def __init__(self, index: Index) -> None:
        self.index = index

    def __len__(self) -> int:
        """Return how many pages it has, the ABSENT ones of a slice among them."""
        return self.index.stop - self.index.start if isinstance(self.index, slice) else len(self.index)

    def none(self) -> Mask:
        """Return the mask that names no page."""
        return np.zeros(len(self), dtype=np.bool_)

    def pages(self, which: Mask) -> Pages:
        """Return the pages that a mask names."""
        if not isinstance(self.index, slice):
            return self.index[which]
        pages: Pages = np.flatnonzero(which)
        pages += self.index.start
        return pages

    def within(self, ranges: Ranges) -> Mask:
        """Return which pages lie in ranges of page numbers; none of those leaves a slice."""
        if not isinstance(self.index, slice):
            return contains(ranges, self.index)
        steps = np.zeros(len(self) + 1, dtype=np.int8)
        steps[ranges[:, 0] - self.index.start] = 1
        steps[ranges[:, 1] - self.index.start] -= 1  # where one ends another may begin
        return np.add.accumulate(steps[:-1], dtype=np.int8).view(np.bool_)

    def ranges(self, which: Mask, gap: int) -> Ranges:
        """Return ranges that hold all that a mask names, and no hole of more than gap pages between."""
        if isinstance(self.index, slice):
            padded = np.zeros(len(self) + 2, dtype=np.bool_)
            padded[1:-1] = which
            edges = np.flatnonzero(padded[1:] != padded[:-1])
            return joined(edges.reshape(-1, 2) + self.index.start, gap)
        pages = self.index[which]
        return joined(np.stack([pages, pages + 1], axis=1), gap)

    def put(self, column: npt.NDArray[T], which: Mask, value: int) -> None:
        """Give the pages that a mask names a value in a column."""
        if isinstance(self.index, slice):
            column[self.index][which] = value
        else:
            column[self.index[which]] = value
