"""The books of one address space: state and tag of every page, as two columns (the kernel's rmap_items).

The columns are as long as the space and live in memory that the kernel gives on first touch: a space that
is mostly hole costs what its data cost. A page costs 7 bytes here, one more where pages matched and could
not be merged, and 16 in the unstable table while it waits there.

    ABSENT ─found─▶ NEW ─seen─▶ WRITTEN ─quiet─▶ SETTLED ─match─▶ UNSTABLE | ORDERED
    ORDERED ─done─▶ MERGED | ZERO      ORDERED ─refused─▶ WRITTEN
    MERGED, ZERO ─written, unmerged─▶ REHOMING ─done─▶ WRITTEN      REHOMING ─equal─▶ MERGED
    MERGED ◀─advised again─ LEFT ◀─MERGED, no longer advised (only as in 2009)
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.columns import column
from ksmemu.ksmd.ranges import Pages, joined, union
from ksmemu.ksmd.stretch import Mask, Stretch

CHUNK = 512
"""Pages a chunk: the books of a chunk without a tracked page are never looked at."""
_DENSE_CHUNKS = 4
"""Neighbouring chunks are passed as one slice from so many on; fewer together with others of their kind."""

Chunks = npt.NDArray[np.int64]
"""Numbers of chunks, ascending."""

NO_FRAME = (1 << 32) - 1
"""Tag of a page that shows the kernel's zero page and has no frame (use_zero_pages)."""


class State(enum.IntEnum):
    """What ksmd believes of a page. The own object holds it in the states NEW to ORDERED."""

    ABSENT = 0
    NEW = 1
    """Found, and no scan has passed it yet. Tag, as up to SETTLED: low half of its last fingerprint, or 0."""
    WRITTEN = 2
    """Written since the scan before, as of the last scan (the kernel's volatile)."""
    UNSEEN = 3
    """Written, and passed over since (smart scan): a scan has yet to look at it, as at a NEW page."""
    SETTLED = 4
    """Quiet for a full scan; its fingerprint waits to be matched."""
    SKIPPED = 5
    """As UNSTABLE, but passed over by the last scan (smart scan): as in the kernel it finds no partner."""
    UNSTABLE = 6
    """Unique among what is quiet: waits in the unstable table. Tag: low half of its fingerprint."""
    ORDERED = 7
    """A merge is under way. Tag: the frame, which is referenced already."""
    MERGED = 8
    """Tag: the frame."""
    ZERO = 9
    """Shows the zero page; tag: NO_FRAME."""
    REHOMING = 10
    """On the way back, because it was written (BROKEN) or is unmerged. Tag: the frame, still referenced."""
    LEFT = 11
    """Merged, and not ours to count: its advice was withdrawn as in 2009, or a forked child has it from its
    parent and no scan has passed it yet. Tag: the frame, or NO_FRAME."""


class Obstacle(enum.IntEnum):
    """Why a page that matched is WRITTEN again, until it is written indeed or matches anew."""

    NONE = 0
    MAPPING_BUDGET = 1
    """Its process is near vm.max_map_count."""
    NO_ROOM = 2
    """The pool had no frame for it."""


HOLDS_FRAME = (State.ORDERED, State.MERGED, State.REHOMING, State.LEFT)
SHOWS_FRAME = (State.MERGED, State.ZERO, State.REHOMING, State.LEFT)
"""Its mapping names a frame or the zero page, as an outcome said."""
VOLATILE = (State.WRITTEN, State.UNSEEN, State.SETTLED, State.SKIPPED, State.ORDERED)
"""Neither shared nor waiting as unique."""
HAS_ITEM = (
    State.WRITTEN,
    State.UNSEEN,
    State.SETTLED,
    State.SKIPPED,
    State.UNSTABLE,
    State.ORDERED,
    State.MERGED,
    State.REHOMING,
)
"""The kernel would have an rmap_item for it: some scan has seen it, and it does not show the zero page."""


class Rmap:
    """State and tag of each page of one space.

    Attributes:
        state: uint8, a State for each page. Change it by move() only.
        tag: uint32, meaning by state.
        age, skips: uint8, visits so far and visits to skip (smart scan).
        obstacle: uint8, an Obstacle for each page; not touched before give_up().
        counts: pages in each State.
    """

    def __init__(self, nr_pages: int) -> None:
        self.nr_pages = nr_pages
        nr_chunks = -(-nr_pages // CHUNK)
        self.state = column(nr_chunks * CHUNK, np.uint8)
        self.tag = column(nr_chunks * CHUNK, np.uint32)
        self.age = column(nr_chunks * CHUNK, np.uint8)
        self.skips = column(nr_chunks * CHUNK, np.uint8)
        self.obstacle = column(nr_chunks * CHUNK, np.uint8)
        self._had_obstacles = False
        self.counts = np.zeros(len(State), dtype=np.int64)
        self._by_chunk = self.state.reshape(nr_chunks, CHUNK)
        self._occupied = np.empty(0, dtype=np.int64)

    @property
    def nr_tracked(self) -> int:
        """Pages that are not ABSENT."""
        return sum(self.counts[State.NEW :].tolist())

    @property
    def nr_own(self) -> int:
        """Pages that the own object holds."""
        return sum(self.counts[State.NEW : State.MERGED].tolist())

    @property
    def nr_merged(self) -> int:
        """Pages that are merged, and not known to be written since."""
        return int(self.counts[State.MERGED] + self.counts[State.ZERO])

    def move(self, pages: Pages, state: State) -> None:
        """Take pages (each named once) to a state."""
        if not len(pages):
            return
        self.counts -= np.bincount(self.state[pages], minlength=len(State))
        self.counts[state] += len(pages)
        self.state[pages] = state
        if state is not State.SETTLED:
            self.forget_obstacle(pages)
        if state is State.ABSENT:
            self.rejuvenate(pages)

    def move_some(self, stretch: Stretch, which: Mask, before: State, after: State) -> None:
        """Take the pages of a stretch that a mask names, all in one state, to another."""
        nr_pages = np.count_nonzero(which)
        if not nr_pages:
            return
        self.counts[before] -= nr_pages
        self.counts[after] += nr_pages
        stretch.put(self.state, which, after)
        self.forget_obstacles(stretch, which)

    def in_states(self, stretch: Stretch, first: State, last: State) -> Mask:
        """Return which pages of a stretch are in a state from first to last; little work where none is."""
        if not any(self.counts[first : last + 1].tolist()):
            return stretch.none()
        above = self.state[stretch.index] - np.uint8(first)  # below it: 255 and less
        is_in: Mask = above <= last - first
        return is_in

    def give_up(self, pages: Pages, why: Obstacle) -> None:
        """Take pages that matched to WRITTEN: they could not be merged."""
        self.move(pages, State.WRITTEN)
        self._had_obstacles |= len(pages) > 0
        self.obstacle[pages] = why

    def forget_obstacle(self, pages: Pages) -> None:
        """Forget why pages could not be merged: it is not what keeps them now."""
        if self._had_obstacles:
            self.obstacle[pages] = Obstacle.NONE

    def forget_obstacles(self, stretch: Stretch, which: Mask) -> None:
        """Forget it of the pages of a stretch that a mask names."""
        if self._had_obstacles:
            stretch.put(self.obstacle, which, Obstacle.NONE)

    def rejuvenate(self, pages: Pages) -> None:
        """Forget how often pages were looked at."""
        self.age[pages] = 0
        self.skips[pages] = 0

    def forget_fingerprints(self, start: int, end: int) -> None:
        """Look at the pages in [start, end) anew that wait with a fingerprint."""
        pages = self.tracked(start, end)
        states = self.state[pages]
        self.move(pages[(states >= State.SETTLED) & (states <= State.UNSTABLE)], State.WRITTEN)

    def track(self, pages: Pages, state: State) -> None:
        """Take pages that were ABSENT so far to a state."""
        self._occupied = union(self._occupied, pages // CHUNK)
        self.move(pages, state)

    def tracked(self, start: int, end: int) -> Pages:
        """Return the tracked pages in [start, end)."""
        chunks = self._chunks(start, end)
        row, column = np.nonzero(self._by_chunk[chunks])
        pages = chunks[row] * CHUNK + column
        if len(pages) and (pages[0] < start or pages[-1] >= end):
            low, high = np.searchsorted(pages, [start, end])
            pages = pages[low:high]
        return pages

    def _chunks(self, start: int, end: int) -> Chunks:
        """Return the chunks of [start, end) that have a tracked page, or had one."""
        low, high = map(self._occupied.searchsorted, (start // CHUNK, -(-end // CHUNK)))
        return self._occupied[low:high]

    def stretches(self, start: int, end: int) -> Iterator[Stretch]:
        """Yield the tracked pages in [start, end), ascending: dense runs, and what is scattered between."""
        chunks = self._chunks(start, end)
        at = start
        for first, last in _dense_runs(chunks):
            low, high = max(first * CHUNK, start), min(last * CHUNK, end)
            yield from self._scattered(at, low)
            yield Stretch(slice(low, high))
            at = high
        yield from self._scattered(at, end)

    def _scattered(self, start: int, end: int) -> Iterator[Stretch]:
        if start < end and len(pages := self.tracked(start, end)):
            yield Stretch(pages)

    def stop_after(self, start: int, budget: int) -> tuple[int, int]:
        """Return (end, count): [start, end) holds count tracked pages, at most budget."""
        if start == 0 and self.nr_tracked <= budget:
            return self.nr_pages, self.nr_tracked
        passed, last = int(self._occupied.searchsorted(start // CHUNK)), len(self._occupied)
        end, count = start, 0
        while passed < last and count < budget:
            passed = min(passed + max((budget - count) // CHUNK, 1), last)
            before, end = end, (int(self._occupied[passed - 1]) + 1) * CHUNK
            more = self._nr_tracked(before, end)
            if count + more > budget:
                return int(self.tracked(before, end)[budget - count]), budget
            count += more
        if passed == last:
            end = self.nr_pages
        return min(end, self.nr_pages), count

    def _nr_tracked(self, start: int, end: int) -> int:
        columns = (self.state[one.index] for one in self.stretches(start, end))
        return sum(int(np.count_nonzero(states != State.ABSENT)) for states in columns)

    def clear(self) -> None:
        """Forget every page."""
        self.move(self.tracked(0, self.nr_pages), State.ABSENT)
        self._occupied = np.empty(0, dtype=np.int64)


def _dense_runs(chunks: Chunks) -> list[tuple[int, int]]:
    """Return (first, last) of each half-open run of neighbouring chunks that are passed as a slice."""
    if not len(chunks):
        return []
    first, last = int(chunks[0]), int(chunks[-1]) + 1
    if last - first == len(chunks):
        return [(first, last)]
    runs = joined(np.stack([chunks, chunks + 1], axis=1), 0)
    return [(first, last) for first, last in runs.tolist() if last - first >= _DENSE_CHUNKS]
