"""One registered address space: from its first advice until it dies, whatever is still mergeable."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ksmemu import _core
from ksmemu.intervals import IntervalMap
from ksmemu.ksmd.ancestor import Ancestor
from ksmemu.ksmd.columns import column
from ksmemu.ksmd.ranges import Pages, expand, from_core, union
from ksmemu.ksmd.rmap import CHUNK, SHOWS_FRAME, Rmap, State
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
    node: int = 0
    """The simulated NUMA node of its pages, but for those that `nodes` names."""
    epoch: int = 0
    number: int = 0
    """What its worker calls it."""
    rmap: Rmap = field(init=False)
    home: npt.NDArray[np.uint8] = field(init=False)
    """Of each page the number of the ancestor that it shows, also where it is not tracked; 0: none."""
    advised: IntervalMap[bool] = field(default_factory=IntervalMap)
    """Mergeable pages."""
    refused: IntervalMap[bool] = field(default_factory=IntervalMap)
    """Pages that are not, because the process itself has said MADV_UNMERGEABLE."""
    nodes: IntervalMap[int] = field(default_factory=IntervalMap)
    """Pages that were put on a node of their own (mbind)."""
    known_surplus: int | None = None
    """Pages that the own object holds besides those in the books (advised once, and not now), as of the last
    discovery; None: there is something to discover."""

    ancestors: dict[int, Ancestor] = field(default_factory=dict)
    """What was its own object before a fork, by the number that the agent gave."""
    unheard: list[tuple[Ancestor, int]] = field(default_factory=list)
    """Ancestors, and what the process is called there, which has yet to say what it shows of them."""
    heard: list[tuple[Ancestor, int]] = field(default_factory=list)
    """The same of those of which it has."""
    _nr_shown: Counter[int] = field(default_factory=Counter)
    """Pages that show each ancestor."""
    _heritage_chunks: Pages = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    nr_alone: int = 0
    """Pages that are alone on a frame (Setup.secure), as of the last full scan."""
    former: list[Pages] = field(default_factory=list)
    """Pages that were forgotten since the scan came by; it knows them again if they are back by then."""

    def __post_init__(self) -> None:
        self.rmap = Rmap(self.nr_pages)
        self.home = column(self.nr_pages, np.uint8)

    def nodes_of(self, pages: Pages) -> npt.NDArray[np.int64]:
        """Return the node of each page; where no range has one of its own, the one of all of them."""
        parts = self.nodes.overlapping(int(pages.min()), int(pages.max()) + 1) if len(pages) else []
        if not parts:
            return np.array(self.node)
        starts, ends, nodes = np.array([(part.start, part.end, part.value) for part in parts]).T
        at = np.maximum(np.searchsorted(starts, pages, side="right") - 1, 0)
        return np.where((starts[at] <= pages) & (pages < ends[at]), nodes[at], self.node)

    def has_unseen_data(self) -> bool:
        """Whether there may be pages that hold data and are not tracked.

        Not where all are tracked, nor while the own object holds what it did at the last discovery, and by
        the books since; with orders under way the books do not know yet what it holds.
        """
        if self.rmap.nr_tracked == self.nr_pages:
            return False
        return bool(self.ancestors) or self._held() - self.rmap.nr_own != self.known_surplus

    def _held(self) -> int:
        """Return how many pages the own object holds now."""
        return os.fstat(self.own).st_blocks * 512 // PAGE_SIZE

    def discover(self) -> None:
        """Track the mergeable pages that hold data and are not tracked yet."""
        held = self._held()  # before the look: a page that comes during it shall be missed next time
        for part in self.advised:
            found = _core.data_extents(self.own, part.start * PAGE_SIZE, part.end * PAGE_SIZE)
            pages = expand(from_core(found, PAGE_SIZE))
            self.rmap.track(pages[self.rmap.state[pages] == State.ABSENT], State.NEW)
        self.known_surplus = held - self.rmap.nr_own

    def drop_former(self) -> None:
        """Of what was forgotten and is not back, forget the checksums too."""
        for pages in self.former:
            self.rmap.tag[pages[self.rmap.state[pages] == State.ABSENT]] = 0
        self.former.clear()

    def nr_runs(self) -> int:
        """Return about how many mappings show frames: rungs of a ladder are taken for one."""
        pages = self.rmap.tracked(0, self.nr_pages)
        pages = pages[np.isin(self.rmap.state[pages], SHOWS_FRAME)]
        ahead = np.diff(self.rmap.tag[pages].astype(np.int64))
        breaks = (np.diff(pages) != 1) | ((ahead != 0) & (ahead != 1))
        return int(np.count_nonzero(breaks)) + (len(pages) > 0)

    def hole_bytes(self) -> int:
        """Return how much the own object can still grow."""
        own = os.fstat(self.own)
        return max(self.nr_pages * PAGE_SIZE - own.st_blocks * 512, 0)

    def is_on(self, device: int) -> bool:
        """Whether the own object lies in the file system with this device number."""
        return os.fstat(self.own).st_dev == device

    # ---- after a fork ----------------------------------------------------------------------------

    def add_ancestor(self, number: int, ancestor: Ancestor) -> None:
        """From now on the agent calls an ancestor so; it does not show the one that it called so before."""
        self._drop_ancestor(number)
        ancestor.nr_slots += 1
        self.ancestors[number] = ancestor

    def _drop_ancestor(self, number: int) -> None:
        if number in self.ancestors:
            pages = self.heritage(0, self.nr_pages)
            self._leave(number, pages[self.home[pages] == number])
            ancestor = self.ancestors.pop(number)
            ancestor.nr_slots -= 1
            self.heard = [said for said in self.heard if said[0] is not ancestor]

    def _leave(self, number: int, pages: Pages) -> None:
        self.ancestors[number].release(pages)
        self.home[pages] = 0
        self._nr_shown[number] -= len(pages)

    def inherit(self, pages: Pages, number: int) -> None:
        """Pages (each named once) show an ancestor; 0: their own object, as all do at first."""
        homes = self.home[pages]
        for former in np.unique(homes[homes > 0]).tolist():
            self._leave(former, pages[homes == former])
            if not self._nr_shown[former] and former != number:
                self._drop_ancestor(former)
        if number:
            self.ancestors[number].acquire(pages)
            self._heritage_chunks = union(self._heritage_chunks, pages // CHUNK)
            self._nr_shown[number] += len(pages)
            self.home[pages] = number

    def heritage(self, start: int, end: int) -> Pages:
        """Return the pages in [start, end) that show an ancestor."""
        low, high = np.searchsorted(self._heritage_chunks, [start // CHUNK, -(-end // CHUNK)])
        pages = (self._heritage_chunks[low:high, None] * CHUNK + np.arange(CHUNK)).reshape(-1)
        pages = pages[(pages >= start) & (pages < min(end, self.nr_pages))]
        shown: Pages = pages[self.home[pages] > 0]
        return shown

    def is_inherited(self, pages: Pages) -> npt.NDArray[np.bool_]:
        """Return which pages show an ancestor."""
        return self.home[pages] > 0

    def sources(self, pages: Pages) -> list[tuple[int, npt.NDArray[np.int64]]]:
        """Return (descriptor, index) for each object that holds some of the pages: those at pages[index]."""
        if not self.ancestors:
            return [(self.own, np.arange(len(pages)))]
        homes = self.home[pages]
        return [
            (self.ancestors[home].file if home else self.own, np.flatnonzero(homes == home))
            for home in np.unique(homes).tolist()
        ]

    def await_all_of(self, ancestor: Ancestor, holder: int) -> None:
        """The process, by this name, is about to say what the space shows of an ancestor."""
        ancestor.unheard.add(holder)
        self.unheard.append((ancestor, holder))

    def hear(self) -> None:
        """It has said all of it."""
        for ancestor, holder in self.unheard:
            ancestor.unheard.discard(holder)
            ancestor.known.add(holder)
        self.heard += self.unheard
        self.unheard.clear()

    def become_strange(self) -> list[tuple[Ancestor, int]]:
        """It has parted with us, and shows them still: forget what it has said; return what it is to say."""
        strange = self.heard + self.unheard
        for ancestor, holder in strange:
            ancestor.known.discard(holder)
            ancestor.unheard.add(holder)
        self.heard.clear()
        self.unheard.clear()
        return strange

    def close(self) -> None:
        """Close the own object, and leave the ancestors."""
        self.hear()
        for number in list(self.ancestors):
            self._drop_ancestor(number)
        os.close(self.own)
