"""What a fork means for the books: a space shows an ancestor, which was its own object until then."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd import handed, holders, takeover
from ksmemu.ksmd.ancestor import Ancestor
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.ranges import Pages
from ksmemu.ksmd.rmap import SHOWS_FRAME, State
from ksmemu.units import PAGE_SIZE
from ksmemu.wire import WireError

_MAX_NUMBER = 255


def check_ancestor(domain: Domain, slot: MmSlot, file: int, number: int, holder: int) -> None:
    """Raise WireError unless a descriptor could be of an own object, can write, and is so called."""
    handed.check_object(domain, file, slot.nr_pages * PAGE_SIZE)
    if (
        fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR
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
    if slot.unheard:  # what a space is yet to be heard about is kept: else it could make us keep any number
        raise WireError("a fork before all is said of the one before")
    number = int(spans[0]["value"])
    check_ancestor(domain, slot, fds[1], number, holder)
    handed.check_object(domain, fds[0], slot.nr_pages * PAGE_SIZE)
    slot.await_all_of(add_ancestor(domain, slot, fds[1], number), holder)
    os.close(slot.own)
    slot.own = fds[0]


def inherited(domain: Domain, slot: MmSlot, spans: npt.NDArray[np.void]) -> None:
    """Pages show an ancestor, or again what lies in the own object; what is advised of them is tracked.

    Raises:
        WireError: there is no such page or ancestor, or it shows a frame; nothing was entered.
    """
    pages, _ = takeover.spelled_out(slot, spans)
    numbers = np.repeat(spans["value"], spans["nr_pages"].astype(np.int64))
    named = np.unique(numbers).tolist()
    if not {*named} <= {0, *slot.ancestors}:
        raise WireError(f"pages that show ancestors {named}")
    # Before an ancestor takes the place of a frame there is an outcome, or the reference would be lost.
    others = pages[(numbers > 0) & ~slot.is_inherited(pages)]
    if np.isin(slot.rmap.state[others], SHOWS_FRAME).any():
        raise WireError("pages that show an ancestor and a frame")
    for number in named:
        domain.inherit(slot, pages[numbers == number], number)
    # A page that is mapped anew does not tell that it was written before: what it held is read once more.
    states = slot.rmap.state[pages]
    slot.rmap.move(pages[(states >= State.NEW) & (states <= State.UNSTABLE)], State.WRITTEN)
    _track(slot, pages[numbers > 0])


def _track(slot: MmSlot, pages: Pages) -> None:
    """Track those of some pages (ascending) that are advised, and not tracked yet."""
    pages = pages[slot.rmap.state[pages] == State.ABSENT]
    for part in slot.advised:
        low, high = np.searchsorted(pages, [part.start, part.end])
        if low < high:
            slot.rmap.track(pages[low:high], State.NEW)
