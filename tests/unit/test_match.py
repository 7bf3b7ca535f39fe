"""Matching against the kernel's formula; the books around it are real, the fingerprints made up."""

import contextlib
import os
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ksmemu.ksmd.match import Candidates, _find_room, match
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import pages_of, places
from ksmemu.ksmd.pool import Pool
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.runs import lay_out
from ksmemu.ksmd.stable import Stable
from ksmemu.ksmd.unstable import Unstable
from tests.support.examples import few, quick
from tests.support.expected import shared_and_sharing

NR_PAGES = 4001
SLOT = 3


class Books:
    """One space whose pages arrive with a fingerprint; every claim comes true."""

    def __init__(self, limit, alone_too):
        self.limit, self.alone_too = limit, alone_too
        self.slot = MmSlot(SLOT, 0, NR_PAGES, os.memfd_create("own"), -1)
        self.pool = Pool()
        self.stable = Stable(self.pool)
        self.unstable = Unstable({SLOT: self.slot})
        self.prints = {}
        self.frame = {}

    def close(self):
        self.slot.close()
        self.pool.close()

    def arrive(self, prints):
        """Let the next pages settle, one for each fingerprint; return the claims."""
        first = len(self.prints)
        pages = np.arange(first, first + len(prints))
        self.prints |= dict(zip(pages.tolist(), prints, strict=True))
        self.slot.rmap.track(pages, State.SETTLED)
        where, column = places(SLOT, pages), np.array(prints, dtype=np.uint64)
        waiting = {page for page in self.prints if self._is(page, State.UNSTABLE)}
        candidates = Candidates(where, column)
        claims = match(candidates, self.stable, self.unstable, self.limit, alone_too=self.alone_too)
        self._check(claims, set(pages.tolist()), waiting)
        self._obey(claims)
        return claims

    def _is(self, page, state):
        return self.slot.rmap.state[page] == state

    def _check(self, claims, new, waiting):
        parts = [pages_of(part).tolist() for part in (claims.known, claims.members, claims.waiting)]
        named = [page for part in parts for page in part]
        assert len(named) == len(set(named)), "a page is named twice"
        assert new <= set(named) <= new | waiting
        assert set(parts[2]) <= new

        for page, frame in zip(parts[0], claims.frames.tolist(), strict=True):
            assert self.pool.fingerprint[frame] == self.prints[page]
        for page, number in zip(parts[1], claims.number.tolist(), strict=True):
            assert claims.fingerprints[number] == self.prints[page]
        for page, fingerprint in zip(parts[2], claims.waiting_fingerprints.tolist(), strict=True):
            assert fingerprint == self.prints[page]
        self._check_leaders(claims)

    def _check_leaders(self, claims):
        assert np.all(np.diff(claims.leaders.astype(np.int64)) > 0), "frames follow the addresses"
        member_of = dict(zip(claims.members.tolist(), claims.number.tolist(), strict=True))
        numbers = [member_of[leader] for leader in claims.leaders.tolist()]
        assert numbers == list(range(len(numbers)))
        sizes = Counter(member_of.values())
        assert all(2 - self.alone_too <= size <= self.limit for size in sizes.values())

    def _obey(self, claims):
        self.unstable.add(claims.waiting_fingerprints, claims.waiting)
        new = self.pool.allocate(len(claims.leaders))
        where = np.concatenate([claims.known, claims.members])
        frames = np.concatenate([claims.frames, new[claims.number]])
        self.slot.rmap.move(pages_of(where), State.MERGED)
        self.pool.acquire(frames)
        self.pool.settle(frames)
        self.stable.add(claims.fingerprints, new)
        self.frame |= dict(zip(pages_of(where).tolist(), frames.tolist(), strict=True))

    def of_content(self, fingerprint):
        frames = [f for page, f in self.frame.items() if self.prints[page] == fingerprint]
        return len(set(frames)), len(frames) - len(set(frames))


@contextlib.contextmanager
def books(limit, *, alone_too=False):
    held = Books(limit, alone_too)
    try:
        yield held
    finally:
        held.close()


@pytest.mark.parametrize("limit", [2, 3, 7, 10, 256])
def test_n_equal_pages_share_as_the_kernel_has_them_share(limit):
    for nr in [0, 1, 2, 3, 5, 9, 10, 11, 12, 19, 21, 255, 256, 257, 258, 511, 512, 513, 769]:
        with books(limit) as held:
            held.arrive([41] * nr)
            assert held.of_content(41) == shared_and_sharing(nr, limit), nr


@few
@given(
    st.integers(2, 13),
    st.lists(st.lists(st.integers(1, 5), max_size=29), min_size=1, max_size=7),
)
def test_pages_that_arrive_in_batches_share_as_if_they_came_at_once(limit, batches):
    with books(limit) as held:
        for batch in batches:
            held.arrive(batch)
        counts = Counter(held.prints.values())
        for fingerprint, nr in counts.items():
            assert held.of_content(fingerprint) == shared_and_sharing(nr, limit)


@few
@given(st.integers(2, 7), st.lists(st.integers(1, 11), max_size=67), st.integers(1, 71))
def test_portions_name_every_member_once_and_divide_no_number(limit, prints, nr_members):
    with books(limit) as held:
        claims = held.arrive(prints)
    portions = list(claims.portions(nr_members))
    named = [where for portion in portions for where in portion.members.tolist()]
    assert named == claims.members.tolist()
    leaders = [where for portion in portions for where in portion.leaders.tolist()]
    assert leaders == claims.leaders.tolist()
    for portion in portions:
        assert len(portion.known) == len(portion.waiting) == 0
        assert np.unique(portion.number).tolist() == list(range(len(portion.leaders)))
        last = portion.number == portion.number[-1]
        assert len(portion.members) < nr_members + np.count_nonzero(last)
        for where, number in zip(portion.members.tolist(), portion.number.tolist(), strict=True):
            assert portion.fingerprints[number] == held.prints[int(pages_of(np.uint64(where)))]


@few
@given(st.integers(2, 7), st.lists(st.lists(st.integers(1, 7), max_size=29), min_size=1, max_size=5))
def test_where_the_lone_get_frames_too_nobody_waits_and_frames_are_filled_as_ever(limit, batches):
    with books(limit, alone_too=True) as held:
        for batch in batches:
            claims = held.arrive(batch)
            assert len(claims.waiting) == 0
            assert len(claims.known) + len(claims.members) == len(batch)
        for content, nr in Counter(held.prints.values()).items():
            nr_frames = -(-nr // limit)
            assert held.of_content(content) == (nr_frames, nr - nr_frames)


@quick
@given(st.lists(st.integers(1, 2**64 - 1), unique=True, max_size=23))
def test_unique_pages_wait_and_claim_nothing(prints):
    with books(256) as held:
        claims = held.arrive(prints)
        assert len(claims.waiting) == len(prints)
        assert len(claims.members) == len(claims.known) == len(claims.leaders) == 0


def test_a_page_that_left_the_unstable_table_is_no_partner():
    with books(256) as held:
        held.arrive([17])
        held.slot.rmap.move(np.array([0]), State.WRITTEN)
        claims = held.arrive([17])
        assert len(claims.members) == 0
        assert pages_of(claims.waiting).tolist() == [1]


def test_the_same_run_in_another_place_gets_the_same_frames_in_a_row():
    with books(256) as held:
        held.arrive(list(range(1000, 1097)) * 2)
        claims = held.arrive(list(range(1000, 1097)))
        ascending = np.argsort(pages_of(claims.known))
        assert len(lay_out(pages_of(claims.known)[ascending], claims.frames[ascending])) == 1


def turns(steps, room):
    """Return of the pages, in their turn, which find room; steps are 'page' or 'gap'."""
    left = max(room - steps.count("gap"), 0)
    for step in steps:
        if step == "page":
            yield left > 0
        left = max(left - 1, 0) if step == "page" else left + 1


@few
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(["page", "gap"]), max_size=13), st.integers(0, 5)),
        min_size=1,
        max_size=7,
    )
)
def test_room_is_for_those_who_come_after_it_was_made(contents):
    pages, gaps, room, expected = [], [], [], []
    for content, (steps, free) in enumerate(contents):
        for at, step in enumerate(steps):
            (pages if step == "page" else gaps).append((content, at))
        room += [free] * steps.count("page")
        expected += turns(steps, free)
    columns = [np.array(rows, dtype=np.uint64).reshape(-1, 2).T for rows in (pages, gaps)]
    (prints, where), gap_columns = columns
    found = _find_room(where, prints, np.array(room, dtype=np.int64), tuple(gap_columns))
    assert found.tolist() == expected
