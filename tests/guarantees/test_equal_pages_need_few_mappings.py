"""A region of all-equal pages merges without using up the mappings of its process (vm.max_map_count)."""

import pytest

from tests.support import crew, procmaps
from tests.support.books import Member
from tests.support.waiting import wait_until

NR_PAGES = (256 << 20) // procmaps.PAGE
MOST_MAPPINGS = 2000
SPEEDS = {
    "at once": {"pages_to_scan": 1_000_003, "sleep_millisecs": 1},
    "in small batches": {"pages_to_scan": 1009, "sleep_millisecs": 0},
}


def a_region_merges(ksmd, crew_of, value, nr_pages, most):
    """Merge a region of one repeated byte; return how many mappings it takes."""
    member = Member.join(crew_of(ksmd), nr_pages)
    member.call(crew.fill_with, 0, nr_pages, value)
    ksmd.write("run", 1)
    wait_until(lambda: _merged(ksmd) == nr_pages, 60.0, what="merging")
    pid, start, end = member.space
    nr = len(procmaps.mappings(pid, start, end))
    assert nr < most, "too many mappings"
    assert member.call(crew.is_filled_with, 0, nr_pages, value)
    return nr


def _merged(ksmd):
    return ksmd.read("pages_shared") + ksmd.read("pages_sharing")


@pytest.mark.parametrize("value", [0, 0xFF])
@pytest.mark.parametrize("speed", SPEEDS.values(), ids=SPEEDS)
def test_256_mib_of_one_byte_stay_below_2000_mappings(speed, value, start_ksmd, crew_of, show):
    ksmd = start_ksmd(**speed)
    nr = a_region_merges(ksmd, crew_of, value, NR_PAGES, MOST_MAPPINGS)
    show(f"256 MiB of {value:#04x}: {nr} mappings")


@pytest.mark.parametrize("value", [0, 0xFF])
def test_so_does_a_region_that_is_filled_while_it_is_scanned(value, start_ksmd, crew_of, show):
    ksmd = start_ksmd(run=1, **SPEEDS["at once"])
    member = Member.join(crew_of(ksmd), NR_PAGES)
    for first in range(0, NR_PAGES, 2003):
        member.call(crew.fill_with, first, min(2003, NR_PAGES - first), value)
    wait_until(lambda: _merged(ksmd) == NR_PAGES, 60.0, what="merging")
    nr = len(procmaps.mappings(*member.space))
    assert nr < MOST_MAPPINGS
    show(f"256 MiB of {value:#04x}, filled meanwhile: {nr} mappings")


def test_it_would_be_noticed_if_equal_neighbours_had_a_mapping_each(start_ksmd, crew_of):
    ksmd = start_ksmd(broken="ladder", module="tests.support.ksmd_main", **SPEEDS["at once"])
    with pytest.raises(AssertionError, match="too many mappings"):
        a_region_merges(ksmd, crew_of, 0xFF, 4099, MOST_MAPPINGS)
