"""ksm_tests of the kernel's selftests: how many pages are merged, mode by mode (-M, -U, -Z, -N)."""

import pytest

import ksmemu
from tests.support import crew, expected
from tests.support.procmaps import PAGE
from tests.support.scanning import merge, shared_and_sharing

DEFAULT_PAGES = 10
FILL = ord("*")


def map_and_fill(state, nr_pages, value, advise):
    crew.open_ordinary_space(state, nr_pages)
    crew.fill_with(state, 0, nr_pages, value)
    if advise == "madvise":
        crew.advise(state, 0, nr_pages, ksmemu.MADV_MERGEABLE)
    else:
        ksmemu.set_memory_merge(True)


@pytest.mark.parametrize("advise", ["madvise", "prctl"])
@pytest.mark.parametrize(
    ("nr_pages", "limit"), [(DEFAULT_PAGES, 256), (1, 256), (211, 7), (11, 10), (513, 256)]
)
def test_merge(ksmd, child, nr_pages, limit, advise):
    ksmd.write("max_page_sharing", limit)
    ksmd.write("pages_to_scan", nr_pages)
    child().call(map_and_fill, nr_pages, FILL, advise)
    merge(ksmd)
    assert shared_and_sharing(ksmd) == expected.shared_and_sharing(nr_pages, limit)


@pytest.mark.parametrize("advise", ["madvise", "prctl"])
def test_unmerge(ksmd, child, advise):
    one = child()
    one.call(map_and_fill, 2, FILL, advise)
    merge(ksmd)
    assert shared_and_sharing(ksmd) == (1, 1)
    one.call(crew.put_byte, 0, 1, 0, ord("e"))
    one.call(crew.put_byte, 1, 1, 0, ord("f"))
    merge(ksmd, scans=1)
    assert shared_and_sharing(ksmd) == (0, 0)


@pytest.mark.parametrize("advise", ["madvise", "prctl"])
@pytest.mark.parametrize("use_zero_pages", [1, 0])
def test_zero_page_merge(ksmd, child, use_zero_pages, advise):
    ksmd.write("use_zero_pages", use_zero_pages)
    child().call(map_and_fill, DEFAULT_PAGES, 0, advise)
    merge(ksmd)
    nr_merged = 0 if use_zero_pages else DEFAULT_PAGES
    assert shared_and_sharing(ksmd) == expected.shared_and_sharing(nr_merged, 256)


def page_on_each_of_two_nodes(state):
    state.spaces = [ksmemu.AddressSpace(PAGE, node=node) for node in range(2)]
    for space in state.spaces:
        space.write(space.mmap(PAGE), bytes([FILL]) * PAGE)
        space.madvise_all(ksmemu.MADV_MERGEABLE)


@pytest.mark.parametrize("across", [1, 0])
def test_numa_merge(ksmd, child, across):
    ksmd.write("merge_across_nodes", across)
    child().call(page_on_each_of_two_nodes)
    merge(ksmd)
    assert shared_and_sharing(ksmd) == expected.shared_and_sharing(2 * across, 256)
