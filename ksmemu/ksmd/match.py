"""Step 3: find pages of identical content. A pure function; a match is a claim, not a fact.

checksum.py -> match.py -> merge.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.place import Places
from ksmemu.ksmd.pool import NO_GAPS, Frames, Gaps
from ksmemu.ksmd.ranges import is_first, sorting, sorting_small, union
from ksmemu.ksmd.stable import Stable
from ksmemu.ksmd.table import Fingerprints
from ksmemu.ksmd.unstable import Unstable

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Claims:
    """What seems to be equal.

    Attributes:
        known, frames: pages equal to frames that there are.
        members, number: pages equal to each other, ascending by number; those of one number share one new
            frame. Numbers ascend with the leaders, so that neighbouring leaders get neighbouring frames.
        leaders, fingerprints: for each number, the page whose bytes make the frame, and what they hash to.
        waiting, waiting_fingerprints: pages equal to nothing so far.
    """

    known: Places
    frames: Frames
    members: Places
    number: Index
    leaders: Places
    fingerprints: Fingerprints
    waiting: Places
    waiting_fingerprints: Fingerprints

    def portions(self, nr_members: int) -> Iterator[Claims]:
        """Yield the pages that are equal to each other, and nothing else, in portions of about so many."""
        at = 0
        while at < len(self.members):
            last = min(at + nr_members, len(self.members)) - 1
            end = int(np.searchsorted(self.number, self.number[last], side="right"))
            low, high = int(self.number[at]), int(self.number[end - 1]) + 1
            yield replace(
                _NO_CLAIMS,
                members=self.members[at:end],
                number=self.number[at:end] - low,
                leaders=self.leaders[low:high],
                fingerprints=self.fingerprints[low:high],
            )
            at = end


_NO_PLACES, _NO_NUMBERS = np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64)
_NO_CLAIMS = Claims(
    known=_NO_PLACES,
    frames=_NO_NUMBERS,
    members=_NO_PLACES,
    number=_NO_NUMBERS,
    leaders=_NO_PLACES,
    fingerprints=_NO_PLACES,
    waiting=_NO_PLACES,
    waiting_fingerprints=_NO_PLACES,
)


class Candidates(NamedTuple):
    """Who is looking for a partner.

    Attributes:
        where, fingerprints: pages, each once.
        gaps: contents whose waiting pages are matched also without a candidate. A place in a frame that
            such a gap left is only for pages that come after it in the scan.
    """

    where: Places
    fingerprints: Fingerprints
    gaps: Gaps = NO_GAPS


def match(
    candidates: Candidates, stable: Stable, unstable: Unstable, limit: int, *, alone_too: bool = False
) -> Claims:
    """Match candidates, and pages that wait, with merged pages and with each other.

    Whoever comes first in the scan is served first, as in the kernel.

    Args:
        candidates: pages that are quiet, and have no entry in a table.
        stable, unstable: the tables.
        limit: max_page_sharing.
        alone_too: who finds no partner gets a frame of its own, and nobody waits.
    """
    where, fingerprints, gaps = candidates
    order = sorting(fingerprints)
    where, fingerprints = where[order], fingerprints[order]
    wanted = fingerprints[is_first(fingerprints)]
    if len(gaps[0]):
        wanted = union(wanted, np.sort(gaps[0]))
    where, fingerprints, is_new = _with_partners(where, fingerprints, wanted, unstable)
    group = np.cumsum(is_first(fingerprints)) - 1
    placed, frames = _into_stable(where, fingerprints, group, stable, limit, gaps)
    if placed.any():
        left = ~placed
        known, where, fingerprints, is_new = where[placed], where[left], fingerprints[left], is_new[left]
    else:
        known = where[:0]
    alone, number = _with_each_other(fingerprints, limit, least=1 if alone_too else 2)
    waiting = alone & is_new
    members, led = where[~alone], fingerprints[~alone]
    first, number = _by_leader(members, number)
    by_number = sorting_small(number)
    return Claims(
        known=known,
        frames=frames,
        members=members[by_number],
        number=number[by_number],
        leaders=members[first],
        fingerprints=led[first],
        waiting=where[waiting],
        waiting_fingerprints=fingerprints[waiting],
    )


def _with_partners(
    where: Places, fingerprints: Fingerprints, wanted: Fingerprints, unstable: Unstable
) -> tuple[Places, Fingerprints, npt.NDArray[np.bool_]]:
    """Add the pages that wait with a wanted fingerprint; all sorted by fingerprint, then by place.

    Returns:
        (where, fingerprints, is_new): is_new tells candidates, which are sorted so already, from partners.
    """
    index, partners = unstable.waiting(wanted)
    is_new = np.ones(len(where), dtype=np.bool_)
    if not len(partners):
        return where, fingerprints, is_new
    # Partners mostly come first in the scan: then both halves are only to be merged.
    all_prints = np.concatenate([wanted[index], fingerprints])
    order = np.argsort(all_prints, kind="stable")
    all_prints = all_prints[order]
    everyone = np.concatenate([partners, where])[order]
    is_new = (order >= len(partners)).astype(np.bool_)
    misplaced = (all_prints[1:] == all_prints[:-1]) & (everyone[1:] < everyone[:-1])
    if misplaced.any():
        order = np.lexsort((everyone, all_prints))
        everyone, is_new = everyone[order], is_new[order]
    return everyone, all_prints, is_new


def _ranks(group: Index) -> tuple[Index, Index]:
    """Return of sorted groups, which are numbered: the rank of each entry in its group; group sizes."""
    sizes = np.bincount(group)
    first = np.cumsum(sizes) - sizes
    return np.arange(len(group)) - first[group], sizes


def _into_stable(  # noqa: PLR0913, PLR0917 (the columns of one table)
    where: Places, fingerprints: Fingerprints, group: Index, stable: Stable, limit: int, gaps: Gaps
) -> tuple[npt.NDArray[np.bool_], Frames]:
    """Deal pages, sorted by fingerprint and place, out to the free places of the dups of their content."""
    placed = np.zeros(len(where), dtype=np.bool_)
    unique = fingerprints[is_first(fingerprints)]
    index, frames, sharers = stable.dups(unique)
    has_room = sharers < limit
    index, frames, room = index[has_room], frames[has_room], limit - sharers[has_room]
    if not len(index):
        return placed, frames
    total = np.bincount(index, weights=room, minlength=len(unique)).astype(np.int64)
    before = np.cumsum(total) - total
    if len(gaps[0]):
        takers = np.flatnonzero(_find_room(where, fingerprints, total[group], gaps))
    else:
        takers = np.flatnonzero(_ranks(group)[0] < total[group])
    which = group[takers]
    rank = np.arange(len(which)) - np.searchsorted(which, which)
    is_left = rank < total[which]  # a gap may have been filled since
    at = np.searchsorted(np.cumsum(room), (before[which] + rank)[is_left], side="right")
    placed[takers[is_left]] = True
    return placed, frames[at]


def _find_room(where: Places, fingerprints: Fingerprints, room: Index, gaps: Gaps) -> npt.NDArray[np.bool_]:
    """Return of pages, sorted by fingerprint and place, which find room when each comes in its turn.

    A walk through the scan of each content: a gap is a step up, a page a step down. A page that would take
    the walk lower than ever before, and below the ground, finds none.

    Args:
        room: for each page, the free places of its content, those of gaps included.
    """
    if not len(where):
        return np.zeros(0, dtype=np.bool_)
    gap_prints, gap_where = gaps
    is_page = np.repeat([False, True], [len(gap_where), len(where)])
    prints = np.concatenate([gap_prints, fingerprints])
    order = np.lexsort((is_page, np.concatenate([gap_where, where]), prints))
    is_page, prints = is_page[order], prints[order]
    group = np.cumsum(is_first(prints)) - 1
    sizes = np.bincount(group)
    first = np.cumsum(sizes) - sizes

    walk = np.cumsum(np.where(is_page, -1, 1))
    walk -= np.concatenate([[0], walk])[first][group]
    of_pages = np.zeros(len(sizes), dtype=np.int64)
    of_pages[group[is_page]] = room
    nr_gaps = np.bincount(group[~is_page], minlength=len(sizes))
    walk += np.maximum(of_pages - nr_gaps, 0)[group]
    # One running minimum for all: each content starts below everything of the one before.
    floor = -2 * len(walk) * group
    lowest = np.minimum.accumulate(np.minimum(walk, 0) + floor) - floor
    lowest_before = np.concatenate([[0], lowest[:-1]])
    lowest_before[first] = 0
    finds: npt.NDArray[np.bool_] = (walk >= lowest_before)[is_page]
    return finds


def _with_each_other(
    fingerprints: Fingerprints, limit: int, least: int
) -> tuple[npt.NDArray[np.bool_], Index]:
    """Group equal pages, sorted, into new frames of `least` to `limit` pages each.

    In the kernel a page needs a partner, least is 2: the last one of n pages stays alone if n % limit == 1.

    Returns:
        (alone, number): which stay alone, and of each other page the number of its frame.
    """
    group = np.cumsum(is_first(fingerprints)) - 1
    rank, sizes = _ranks(group)
    full = sizes // limit
    rest = sizes - full * limit
    alone = (rest[group] < least) & (rank >= (full * limit)[group])
    nr_dups = full + (rest >= least)
    number = (np.cumsum(nr_dups) - nr_dups)[group] + rank // limit
    return alone, number[~alone]


def _by_leader(members: Places, number: Index) -> tuple[Index, Index]:
    """Return the index of the first member of each number, and the numbers, in the order of these leaders."""
    is_leader = is_first(number)
    first = np.flatnonzero(is_leader)
    by_leader = np.argsort(members[first])
    renumber = np.empty_like(by_leader)
    renumber[by_leader] = np.arange(len(by_leader))
    return first[by_leader], renumber[np.cumsum(is_leader) - 1]
