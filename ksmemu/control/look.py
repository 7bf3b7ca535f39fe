"""How a page looks to whoever looks at memory: fewer states than the books have, and each can be seen."""

from __future__ import annotations

import enum


class Look(enum.IntEnum):
    """What a page is, as a page map shows it."""

    ABSENT = 0
    """Holds no data."""
    OWN = 1
    """Its process alone has it, and it is quiet or new."""
    VOLATILE = 2
    """The same; it was written since the scan before."""
    MERGED = 3
    """Shows a frame."""
    ZERO = 4
    """Shows the kernel's zero page."""
    BROKEN = 5
    """Was merged and is written: a private copy, until it is its own again. It keeps its frame."""

    @property
    def word(self) -> str:
        """Its name for people."""
        return self.name.lower()
