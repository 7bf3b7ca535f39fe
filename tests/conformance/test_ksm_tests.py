"""ksm_tests of the kernel's selftests: how many pages are merged, mode by mode (-M, -U, -Z, -N).

The modes that take times (-P, -H, -D, -C) are here for what they rely on: counts and contents, and no times.
"""

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

import ksmemu
from tests.support import crew, expected, procmaps
from tests.support.procmaps import PAGE
from tests.support.scanning import merge, shared_and_sharing
from tests.support.waiting import wait_until

DEFAULT_PAGES = 10
MIB_PAGES = (1 << 20) // PAGE
HUGE = 2 << 20
COW_PAGES = 4000
MADV_HUGEPAGE = 14
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


def assert_merged_in_full(ksmd, one, nr_pages):
    """By the books, by the formula, and by what is really mapped; every byte is as it was."""
    assert shared_and_sharing(ksmd) == expected.shared_and_sharing(nr_pages, 256)
    found = procmaps.recount([one.call(bounds, nr_pages)])
    assert (found.merged, found.own) == (nr_pages, 0)
    assert one.call(crew.is_filled_with, 0, nr_pages, FILL)


def bounds(state, nr_pages):
    return os.getpid(), state.start, state.start + nr_pages * PAGE


def test_merge_time(ksmd, child):
    nr_pages = 8 * MIB_PAGES
    ksmd.write("pages_to_scan", nr_pages)
    one = child()
    one.call(map_and_fill, nr_pages, FILL, "madvise")
    merge(ksmd)
    assert_merged_in_full(ksmd, one, nr_pages)


def map_huge_pages(state, nr_huge):
    """Fill whole huge pages of ordinary memory, and advise it; return how much of it the kernel made huge."""
    state.space = ksmemu.AddressSpace((nr_huge + 1) * HUGE)
    state.start = state.space.mmap(nr_huge * HUGE, -(-state.space.start // HUGE) * HUGE)
    start, size = ctypes.c_void_p(state.start), ctypes.c_size_t(nr_huge * HUGE)
    ctypes.CDLL(None).madvise(start, size, MADV_HUGEPAGE)
    crew.fill_with(state, 0, nr_huge * HUGE // PAGE, FILL)
    held = procmaps.smaps_rollup("self")["AnonHugePages"]
    state.space.madvise_all(ksmemu.MADV_MERGEABLE)
    return held


def test_merge_time_with_huge_pages(ksmd, child):
    nr_huge = 3
    one = child()
    held = one.call(map_huge_pages, nr_huge)
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    assert held >= HUGE or not setting.exists() or "[never]" in setting.read_text()
    merge(ksmd)
    assert_merged_in_full(ksmd, one, nr_huge * HUGE // PAGE)


def test_unmerge_time(ksmd, child):
    nr_pages = 8 * MIB_PAGES
    one = child()
    one.call(map_and_fill, nr_pages, FILL, "madvise")
    merge(ksmd)
    assert_merged_in_full(ksmd, one, nr_pages)
    one.call(crew.advise, 0, nr_pages, ksmemu.MADV_UNMERGEABLE)
    # Nothing is mergeable any more: nothing is scanned.
    wait_until(lambda: shared_and_sharing(ksmd) == (0, 0), what="word of the unmerging")
    found = procmaps.recount([one.call(bounds, nr_pages)])
    assert (found.merged, found.zero, found.own) == (0, 0, nr_pages)
    assert one.call(crew.is_filled_with, 0, nr_pages, FILL)


def pages_of(state):
    return state.space.ndarray((COW_PAGES, PAGE), np.uint8, state.start)


def write_every_other_page(state, value):
    pages_of(state)[::2, 0] = value


def make_pairs(state):
    """Make 2000 pairs of equal pages, no two pairs alike."""
    pages = pages_of(state)
    pages[:] = ord("+")
    pages[:, 1:5] = (np.arange(COW_PAGES, dtype=np.uint32) // 2).view(np.uint8).reshape(-1, 4)


def is_pairs(state, first_byte):
    """Whether the pages are those pairs, the first of each with this first byte."""
    pages = pages_of(state).copy()
    assert (pages[::2, 0] == first_byte).all()
    pages[::2, 0] = ord("+")
    number = np.ascontiguousarray(pages[:, 1:5]).view(np.uint32).ravel()
    pages[:, 1:5] = ord("+")
    return bool((number == np.arange(COW_PAGES) // 2).all() and (pages == ord("+")).all())


def test_cow_time(ksmd, child):
    """4000 pages: 2000 one-byte writes, nothing merged; then 2000 pairs are merged and written again."""
    nr_pairs = COW_PAGES // 2
    one = child()
    one.call(map_and_fill, COW_PAGES, FILL, "madvise")
    one.call(write_every_other_page, ord("-"))
    assert shared_and_sharing(ksmd) == (0, 0)
    one.call(make_pairs)
    merge(ksmd)
    assert shared_and_sharing(ksmd) == (nr_pairs, nr_pairs)
    before = ksmd.read("pages_broken")
    one.call(write_every_other_page, ord("-"))
    assert one.call(is_pairs, ord("-"))
    merge(ksmd)
    assert shared_and_sharing(ksmd) == (nr_pairs, 0)
    assert ksmd.read("pages_broken") - before == nr_pairs
    assert one.call(is_pairs, ord("-"))
