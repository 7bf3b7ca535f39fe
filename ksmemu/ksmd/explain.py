"""Why pages are not merged, page by page from the books: the reason of every page of a space.

question.py -> explain.py. A pure function of the books, and of what else holds memory: nothing is kept up to
date for it while nobody asks, and an answer changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ksmemu.control.reasons import Reason
from ksmemu.intervals import IntervalMap
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import Places, by_slot, pages_of, places
from ksmemu.ksmd.pool import Frames
from ksmemu.ksmd.ranges import Pages, union
from ksmemu.ksmd.rmap import NO_FRAME, Obstacle, State
from ksmemu.ksmd.table import Fingerprints

Reasons = npt.NDArray[np.uint8]
"""A Reason for each entry."""

ROW = np.dtype([("start", "i8"), ("end", "i8"), ("reason", "i8"), ("pages", "i8"), ("sharers", "i8")])
"""As control.reasons.Row, but in pages of the space."""

_OF_STATE = {
    State.ABSENT: Reason.NEW,  # the next scan finds it
    State.NEW: Reason.NEW,
    State.WRITTEN: Reason.VOLATILE,
    State.UNSEEN: Reason.VOLATILE,
    State.SETTLED: Reason.LOOKED_AT,
    State.SKIPPED: Reason.UNIQUE,
    State.UNSTABLE: Reason.UNIQUE,
    State.ORDERED: Reason.BEING_MERGED,
    State.MERGED: Reason.MERGED,
    State.ZERO: Reason.ZERO_PAGE,
    State.REHOMING: Reason.REHOMING,
    State.LEFT: Reason.LEFT,
}
_OF_OBSTACLE = {Obstacle.MAPPING_BUDGET: Reason.MAPPING_BUDGET, Obstacle.NO_ROOM: Reason.NO_ROOM}


def _column(reasons: dict[State, Reason] | dict[Obstacle, Reason]) -> Reasons:
    """Return an array to look reasons up in by number."""
    column = np.zeros(max(reasons) + 1, dtype=np.uint8)
    for number, reason in reasons.items():
        column[number] = reason
    return column


_BY_STATE, _BY_OBSTACLE = _column(_OF_STATE), _column(_OF_OBSTACLE)


@dataclass(frozen=True, slots=True)
class Partners:
    """The waiting pages that have equal pages somewhere, ascending, and what keeps them apart."""

    where: Places
    reasons: Reasons

    def of(self, slot: MmSlot) -> tuple[Pages, Reasons]:
        """Return those of one space."""
        first = np.zeros(1, dtype=np.int64)
        low = np.searchsorted(self.where, places(slot.id, first))[0]
        high = np.searchsorted(self.where, places(slot.id + 1, first))[0]
        return pages_of(self.where[low:high]), self.reasons[low:high]


@dataclass(frozen=True, slots=True)
class _Known:
    """Pages of one space, ascending, with the reason of each and how many pages show its frame."""

    pages: Pages
    reasons: Reasons
    sharers: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Stretches:
    """What a space consists of where no page is known: where each stretch starts, and its reason."""

    starts: Pages
    reasons: Reasons

    def at(self, pages: Pages) -> Reasons:
        """Return the reason behind each page."""
        found: Reasons = self.reasons[np.searchsorted(self.starts, pages, side="right") - 1]
        return found


def partners(domain: Domain, others: Iterable[Domain]) -> Partners:
    """Look for equal pages of all that are unique: one look serves every space.

    Args:
        others: where an equal page is worth a word. Each has a seed of its own, so pages are read again.
    """
    entries, where, own = _unique(domain)
    where, first = np.unique(where, return_index=True)
    fingerprints, own = entries[first], own[first]
    reasons = np.full(len(where), Reason.UNIQUE, dtype=np.uint8)
    for other in others:
        reasons[_are_in(other, domain, where)] = Reason.OTHER_DOMAIN
    if not domain.rules.merge_across_nodes:
        reasons[_are_on_other_nodes(domain, fingerprints, where)] = Reason.OTHER_NODE
    index, frames, sharers = domain.stable.dups(fingerprints)
    is_other = frames != own[index]
    index, sharers = index[is_other], sharers[is_other]
    reasons[index] = Reason.SHARING_LIMIT
    reasons[index[sharers < domain.rules.max_page_sharing]] = Reason.LOOKED_AT
    has_some = reasons != Reason.UNIQUE
    return Partners(where[has_some], reasons[has_some])


def _are_in(other: Domain, domain: Domain, where: Places) -> npt.NDArray[np.bool_]:
    """Return of each waiting page of a domain whether another domain knows its content."""
    found = np.zeros(len(where), dtype=np.bool_)
    for slot_id, index in by_slot(where):
        try:
            prints = other.fingerprints(domain.slots[slot_id], pages_of(where[index]))
        except OSError:  # the worker has shrunk its object
            continue
        found[index[other.stable.dups(prints)[0]]] = True
        found[index[other.unstable.waiting(prints)[0]]] = True
    return found


def _unique(domain: Domain) -> tuple[Fingerprints, Places, Frames]:
    """Return content, place and frame of what waits (it has none), and of what is alone on a frame."""
    entries, where = domain.unstable.everyone()
    frames = np.full(len(where), NO_FRAME, dtype=np.int64)
    if not domain.rules.is_secure:
        return entries, where, frames
    alone = [(slot, domain.alone(slot)) for slot in domain.slots.values()]
    where = np.concatenate([where, *(places(slot.id, pages) for slot, pages in alone)])
    frames = np.concatenate([frames, *(slot.rmap.tag[pages].astype(np.int64) for slot, pages in alone)])
    return np.concatenate([entries, domain.pool.fingerprint[frames[len(entries) :]]]), where, frames


def _are_on_other_nodes(domain: Domain, fingerprints: Fingerprints, where: Places) -> npt.NDArray[np.bool_]:
    """Return of each waiting page whether its content is known on another node."""
    marks = np.empty(len(where), dtype=np.uint64)
    for slot_id, index in by_slot(where):
        marks[index] = domain.marks_of(domain.slots[slot_id], pages_of(where[index]))
    found = np.zeros(len(where), dtype=np.bool_)
    for mark in domain.marks():
        others = np.flatnonzero(marks != mark)
        there = fingerprints[others] ^ marks[others] ^ mark
        found[others[domain.stable.dups(there)[0]]] = True
        found[others[domain.unstable.waiting(there)[0]]] = True
    return found


def explain(
    domain: Domain, slot: MmSlot, apart: Partners, held: Pages, *, refuses: bool
) -> npt.NDArray[np.void]:
    """Return ROWs for a space: ascending, without gaps, each as long as its reason holds.

    Args:
        apart: of the domain as it is.
        held: the pages of the space that hold data outside the pool, ascending, whether in the books or not.
        refuses: whether the process lets nobody else make its memory mergeable.
    """
    behind = _stretches(slot, refuses=refuses)
    known = _known(domain, slot, apart, behind, held)
    return _rows(slot.nr_pages, known, behind, union(known.pages, held))


def _stretches(slot: MmSlot, *, refuses: bool) -> _Stretches:
    reasons = IntervalMap[Reason]()
    reasons.put(0, slot.nr_pages, Reason.REFUSED if refuses else Reason.NOT_ADVISED)
    for part in slot.refused:
        reasons.put(part.start, part.end, Reason.REFUSED)
    for part in slot.advised:
        reasons.put(part.start, part.end, Reason.NO_DATA)
    starts = np.array([part.start for part in reasons], dtype=np.int64)
    return _Stretches(starts, np.array([part.value for part in reasons], dtype=np.uint8))


def _known(domain: Domain, slot: MmSlot, apart: Partners, behind: _Stretches, held: Pages) -> _Known:
    """Return the pages in the books, and the mergeable ones that the next scan finds."""
    rmap = slot.rmap
    tracked = rmap.tracked(0, rmap.nr_pages)
    unseen = np.setdiff1d(held, tracked, assume_unique=True)
    pages = union(tracked, unseen[behind.at(unseen) == Reason.NO_DATA])
    states, obstacles = rmap.state[pages], rmap.obstacle[pages]
    reasons = _BY_STATE[states]
    if domain.rules.fills_only:
        waits = (states == State.UNSTABLE) | (states == State.SKIPPED)
        reasons[waits & ~np.isin(rmap.tag[pages], domain.fill_tags())] = Reason.NO_FILL
    is_kept = obstacles != Obstacle.NONE
    reasons[is_kept] = _BY_OBSTACLE[obstacles[is_kept]]
    sharers = np.zeros(len(pages), dtype=np.int64)
    merged = np.isin(states, [State.MERGED, State.LEFT])
    sharers[merged] = domain.pool.refs[rmap.tag[pages[merged]]]
    if domain.rules.is_secure:
        reasons[sharers == 1] = Reason.UNIQUE
        sharers[sharers == 1] = 0
    waiting, why = apart.of(slot)
    reasons[np.searchsorted(pages, waiting)] = why
    return _Known(pages, reasons, sharers)


def _rows(nr_pages: int, known: _Known, behind: _Stretches, data: Pages) -> npt.NDArray[np.void]:
    """Lay pages over the stretches behind them; `data` are the pages that hold some."""
    pages = known.pages
    differs = (np.diff(pages) != 1) | (np.diff(known.reasons) != 0)
    begins = np.flatnonzero(np.append(True, differs)[: len(pages)])
    ends = np.flatnonzero(np.append(differs, True)[: len(pages)])
    cuts = union(behind.starts, pages[begins], pages[ends] + 1)
    cuts = cuts[cuts < nr_pages]
    rows = np.zeros(len(cuts), dtype=ROW)
    rows["start"], rows["end"] = cuts, np.append(cuts[1:], nr_pages)
    rows["pages"] = np.searchsorted(data, rows["end"]) - np.searchsorted(data, rows["start"])
    rows["reason"] = behind.at(cuts)
    is_known = np.isin(cuts, pages)
    at = np.searchsorted(pages, cuts[is_known])
    rows["reason"][is_known] = known.reasons[at]
    if len(at):
        rows["sharers"][is_known] = np.maximum.reduceat(known.sharers, at)
    return rows
