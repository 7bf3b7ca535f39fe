"""ksm_functional_tests of the kernel's selftests: areas of 512 pages, merged and unmerged."""

from pathlib import Path

import pytest

import ksmemu
from ksmemu import MADV_UNMERGEABLE
from tests.support import crew, procmaps
from tests.support.scanning import merge

NR_PAGES = 512
HALF = NR_PAGES // 2
FILL = ord("*")


@pytest.fixture
def merging(ksmd):
    """Return ksm_merging_pages of a worker; a process that never advised has no such file."""

    def read(one, name="ksm_merging_pages"):
        ksmd.write("run", ksmd.read("run"))  # a store brings every figure up to date
        return int(figures(ksmd, one).get(name, 0))

    return read


def figures(ksmd, one):
    file = Path(ksmd.directory) / "proc" / str(one.pid) / "ksm_stat"
    return dict(line.split() for line in file.read_text().splitlines()) if file.exists() else {}


@pytest.fixture
def merged_area(ksmd, area, merging):
    """Start a child with a merged area: merged_area(), or merged_area(0) for zeros."""

    def start(value=FILL):
        one = area(NR_PAGES)
        assert merging(one) == 0
        one.call(crew.fill_with, 0, NR_PAGES, value)
        merge(ksmd)
        if value:
            assert merging(one) == NR_PAGES
        return one

    return start


def space_of(state):
    return state.start


def set_memory_merge(state, on):
    ksmemu.set_memory_merge(on)
    return ksmemu.get_memory_merge()


def assert_no_frame_is_shared(one):
    """Every page of the area is the worker's own: then no frame is mapped twice."""
    start = one.call(space_of)
    found = procmaps.recount([(one.pid, start, start + NR_PAGES * procmaps.PAGE)])
    assert (found.merged, found.zero, found.own) == (0, 0, NR_PAGES)


def test_unmerge(merged_area):
    one = merged_area()
    one.call(crew.advise, 0, NR_PAGES, MADV_UNMERGEABLE)
    assert_no_frame_is_shared(one)
    assert one.call(crew.is_filled_with, 0, NR_PAGES, FILL)


def test_unmerge_zero_pages(ksmd, merged_area, merging):
    ksmd.write("use_zero_pages", 1)
    one = merged_area(0)
    assert merging(one, "ksm_zero_pages") == NR_PAGES
    one.call(crew.advise, 0, HALF, MADV_UNMERGEABLE)
    assert merging(one, "ksm_zero_pages") == HALF
    one.call(crew.number_pages, HALF, range(HALF, NR_PAGES))
    ksmd.wait_full_scans(2)
    assert merging(one, "ksm_zero_pages") == 0
    assert_no_frame_is_shared(one)


def test_unmerge_discarded(merged_area):
    one = merged_area()
    one.call(crew.discard, 0, HALF)
    one.call(crew.advise, 0, NR_PAGES, MADV_UNMERGEABLE)
    assert_no_frame_is_shared(one)


def test_prctl(child):
    one = child()
    for setting in (True, False):
        assert one.call(set_memory_merge, setting) is setting


def test_prctl_unmerge(ksmd, area, merging):
    one = area(NR_PAGES, advised=False)
    one.call(set_memory_merge, True)
    one.call(crew.fill_with, 0, NR_PAGES, FILL)
    merge(ksmd)
    assert merging(one) == NR_PAGES
    one.call(set_memory_merge, False)
    assert_no_frame_is_shared(one)
