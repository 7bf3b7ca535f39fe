"""One registered address space: from its first advice until it dies, whatever is still mergeable."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ksmemu import _core
from ksmemu.intervals import IntervalMap
from ksmemu.ksmd.ranges import expand, from_core
from ksmemu.ksmd.rmap import Rmap, State
from ksmemu.units import PAGE_SIZE


@dataclass(slots=True, eq=False)
class MmSlot:
    """What ksmd knows of an address space.

    `own` is a read-only descriptor of its own object; page n of the space is page n of the object. `epoch`
    is the last that its agent reported; an order with another one is refused there.
    """

    id: int
    start: int
    nr_pages: int
    own: int
    pagemap: int
    epoch: int = 0
    rmap: Rmap = field(init=False)
    advised: IntervalMap[bool] = field(default_factory=IntervalMap)
    """Mergeable pages."""

    def __post_init__(self) -> None:
        self.rmap = Rmap(self.nr_pages)

    def discover(self, start: int, end: int) -> None:
        """Track the mergeable pages of [start, end) that hold data and are not tracked yet."""
        for part in self.advised.overlapping(start, end):
            found = _core.data_extents(self.own, part.start * PAGE_SIZE, part.end * PAGE_SIZE)
            pages = expand(from_core(found, PAGE_SIZE))
            self.rmap.track(pages[self.rmap.state[pages] == State.ABSENT], State.NEW)

    def close(self) -> None:
        """Close the own object."""
        os.close(self.own)
