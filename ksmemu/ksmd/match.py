"""Step 3: find pages of identical content. A pure function; a match is a claim, not a fact.

checksum.py -> match.py -> merge.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.place import Places
from ksmemu.ksmd.pool import Frames
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


def match(
    where: Places, fingerprints: Fingerprints, stable: Stable, unstable: Unstable, limit: int
) -> Claims:
    """Match candidates with merged pages, with waiting pages and with each other.

    Args:
        where, fingerprints: the candidates in scan order, each page once.
        limit: max_page_sharing.
    """
    order = np.argsort(fingerprints, kind="stable")
    where, fingerprints = where[order], fingerprints[order]
    placed, frames = _into_stable(fingerprints, stable, limit)
    members, number, leaders, led, left = _with_each_other(
        where[~placed], fingerprints[~placed], unstable, limit
    )
    return Claims(
        known=where[placed],
        frames=frames,
        members=members,
        number=number,
        leaders=leaders,
        fingerprints=led,
        waiting=where[~placed][left],
        waiting_fingerprints=fingerprints[~placed][left],
    )


def _groups(fingerprints: Fingerprints) -> tuple[Fingerprints, Index, Index, Index]:
    """Return of sorted fingerprints: the distinct ones; of each entry its group and its rank; group sizes."""
    unique, first, group, sizes = np.unique(
        fingerprints, return_index=True, return_inverse=True, return_counts=True
    )
    return unique, group, np.arange(len(fingerprints)) - first[group], sizes


def _into_stable(
    fingerprints: Fingerprints, stable: Stable, limit: int
) -> tuple[npt.NDArray[np.bool_], Frames]:
    """Deal sorted candidates out to the free places of the dups of their content."""
    unique, group, rank, _ = _groups(fingerprints)
    index, frames, sharers = stable.dups(unique)
    has_room = sharers < limit
    index, frames, room = index[has_room], frames[has_room], limit - sharers[has_room]
    total = np.zeros(len(unique), dtype=np.int64)
    np.add.at(total, index, room)
    before = np.cumsum(total) - total
    placed = rank < total[group]
    at = np.searchsorted(np.cumsum(room), before[group[placed]] + rank[placed], side="right")
    return placed, frames[at]


def _with_each_other(
    where: Places, fingerprints: Fingerprints, unstable: Unstable, limit: int
) -> tuple[Places, Index, Places, Fingerprints, npt.NDArray[np.bool_]]:
    """Group equal candidates, the waiting pages first, into new frames of at most `limit` pages each.

    As in the kernel a page needs a partner: the last one of n pages stays alone if n % limit == 1.
    """
    distinct = np.unique(fingerprints)
    index, partners = unstable.waiting(distinct)
    everyone = np.concatenate([partners, where])
    prints = np.concatenate([distinct[index], fingerprints])
    order = np.argsort(prints, kind="stable")
    everyone, prints = everyone[order], prints[order]
    _, group, rank, sizes = _groups(prints)

    full = sizes // limit
    rest = sizes - full * limit
    alone = (rest[group] == 1) & (rank == sizes[group] - 1)
    nr_dups = full + (rest > 1)
    number = (np.cumsum(nr_dups) - nr_dups)[group] + rank // limit

    members, number, prints = everyone[~alone], number[~alone], prints[~alone]
    _, first, number = np.unique(number, return_index=True, return_inverse=True)
    by_leader = np.argsort(members[first])
    renumber = np.empty_like(by_leader)
    renumber[by_leader] = np.arange(len(by_leader))
    leaders, led = members[first][by_leader], prints[first][by_leader]

    left = np.zeros(len(where), dtype=np.bool_)
    left[order[alone] - len(partners)] = True
    return members, renumber[number], leaders, led, left
