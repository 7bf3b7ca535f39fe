"""LTP ksm06: equal pages on several nodes, merged across them and not. The nodes are simulated."""

import pytest

import ksmemu
from tests.support import crew
from tests.support.procmaps import PAGE
from tests.support.scanning import merge, settled

VALUE = 10


def fill_nodes(state, nr_nodes, nr_pages):
    """Map an area a node and fill all of them alike."""
    state.spaces = [ksmemu.AddressSpace(nr_pages * PAGE, node=node) for node in range(nr_nodes)]
    for space in state.spaces:
        state.space, state.start = space, space.mmap(nr_pages * PAGE)
        crew.advise(state, 0, nr_pages, ksmemu.MADV_MERGEABLE)
        crew.fill_with(state, 0, nr_pages, VALUE)


def fill_ranges(state, nr_nodes, nr_pages):
    """The same in one area, with a range for each node."""
    state.space = ksmemu.AddressSpace(nr_nodes * nr_pages * PAGE)
    state.start = state.space.mmap(state.space.size)
    for node in range(nr_nodes):
        state.space.mbind(state.start + node * nr_pages * PAGE, nr_pages * PAGE, node)
    state.space.madvise_all(ksmemu.MADV_MERGEABLE)
    crew.fill_with(state, 0, nr_nodes * nr_pages, VALUE)


@pytest.mark.parametrize("nr_pages", [10, 100, 8000])
@pytest.mark.parametrize("nr_nodes", [2, 3])
def test_ksm06(ksmd, child, nr_nodes, nr_pages):
    play(ksmd, child, fill_nodes, nr_nodes, nr_pages)


@pytest.mark.parametrize("nr_nodes", [2, 7])
def test_ksm06_with_ranges_of_one_area_on_the_nodes(ksmd, child, nr_nodes):
    play(ksmd, child, fill_ranges, nr_nodes, 100)


def play(ksmd, child, fill, nr_nodes, nr_pages):
    total = nr_nodes * nr_pages
    ksmd.write("max_page_sharing", total)
    ksmd.write("pages_to_scan", total)
    child().call(fill, nr_nodes, nr_pages)
    merge(ksmd, scans=3)
    assert settled(ksmd) == (1, total - 1, 0, 0)
    ksmd.write("run", 2)
    ksmd.write("merge_across_nodes", 0)
    merge(ksmd, scans=3)
    assert settled(ksmd) == (nr_nodes, total - nr_nodes, 0, 0)
