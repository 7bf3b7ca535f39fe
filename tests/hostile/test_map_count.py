"""A worker near vm.max_map_count: merging stops before the limit, says so, and the worker can still map."""

import mmap
import os
import random

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE
from ksmemu.control.reasons import Reason
from tests.support import procmaps
from tests.support.explained import assert_adds_up, totals
from tests.support.waiting import wait_until

PAGE = procmaps.PAGE
NR_PAGES = 1013
NR_LEFT = 1499
"""Mappings that the worker leaves free; the merge of all pages would need 4 * NR_PAGES."""


def _limit():
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        return int(file.read())


@pytest.fixture
def crowded(ksmd, start_worker, the_machine_stays_as_it_is):
    """A worker with all but some of its mappings in use; it has joined ksmd before or after that."""
    if _limit() > 1 << 18:
        ksmd.close()
        pytest.fail("vm.max_map_count is so high here that a worker cannot come near it in a test")

    def start(is_joined_before):
        worker = start_worker()
        if is_joined_before:
            worker.call(_make_spaces)
        worker.call(_map_single_pages, _limit() - NR_LEFT)
        if not is_joined_before:
            worker.call(_make_spaces)
        worker.call(_fill_scattered)
        return worker

    return start


def _make_spaces(state):
    state.spaces = [ksmemu.AddressSpace(NR_PAGES * PAGE) for _ in range(2)]
    for space in state.spaces:
        space.mmap(space.size)
        space.madvise_all(MADV_MERGEABLE)


def _map_single_pages(state, nr_mappings):
    """Neighbours differ in protection: the kernel cannot make one mapping of them."""
    kinds = (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE)
    nr = nr_mappings - len(procmaps.mappings("self"))
    state.single = [mmap.mmap(-1, PAGE, prot=kinds[number % 2]) for number in range(nr)]


def _fill_scattered(state):
    """The same pages in both spaces, in another order: no two of them make a run."""
    pages = [os.urandom(PAGE) for _ in range(NR_PAGES)]
    state.wanted = []
    for seed, space in enumerate(state.spaces):
        random.Random(seed).shuffle(pages)
        state.wanted.append(b"".join(pages))
        space.write(space.start, state.wanted[-1])


def _count(state):
    return len(procmaps.mappings("self"))


def _has_its_bytes(state):
    return all(
        space.read(space.start, space.size) == wanted
        for space, wanted in zip(state.spaces, state.wanted, strict=True)
    )


def _can_map(state):
    more = [mmap.mmap(-1, PAGE, prot=mmap.PROT_READ) for _ in range(7)]
    space = ksmemu.AddressSpace(3 * PAGE)
    space.mmap(PAGE, space.start + PAGE)
    space.close()
    for one in more:
        one.close()


def _unmap_single_pages(state):
    for one in state.single:
        one.close()
    state.single.clear()


def _assert_that_explain_names_the_budget(ksmd):
    ksmd.write("run", 0)
    assert totals(ksmd) == {Reason.MAPPING_BUDGET: 2 * NR_PAGES}
    assert_adds_up(ksmd)
    ksmd.write("run", 1)


@pytest.mark.parametrize("is_joined_before", [False, True])
def test_merging_stops_before_the_limit_and_the_worker_can_still_map(ksmd, crowded, is_joined_before):
    worker = crowded(is_joined_before)
    wait_until(lambda: ksmd.read("pages_over_budget") > 0, what="pages over budget")
    ksmd.wait_full_scans(3)
    _assert_that_explain_names_the_budget(ksmd)
    assert worker.call(_count) < _limit() - 7 - 4
    worker.call(_can_map)
    assert worker.call(_has_its_bytes)

    worker.call(_unmap_single_pages)
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="merging once there is room")
    assert totals(ksmd) == {Reason.MERGED: 2 * NR_PAGES}
    assert worker.call(_has_its_bytes)
    ksmd.write("run", 2)
    assert worker.call(_has_its_bytes)
