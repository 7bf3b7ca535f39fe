"""A place: one page of one address space as one 64-bit number, so that columns can hold it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.ranges import Pages, is_first, sorting_small

Places = npt.NDArray[np.uint64]

_PAGE_BITS = np.uint64(40)
_PAGE_MASK = np.uint64((1 << 40) - 1)
MAX_PAGES = 1 << 40


def places(slot_id: int, pages: Pages) -> Places:
    """Return the places of pages of a slot."""
    return (np.uint64(slot_id) << _PAGE_BITS) | pages.astype(np.uint64)


def pages_of(where: Places) -> Pages:
    """Return the page of each place."""
    return (where & _PAGE_MASK).astype(np.int64)


def by_slot(where: Places) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yield (slot id, index of its places in `where`), the indices in their order."""
    if not len(where):
        return
    slots = (where >> _PAGE_BITS).astype(np.int64)
    low = int(slots.min())
    if low == slots.max():
        yield low, np.arange(len(where))
        return
    order = sorting_small(slots - low)
    firsts = np.flatnonzero(is_first(slots[order]))
    for index in np.split(order, firsts[1:]):
        yield int(slots[index[0]]), index
