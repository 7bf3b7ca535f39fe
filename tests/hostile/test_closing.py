"""Spaces that are closed, unmapped or unadvised while orders for them are under way: all of it honest."""

import os
import random

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from tests.support import procmaps
from tests.support.waiting import wait_until

PAGE = procmaps.PAGE
NR_PAGES = 211
NR_ROUNDS = 43


def test_a_worker_that_closes_spaces_while_they_are_merged_is_served_on(ksmd, start_worker):
    worker = start_worker()
    worker.call(_begin)
    for round_ in range(NR_ROUNDS):
        worker.call(_take_one_away, round_ % 3)
    assert "cut off" not in (ksmd.directory / "ksmd.log").read_text()
    wait_until(lambda: ksmd.read("spaces") == 3)
    wait_until(lambda: ksmd.read("pages_sharing") == 2 * NR_PAGES, what="merging")
    assert ksmd.read("pages_shared") == NR_PAGES
    worker.call(_close_all)
    wait_until(lambda: ksmd.read("pages_shared") == ksmd.read("spaces") == ksmd.read("workers") == 0)


def _begin(state):
    state.chance = random.Random(NR_ROUNDS)
    state.spaces = []
    state.data = os.urandom(NR_PAGES * PAGE)
    for _ in range(3):
        _add(state)


def _add(state):
    space = ksmemu.AddressSpace(len(state.data))
    space.mmap(space.size)
    space.madvise_all(MADV_MERGEABLE)
    space.write(space.start, state.data)
    state.spaces.append(space)


def _take_one_away(state, how):
    """Write anew, wait for any moment of a scan or two, and let one space go."""
    state.data = os.urandom(len(state.data))
    for space in state.spaces:
        space.write(space.start, state.data)
    wait_until(lambda: state.chance.random() < 0.3)
    space = state.spaces.pop(0)
    if how == 0:
        space.munmap(space.start, space.size)
    elif how == 1:
        space.madvise_all(MADV_UNMERGEABLE)
        assert space.read(space.start, space.size) == state.data
    space.close()
    _add(state)
    for other in state.spaces:
        assert other.read(other.start, other.size) == state.data


def _close_all(state):
    for space in state.spaces:
        space.close()
