"""Ladders: frames of one content side by side, so that a run of equal pages is a few mappings.

Equal neighbours cannot continue each other's mapping, since one frame cannot follow itself. A content that
many neighbours share gets a ladder of RUNGS equal frames, and page n of a space shows rung n % RUNGS: then
RUNGS pages are one mapping, in whatever pieces they are found. References stay with the dups of the content,
as the kernel counts them; a ladder belongs to all dups of its content, and goes with the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.columns import column
from ksmemu.ksmd.ranges import Pages, counted, distinct

if TYPE_CHECKING:
    from ksmemu.ksmd.pool import Frames, Pool

RUNGS = 128
_MIN_NEIGHBOURS = 32
"""So many equal neighbours in one order are worth the memory of a ladder, half a MiB."""


@dataclass(slots=True)
class _Ladder:
    base: int
    nr_dups: int = 0


class Ladders:
    """The ladders of a pool.

    Attributes:
        nr_frames: frames that are rungs; they are not among those in use by the pool's count.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._above = column(pool.nr_frames, np.uint32)  # of a dup: base of its ladder + 1, or 0
        self._by_content: dict[int, _Ladder] = {}
        self.nr_frames = 0

    def shown(self, pages: Pages, frames: Frames) -> Frames:
        """Return the frames that pages are to show which refer to these frames."""
        above = self._above[frames].astype(np.int64)
        return np.where(above > 0, above - 1 + pages % RUNGS, frames)

    def raise_for(self, pages: Pages, frames: Frames) -> None:
        """Make ladders for the contents that many neighbours of these pages (ascending) are to share."""
        prints = self._pool.fingerprint[frames]
        is_next = (np.diff(pages) == 1) & (prints[1:] == prints[:-1])
        if np.count_nonzero(is_next) < _MIN_NEIGHBOURS:
            return
        contents, counts = counted(prints[1:][is_next])
        for content in contents[counts >= _MIN_NEIGHBOURS].tolist():
            dups = distinct(frames[prints == np.uint64(content)])
            without = dups[self._above[dups] == 0]
            if len(without) and (ladder := self._ladder(content, int(dups[0]))):
                self._above[without] = ladder.base + 1
                ladder.nr_dups += len(without)

    def bases(self, frames: Frames) -> npt.NDArray[np.int64]:
        """Return of each frame the base of the ladder that it is a rung of, or -1."""
        found = np.full(len(frames), -1)
        for ladder in self._by_content.values():
            found[(frames >= ladder.base) & (frames < ladder.base + RUNGS)] = ladder.base
        return found

    def content(self, base: int) -> int:
        """Return the fingerprint of what the ladder with this base holds."""
        return next(content for content, ladder in self._by_content.items() if ladder.base == base)

    def lengthen(self, base: int, frames: Frames) -> None:
        """New dups of the content of a ladder belong to it."""
        self._above[frames] = base + 1
        self._by_content[self.content(base)].nr_dups += len(frames)

    def drop(self, frames: Frames) -> None:
        """These dups are gone; a ladder without one goes too."""
        for frame in frames[self._above[frames] > 0].tolist():
            content = int(self._pool.fingerprint[frame])
            self._above[frame] = 0
            ladder = self._by_content[content]
            ladder.nr_dups -= 1
            if not ladder.nr_dups:
                del self._by_content[content]
                self.nr_frames -= RUNGS
                self._pool.give_back(_rungs(ladder.base))

    def _ladder(self, content: int, frame: int) -> _Ladder | None:
        """Return the ladder of a content, made from one of its frames if need be; None without room."""
        if content in self._by_content:
            return self._by_content[content]
        base = self._pool.set_aside(RUNGS)
        if base is None:
            return None
        if not self._pool.copy(frame, _rungs(base)):
            self._pool.give_back(_rungs(base))
            return None
        self.nr_frames += RUNGS
        self._by_content[content] = _Ladder(base)
        return self._by_content[content]


def _rungs(base: int) -> npt.NDArray[np.int64]:
    return np.arange(base, base + RUNGS)
