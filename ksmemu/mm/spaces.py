"""All address spaces of this process."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ksmemu.mm.address_space import AddressSpace

_spaces: dict[int, weakref.ref[AddressSpace]] = {}
"""By identity. A dictionary, because copying its values is one step for other threads."""


def add(space: AddressSpace) -> None:
    """A space is open."""
    _spaces[id(space)] = weakref.ref(space)


def discard(space: AddressSpace) -> None:
    """A space is closed."""
    _spaces.pop(id(space), None)


def every() -> list[AddressSpace]:
    """Return the open spaces. Runs in: any thread."""
    return [space for ref in list(_spaces.values()) if (space := ref()) is not None]
