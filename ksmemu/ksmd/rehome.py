"""Step 6: order the way back: pages that were written, or that are to be unmerged.

What was written with what it held is renewed: it shows its frame again, and does not go home. A page keeps
its reference until the outcome says that it is home: until then its mapping names the frame, and a copy that
is discarded would show it (I2).
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ksmemu import room, wire
from ksmemu.ksmd import runs
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import by_slot, pages_of, places
from ksmemu.ksmd.pool import Frames
from ksmemu.ksmd.ranges import Pages, counted, distinct
from ksmemu.ksmd.rmap import NO_FRAME, State
from ksmemu.ksmd.worker import Order


def order(domain: Domain, slot: MmSlot, pages: Pages) -> None:
    """Order pages (ascending) back to their own object that are merged, or were inherited and are written."""
    if not len(pages):
        return
    slot.rmap.tag[pages[slot.is_inherited(pages)]] = NO_FRAME
    slot.rmap.move(pages, State.REHOMING)
    laid = runs.lay_out(pages, np.full(len(pages), wire.FRAME_ZERO, dtype=np.uint64))
    frames = slot.rmap.tag[pages].astype(np.int64)
    domain.send(slot, wire.OrderKind.REHOME, laid, pages, frames)


def renew(domain: Domain, slot: MmSlot, pages: Pages) -> None:
    """Order BROKEN pages (ascending) to show their frames again, if they are equal to them; else home.

    So a page that was written with what it held is merged again at once, as in the kernel.
    """
    frames = slot.rmap.tag[pages].astype(np.int64)
    may_return = _may_return(domain, slot, frames)
    order(domain, slot, pages[~may_return])
    pages, frames = pages[may_return], frames[may_return]
    if not len(pages):
        return
    slot.rmap.move(pages, State.REHOMING)
    laid = runs.lay_out(pages, domain.on_the_wire(pages, frames))
    domain.send(slot, wire.OrderKind.RENEW, laid, pages, frames)


def _may_return(domain: Domain, slot: MmSlot, frames: Frames) -> npt.NDArray[np.bool_]:
    """Return of pages of a slot which would merge with these frames today, if they were equal to them.

    Not so the zero page: the kernel has forgotten who showed it. Nor a frame of zeros when they are to
    show the zero page, nor what mbind may have put on another node. Nor anything in secure mode: amid its
    neighbours it would be a mapping of its own (ksmemu_map_frames_evenly()), and no budget is asked here.
    """
    if domain.rules.is_secure or (not domain.rules.merge_across_nodes and len(slot.nodes)):
        return np.zeros(len(frames), dtype=np.bool_)
    may_return: npt.NDArray[np.bool_] = frames != NO_FRAME
    if domain.rules.use_zero_pages:
        may_return &= domain.is_in_pool(frames)
    return may_return


def renewed(domain: Domain, done: Order, errors: npt.NDArray[np.int32]) -> None:
    """Enter the outcome of renew(), and order home what differed."""
    differs = done.live & (errors == errno.EAGAIN)
    stays = done.live & (errors != errno.EAGAIN)  # what failed is merged still, and found by the next scan
    done.slot.rmap.move(done.pages[stays], State.MERGED)
    equal = done.live & (errors == 0)
    domain.renewed.append((places(done.slot.id, done.pages[equal]), done.frames[equal]))
    domain.stats.pages_renewed += int(equal.sum())
    order(domain, done.slot, done.pages[differs])


def order_unheld(domain: Domain) -> None:
    """Order home what was renewed in this full scan, where no other page held the frame meanwhile.

    The kernel freed such a frame when the last page of it was written: whether these pages share another is
    for them to find out. Only at the end of a full scan have all its pages been looked at.
    """
    where, frames = domain.take_renewed()
    which, counts = counted(frames)
    is_unheld = np.isin(frames, which[domain.pool.refs[which] == counts])
    where, frames = where[is_unheld], frames[is_unheld]
    for slot_id, index in by_slot(where):
        slot, pages = domain.slots.get(slot_id), pages_of(where[index])
        if slot is None:
            continue
        is_there = (slot.rmap.state[pages] == State.MERGED) & (slot.rmap.tag[pages] == frames[index])
        order(domain, slot, distinct(pages[is_there]))


def outcome(domain: Domain, done: Order, errors: npt.NDArray[np.int32]) -> None:
    """Enter the outcome of a rehome order: errors holds 0 or an errno for each of its pages."""
    rmap = done.slot.rmap
    home = done.live & (errors == 0)
    was_inherited = done.slot.is_inherited(done.pages)
    if domain.events.is_on:
        showed = home & ~was_inherited
        domain.events.remove(done.slot, done.pages[showed], done.frames[showed])
    rmap.tag[done.pages[home]] = domain.pool.checksums(done.frames[home])
    domain.pool.release(done.frames[home], places(done.slot.id, done.pages[home]))
    rmap.move(done.pages[home], State.WRITTEN)
    domain.inherit(done.slot, done.pages[home], 0)
    # What failed is as it was, and found again by the next scan.
    failed = done.live & (errors != 0)
    has_frame = done.frames != NO_FRAME
    rmap.move(done.pages[failed & has_frame], State.MERGED)
    rmap.move(done.pages[failed & ~(has_frame | was_inherited)], State.ZERO)
    rmap.move(done.pages[failed & was_inherited], State.WRITTEN)
    domain.stats.pages_rehomed += int(home.sum())


def _check_cgroups(domains: Sequence[Domain]) -> None:
    """Raise ENOMEM where a memory limit of workers is too low: who brings pages home is charged for them."""
    needed, left = Counter[Path](), dict[Path, int]()
    for domain in domains:
        for worker in domain.workers:
            for group, nr_bytes in room.cgroups(worker.pid).items():
                needed[group] += domain.unmerge_bytes(worker)
                left[group] = nr_bytes
    for group, nr_bytes in needed.items():
        if nr_bytes > left[group]:
            raise OSError(errno.ENOMEM, f"no room in {group} for the {nr_bytes} bytes that unmerging needs")


def order_all(domains: Sequence[Domain]) -> None:
    """Order everything of all domains back (run=2).

    Raises:
        OSError: ENOMEM: memory, a worker's cgroup or the shared-memory file system has no room for it;
            nothing was ordered.
    """
    needed = sum(domain.unmerge_bytes() for domain in domains)
    slots = [(domain, slot) for domain in domains for slot in domain.slots.values()]
    if any(needed > room.object_bytes(slot.own) for _, slot in slots):
        raise OSError(errno.ENOMEM, f"no room for the {needed} bytes that unmerging needs")
    _check_cgroups(domains)
    for domain, slot in slots:
        pages = slot.rmap.tracked(0, slot.rmap.nr_pages)
        states = slot.rmap.state[pages]
        order(domain, slot, pages[(states == State.MERGED) | (states == State.ZERO)])
