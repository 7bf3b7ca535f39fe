"""What was an own object until a fork: parent and child show its pages privately, and nobody writes to it.

Page n of an ancestor is page n of each space that shows it. A page that no space shows any more is given
back, once everybody who may show it has joined: a child is born before ksmd hears of it.
"""

from __future__ import annotations

import logging
import os

import numpy as np

from ksmemu import _core
from ksmemu.ksmd import holders
from ksmemu.ksmd.columns import column
from ksmemu.ksmd.ranges import Pages
from ksmemu.units import PAGE_SIZE

log = logging.getLogger(__name__)


class Ancestor:
    """One such object; compared by identity.

    Attributes:
        file: a descriptor that can write.
        refs: spaces that show each page.
        known: names of the holders that have joined.
        unheard: names of those that are joining, and have yet to say what they show.
        nr_slots: spaces that may show some of it.
    """

    def __init__(self, file: int, nr_pages: int) -> None:
        self.file = file
        self.refs = column(nr_pages, np.uint16)
        self.known: set[int] = set()
        self.unheard: set[int] = set()
        self.nr_slots = 0
        self._unshown: list[Pages] = []

    def acquire(self, pages: Pages) -> None:
        """A space shows pages (each named once)."""
        self.refs[pages] += 1

    def release(self, pages: Pages) -> None:
        """A space shows pages no more; what nobody shows is given back by the next sweep()."""
        self.refs[pages] -= 1
        unshown = pages[self.refs[pages] == 0]
        if len(unshown):
            self._unshown.append(unshown)

    def has_strangers(self) -> bool:
        """Return whether somebody may show some of it who has not said what."""
        # The file is one of theirs: its own name is not among those that it sees.
        return bool(self.unheard or holders.living(self.file) - self.known)

    def sweep(self) -> None:
        """Give back what nobody shows, unless there are strangers."""
        if not self._unshown or self.has_strangers():
            return
        unshown = np.unique(np.concatenate(self._unshown))
        self._unshown.clear()
        unshown = unshown[self.refs[unshown] == 0]
        for run in np.split(unshown, np.flatnonzero(np.diff(unshown) != 1) + 1):
            # SAFE: every space that showed these pages has said that it does not, and nobody else knows them.
            if len(run):
                _core.punch(self.file, int(run[0]) * PAGE_SIZE, len(run) * PAGE_SIZE)

    def close(self) -> None:
        """No space that is known shows any of it."""
        os.close(self.file)
