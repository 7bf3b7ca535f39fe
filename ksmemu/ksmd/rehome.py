"""Step 6: order the way back: pages that were written, or that are to be unmerged.

A page keeps its reference until the outcome says that it is home: until then its mapping names the frame,
and a copy that is discarded would show it (I2).
"""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from ksmemu import room, wire
from ksmemu.ksmd import runs
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import places
from ksmemu.ksmd.ranges import Pages
from ksmemu.ksmd.rmap import NO_FRAME, State
from ksmemu.ksmd.worker import Order
from ksmemu.units import PAGE_SIZE


def order(domain: Domain, slot: MmSlot, pages: Pages) -> None:
    """Order merged pages (ascending) back to their own object."""
    if not len(pages):
        return
    slot.rmap.move(pages, State.REHOMING)
    laid = runs.lay_out(pages, np.full(len(pages), wire.FRAME_ZERO, dtype=np.uint64))
    frames = slot.rmap.tag[pages].astype(np.int64)
    domain.send(slot, wire.OrderKind.REHOME, laid, pages, frames)


def renew(domain: Domain, slot: MmSlot, pages: Pages) -> None:
    """Order BROKEN pages (ascending) to show their frames again, if they are equal to them; else home.

    So a page that was written with what it held is merged again at once, as in the kernel.
    """
    slot.rmap.move(pages, State.REHOMING)
    frames = slot.rmap.tag[pages].astype(np.int64)
    laid = runs.lay_out(pages, domain.on_the_wire(pages, frames))
    domain.send(slot, wire.OrderKind.RENEW, laid, pages, frames)


def renewed(domain: Domain, done: Order, errors: npt.NDArray[np.int32]) -> None:
    """Enter the outcome of renew(), and order home what differed."""
    differs = done.live & (errors == errno.EAGAIN)
    stays = done.live & (errors != errno.EAGAIN)  # what failed is merged still, and found by the next scan
    is_zero = done.frames == NO_FRAME
    done.slot.rmap.move(done.pages[stays & ~is_zero], State.MERGED)
    done.slot.rmap.move(done.pages[stays & is_zero], State.ZERO)
    domain.stats.pages_renewed += int((done.live & (errors == 0)).sum())
    order(domain, done.slot, done.pages[differs])


def outcome(domain: Domain, done: Order, errors: npt.NDArray[np.int32]) -> None:
    """Enter the outcome of a rehome order: errors holds 0 or an errno for each of its pages."""
    rmap = done.slot.rmap
    home = done.live & (errors == 0)
    if domain.events.is_on:
        domain.events.remove(done.slot, done.pages[home], done.frames[home])
    rmap.tag[done.pages[home]] = domain.pool.checksums(done.frames[home])
    domain.pool.release(done.frames[home], places(done.slot.id, done.pages[home]))
    rmap.move(done.pages[home], State.WRITTEN)
    # What failed is merged still, and found again by the next scan.
    failed = done.live & (errors != 0)
    is_zero = done.frames == NO_FRAME
    rmap.move(done.pages[failed & ~is_zero], State.MERGED)
    rmap.move(done.pages[failed & is_zero], State.ZERO)
    domain.stats.pages_rehomed += int(home.sum())


def order_all(domain: Domain) -> None:
    """Order everything back (run=2).

    Raises:
        OSError: ENOMEM: memory, the cgroup or the shared-memory file system has no room for it; nothing
            was ordered.
    """
    needed = domain.count(State.MERGED, State.ZERO, State.REHOMING) * PAGE_SIZE
    for slot in domain.slots.values():
        if needed > room.object_bytes(slot.own):
            raise OSError(errno.ENOMEM, f"no room for the {needed} bytes that unmerging needs")
    for slot in domain.slots.values():
        pages = slot.rmap.tracked(0, slot.rmap.nr_pages)
        states = slot.rmap.state[pages]
        order(domain, slot, pages[(states == State.MERGED) | (states == State.ZERO)])
