"""Step 3: find pages of identical content. A pure function; a match is a claim, not a fact.

checksum.py -> match.py -> merge.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.place import Places
from ksmemu.ksmd.pool import NO_GAPS, Frames, Gaps
from ksmemu.ksmd.stable import Stable
from ksmemu.ksmd.table import Fingerprints
from ksmemu.ksmd.unstable import Unstable

Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Claims:
    """What seems to be equal.

    Attributes:
        known, frames: pages equal to frames that there are.
        members, number: pages equal to each other; those of one number share one new frame. Numbers
            ascend with the leaders, so that neighbouring leaders get neighbouring frames.
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


def match(candidates: Candidates, stable: Stable, unstable: Unstable, limit: int) -> Claims:
    """Match candidates, and pages that wait, with merged pages and with each other.

    Whoever comes first in the scan is served first, as in the kernel.

    Args:
        candidates: pages that are quiet, and have no entry in a table.
        stable, unstable: the tables.
        limit: max_page_sharing.
    """
    where, fingerprints, gaps = candidates
    distinct = np.union1d(fingerprints, gaps[0])
    index, partners = unstable.waiting(distinct)
    is_new = np.repeat([True, False], [len(where), len(partners)])
    where = np.concatenate([where, partners])
    fingerprints = np.concatenate([fingerprints, distinct[index]])
    order = np.lexsort((where, fingerprints))
    where, fingerprints, is_new = where[order], fingerprints[order], is_new[order]
    placed, frames = _into_stable(where, fingerprints, stable, limit, gaps)
    left = ~placed
    alone, number = _with_each_other(fingerprints[left], limit)
    waiting = np.flatnonzero(left)[alone]
    waiting = waiting[is_new[waiting]]
    members, led = where[left][~alone], fingerprints[left][~alone]
    first, number = _by_leader(members, number)
    return Claims(
        known=where[placed],
        frames=frames,
        members=members,
        number=number,
        leaders=members[first],
        fingerprints=led[first],
        waiting=where[waiting],
        waiting_fingerprints=fingerprints[waiting],
    )


def _groups(fingerprints: Fingerprints) -> tuple[Fingerprints, Index, Index, Index]:
    """Return of sorted fingerprints: the distinct ones; of each entry its group and its rank; group sizes."""
    unique, first, group, sizes = np.unique(
        fingerprints, return_index=True, return_inverse=True, return_counts=True
    )
    return unique, group, np.arange(len(fingerprints)) - first[group], sizes


def _into_stable(
    where: Places, fingerprints: Fingerprints, stable: Stable, limit: int, gaps: Gaps
) -> tuple[npt.NDArray[np.bool_], Frames]:
    """Deal pages, sorted by fingerprint and place, out to the free places of the dups of their content."""
    unique, group, _, _ = _groups(fingerprints)
    index, frames, sharers = stable.dups(unique)
    has_room = sharers < limit
    index, frames, room = index[has_room], frames[has_room], limit - sharers[has_room]
    total = np.zeros(len(unique), dtype=np.int64)
    np.add.at(total, index, room)
    before = np.cumsum(total) - total
    takers = np.flatnonzero(_find_room(where, fingerprints, total[group], gaps))
    which = group[takers]
    rank = np.arange(len(which)) - np.searchsorted(which, which)
    is_left = rank < total[which]  # a gap may have been filled since
    at = np.searchsorted(np.cumsum(room), (before[which] + rank)[is_left], side="right")
    placed = np.zeros(len(where), dtype=np.bool_)
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
    _, group, _, sizes = _groups(prints)
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


def _with_each_other(fingerprints: Fingerprints, limit: int) -> tuple[npt.NDArray[np.bool_], Index]:
    """Group equal pages, sorted, into new frames of at most `limit` pages each.

    As in the kernel a page needs a partner: the last one of n pages stays alone if n % limit == 1.

    Returns:
        (alone, number): which stay alone, and of each other page the number of its frame.
    """
    _, group, rank, sizes = _groups(fingerprints)
    full = sizes // limit
    rest = sizes - full * limit
    alone = (rest[group] == 1) & (rank == sizes[group] - 1)
    nr_dups = full + (rest > 1)
    number = (np.cumsum(nr_dups) - nr_dups)[group] + rank // limit
    return alone, number[~alone]


def _by_leader(members: Places, number: Index) -> tuple[Index, Index]:
    """Return the index of the first member of each number, and the numbers, in the order of these leaders."""
    _, first, number = np.unique(number, return_index=True, return_inverse=True)
    by_leader = np.argsort(members[first])
    renumber = np.empty_like(by_leader)
    renumber[by_leader] = np.arange(len(by_leader))
    return first[by_leader], renumber[number]
