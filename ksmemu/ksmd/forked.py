"""What a fork means for the books: a space shows an ancestor, which was its own object until then."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd import handed, holders
from ksmemu.ksmd.ancestor import Ancestor
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.rmap import State
from ksmemu.units import PAGE_SIZE
from ksmemu.wire import WireError

_MAX_NUMBER = 255


def check_ancestor(slot: MmSlot, file: int, number: int, holder: int) -> None:
    """Raise WireError unless a descriptor is of shared memory, of a space's size, can write, is so called."""
    try:
        fcntl.fcntl(file, fcntl.F_GET_SEALS)
    except OSError:
        raise WireError("an ancestor that is no shared memory") from None
    if (
        fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR
        or os.fstat(file).st_size < slot.nr_pages * PAGE_SIZE
        or not 0 < number <= _MAX_NUMBER
        or not 0 < holder < holders.MAX_HOLDER
        or holders.is_anothers(file, holder)
    ):
        raise WireError(f"an ancestor {number} of holder {holder} that is none")


def add_ancestor(domain: Domain, slot: MmSlot, file: int, number: int) -> Ancestor:
    """Enter an ancestor that was checked, and return it; the descriptor is the domain's, or closed."""
    ancestor = domain.ancestor(file, slot.nr_pages)
    slot.add_ancestor(number, ancestor)
    return ancestor


def divide(domain: Domain, slot: MmSlot, holder: int, spans: npt.NDArray[np.void], fds: list[int]) -> None:
    """The process of a space is about to fork: its own object is an ancestor now, and it has another one.

    Args:
        holder: names the process, for that ancestor. spans: one, with the number of the ancestor.
        fds: the new own object, and the ancestor; the space's, unless this raises.

    Raises:
        WireError: garbage; nothing was entered.
    """
    if len(fds) != 2 or len(spans) != 1:
        raise WireError("a fork without its objects")
    number = int(spans[0]["value"])
    check_ancestor(slot, fds[1], number, holder)
    if not handed.is_object(fds[0], slot.nr_pages * PAGE_SIZE):
        raise WireError("an own object that is none")
    add_ancestor(domain, slot, fds[1], number).known.add(holder)
    os.close(slot.own)
    slot.own = fds[0]


def inherited(domain: Domain, slot: MmSlot, spans: npt.NDArray[np.void]) -> None:
    """Pages show an ancestor, or again what lies in the own object; what is advised of them is tracked.

    Raises:
        WireError: there is no such page or ancestor; what came before is entered.
    """
    for span in spans:
        first, nr, number = int(span["page"]), int(span["nr_pages"]), int(span["value"])
        if not first < first + nr <= slot.nr_pages or (number and number not in slot.ancestors):
            raise WireError(f"pages [{first}, +{nr}) that show ancestor {number}")
        pages = np.arange(first, first + nr)
        domain.inherit(slot, pages, number)
        if number:
            _track(slot, first, first + nr)
        else:
            states = slot.rmap.state[pages]
            slot.rmap.move(pages[(states >= State.NEW) & (states <= State.UNSTABLE)], State.WRITTEN)


def _track(slot: MmSlot, start: int, end: int) -> None:
    """Track what is advised of [start, end), and not tracked yet."""
    for part in slot.advised.overlapping(start, end):
        pages = np.arange(part.start, part.end)
        slot.rmap.track(pages[slot.rmap.state[pages] == State.ABSENT], State.NEW)
