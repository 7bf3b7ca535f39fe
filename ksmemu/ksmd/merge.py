"""Step 4b: order agents to make claims true; only outcomes change the books.

match.py -> runs.py -> merge.py -> agent -> outcome() -> pool.py.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ksmemu import wire
from ksmemu.ksmd import rehome, runs
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.match import Candidates, Claims, match
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import Places, by_slot, pages_of, places
from ksmemu.ksmd.pool import Frames
from ksmemu.ksmd.ranges import Pages, distinct
from ksmemu.ksmd.rmap import NO_FRAME, Obstacle, State
from ksmemu.ksmd.table import Fingerprints
from ksmemu.ksmd.worker import Order, Worker

_PORTION = 8192
"""Pages that are equal to each other get their frames and their orders together, as long as they are in the
cache: the agents are to compare what ksmd has just copied. And they begin while ksmd goes on."""

log = logging.getLogger(__name__)


def merge(domain: Domain, candidates: Candidates) -> None:
    """Match candidates and order what matched; pages that are no longer SETTLED are passed over."""
    where, fingerprints, gaps = candidates
    settled = _is_settled(domain, where)
    where, fingerprints = where[settled], fingerprints[settled]
    if domain.rules.use_zero_pages:
        zero = domain.is_zero(fingerprints)
        _order(domain, where[zero], np.full(int(zero.sum()), NO_FRAME, dtype=np.int64))
        where, fingerprints = where[~zero], fingerprints[~zero]
    if domain.rules.fills_only:
        fill = domain.is_fill(fingerprints)
        domain.move(where[~fill], State.UNSTABLE)  # in no table: nobody is to find them
        where, fingerprints = where[fill], fingerprints[fill]
    if domain.rules.is_secure:
        _share_all(domain, where, fingerprints)
        return
    left = Candidates(where, fingerprints, gaps)
    claims = match(left, domain.stable, domain.unstable, domain.rules.max_page_sharing)
    domain.unstable.add(claims.waiting_fingerprints, claims.waiting)
    _order(domain, claims.known, claims.frames)
    for portion in _choose(domain, claims).portions(_PORTION):
        _share(domain, portion)


def _choose(domain: Domain, claims: Claims) -> Claims:
    """Leave out the new contents that the policy does not want; their pages wait for more of the same."""
    chosen = domain.policy.chosen(np.bincount(claims.number, minlength=len(claims.leaders)))
    if chosen.all():
        return claims
    is_left = ~chosen[claims.number]
    left, fingerprints = claims.members[is_left], claims.fingerprints[claims.number[is_left]]
    are_not_waiting = _is_settled(domain, left)
    domain.unstable.add(fingerprints[are_not_waiting], left[are_not_waiting])
    return replace(
        claims,
        members=claims.members[~is_left],
        number=(np.cumsum(chosen) - 1)[claims.number[~is_left]],
        leaders=claims.leaders[chosen],
        fingerprints=claims.fingerprints[chosen],
    )


def _share_all(domain: Domain, where: Places, fingerprints: Fingerprints) -> None:
    """Give every page a frame, with others if it has equals: none is to see by what happens whether it has.

    So all are ordered together as they lie in memory, not those first whose frames there are. No gap keeps a
    page from a free place: that is for whoever waits, and nobody does.
    """
    all_ = Candidates(where, fingerprints)
    claims = match(all_, domain.stable, domain.unstable, domain.rules.max_page_sharing, alone_too=True)
    _share(domain, claims)


def _share(domain: Domain, claims: Claims) -> None:
    """Give pages that are equal to each other new frames; order them there, and the known ones to theirs."""
    frames, filled, has_room = _new_frames(domain, claims)
    members, number = claims.members, claims.number
    if not filled.all():
        is_good = filled[number]
        domain.move(members[~is_good], State.WRITTEN)
        domain.give_up(members[~has_room[number]], Obstacle.NO_ROOM)
        members, number = members[is_good], number[is_good]
    domain.pool.fingerprint[frames[filled]] = claims.fingerprints[filled]
    everyone = np.concatenate([claims.known, members])
    _order(domain, everyone, np.concatenate([claims.frames, frames[number]]))
    is_used = domain.pool.refs[frames] > 0
    domain.stable.add(claims.fingerprints[filled & is_used], frames[filled & is_used])
    domain.pool.discard(distinct(frames[~is_used]))


def _is_settled(domain: Domain, where: Places) -> npt.NDArray[np.bool_]:
    settled = np.zeros(len(where), dtype=np.bool_)
    for slot_id, index in by_slot(where):
        slot = domain.slots.get(slot_id)
        if slot is not None:
            settled[index] = slot.rmap.state[pages_of(where[index])] == State.SETTLED
    return settled


def _new_frames(
    domain: Domain, claims: Claims
) -> tuple[Frames, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Fill a frame for each number from its leader.

    Returns:
        (frames, filled, has_room): which frames hold what was claimed, and which there was room for.
    """
    frames = domain.pool.allocate(len(claims.leaders))
    filled = np.arange(len(claims.leaders)) < len(frames)
    if len(frames) < len(claims.leaders):
        log.warning("the pool has no frame left: %d contents stay unmerged", (~filled).sum())
        frames = np.pad(frames, (0, len(filled) - len(frames)))
    has_room = filled.copy()
    is_zero = domain.is_zero(claims.fingerprints)
    to_fill = np.flatnonzero(filled & ~is_zero)
    for slot_id, index in by_slot(claims.leaders[to_fill]):
        which = to_fill[index]
        slot, pages = domain.slots[slot_id], pages_of(claims.leaders[which])
        found = np.empty(len(pages), dtype=np.uint64)
        try:
            for file, at in slot.sources(pages):
                found[at] = domain.pool.fill(file, pages[at], frames[which[at]], domain.checksum.seed)
        except OSError as error:
            log.warning("%d frames could not be filled: %s", len(which), error.strerror)
            filled[which] = False
            has_room[which] = error.errno == errno.ENODATA
        else:
            # The leader was written meanwhile: whatever the frame holds now, nobody claimed it.
            filled[which] = found ^ domain.marks_of(slot, pages) == claims.fingerprints[which]
    return frames, filled, has_room


def _order(domain: Domain, where: Places, frames: Frames) -> None:
    """Order pages to be mapped to frames; NO_FRAME is the zero page alone."""
    order = np.argsort(where)
    where, frames = where[order], frames[order]
    for slot_id, index in by_slot(where):
        _order_slot(domain, domain.slots[slot_id], pages_of(where[index]), frames[index])


def _order_slot(domain: Domain, slot: MmSlot, pages: Pages, frames: Frames) -> None:
    worker = domain.owner[slot.id]
    laid = runs.lay_out(pages, _on_the_wire(domain, pages, frames))
    chosen = _within_budget(domain, worker, laid)
    if not chosen.all():
        kept = np.repeat(chosen, laid["nr_pages"])
        domain.stats.over_budget_so_far += int((~kept).sum())
        slot.rmap.give_up(pages[~kept], Obstacle.MAPPING_BUDGET)
        pages, frames, laid = pages[kept], frames[kept], laid[chosen]
    if not len(laid):
        return
    worker.mappings += 2 * len(laid)
    slot.rmap.move(pages, State.ORDERED)
    slot.rmap.tag[pages] = frames
    domain.pool.acquire(frames[frames != NO_FRAME])
    runs.join(laid, slot.rmap)
    domain.send(slot, wire.OrderKind.MERGE, laid, pages, frames)


def _on_the_wire(domain: Domain, pages: Pages, frames: Frames) -> npt.NDArray[np.uint64]:
    """Return what pages (ascending) are to show that the books give these frames.

    Zeros show the kernel's zero page, equal neighbours the rungs of a ladder.
    """
    in_pool = domain.is_in_pool(frames)
    domain.pool.ladders.raise_for(pages[in_pool], frames[in_pool])
    return domain.on_the_wire(pages, frames)


def _within_budget(domain: Domain, worker: Worker, laid: runs.Runs) -> npt.NDArray[np.bool_]:
    """Choose the runs that the worker's mapping budget allows: a run may cost two mappings.

    Short runs, where partners are, do not come last in secure mode.
    """
    limit = runs.mapping_limit()
    if worker.is_count_old() or worker.mappings + 2 * len(laid) > limit:
        worker.count_mappings()
    allowed = (limit - worker.mappings) // 2
    return np.arange(len(laid)) < allowed if domain.rules.is_secure else runs.longest(laid, allowed)


def outcome(domain: Domain, order: Order, errors: npt.NDArray[np.int32]) -> None:
    """Enter the outcome of a merge order: errors holds 0 or an errno for each of its pages."""
    rmap, pool = order.slot.rmap, domain.pool
    has_frame = order.frames != NO_FRAME
    pool.settle(order.frames[has_frame])
    done = order.live & (errors == 0)
    if domain.events.is_on:
        live = order.live
        domain.events.merge(order.slot, order.pages[live], order.frames[live], errors[live])
    rmap.move(order.pages[done & has_frame], State.MERGED)
    rmap.move(order.pages[done & ~has_frame], State.ZERO)
    domain.inherit(order.slot, order.pages[done], 0)
    domain.stats.merges += int(done.sum())
    if not done.all():
        _leave(domain, order, errors)
    _undo_lonely(domain, distinct(order.frames[has_frame]))


def _leave(domain: Domain, order: Order, errors: npt.NDArray[np.int32]) -> None:
    """Enter what a merge order could not do."""
    rmap, pool = order.slot.rmap, domain.pool
    refused = order.live & (errors != 0)
    rmap.tag[order.pages[refused]] = pool.checksums(order.frames[refused])
    pool.release(order.frames[refused], places(order.slot.id, order.pages[refused]))
    rmap.move(order.pages[refused], State.WRITTEN)
    rmap.give_up(order.pages[refused & (errors == errno.ENOMEM)], Obstacle.MAPPING_BUDGET)
    domain.stats.verify_refusals += int((errors == errno.EAGAIN).sum())
    domain.stats.over_budget_so_far += int((errors == errno.ENOMEM).sum())


def abandon(domain: Domain, order: Order) -> None:
    """The worker of an order is dead, and its pages are forgotten: only the order itself is left to end."""
    if order.kind is wire.OrderKind.MERGE:
        frames = order.frames[order.frames != NO_FRAME]
        domain.pool.settle(frames)
        _undo_lonely(domain, distinct(frames))


def _undo_lonely(domain: Domain, frames: Frames) -> None:
    """Take new frames back that only one page came to share: nothing is gained by them."""
    pool = domain.pool
    ended = frames[pool.is_fresh[frames] & (pool.pending[frames] == 0)]
    if not len(ended):
        return
    lonely = ended[pool.refs[ended] == 1]
    pool.is_fresh[ended] = False
    if not len(lonely) or domain.rules.is_secure:
        return
    for slot in domain.slots.values():
        pages = slot.rmap.tracked(0, slot.rmap.nr_pages)
        merged = pages[slot.rmap.state[pages] == State.MERGED]
        rehome.order(domain, slot, merged[np.isin(slot.rmap.tag[merged], lonely)])
