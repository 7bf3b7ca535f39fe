"""ksmd keeps at most 24 bytes for a tracked page plus a constant (the kernel's rmap_item alone has 64).

Measured as the growth of ksmd's private memory and page tables between two sizes. What a page costs
depends on what it waits for; its column entries cost by the page of address range, rounded up to where
pages are.
"""

import numpy as np
import pytest

from tests.support import crew, procmaps
from tests.support.books import Member
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

GIB = (1 << 30) // PAGE
MOST_BYTES = 24
MODERATE = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}


def metadata_bytes(ksmd):
    return procmaps.smaps_rollup(ksmd.pid)["Pss_Anon"] + procmaps.status(ksmd.pid)["VmPTE"]


def growth(ksmd, steps):
    """Return the bytes a page between two sizes; `steps` yields (pages, what to wait for)."""
    sizes = []
    for nr_pages, is_reached in steps:
        wait_until(is_reached, 60.0, what=f"{nr_pages} pages in the books")
        ksmd.wait_full_scans(3)
        sizes.append((nr_pages, metadata_bytes(ksmd)))
    (first, small), (last, large) = sizes[0], sizes[-1]
    return (large - small) / (last - first)


def test_merged_pages_from_1_to_4_gib(start_ksmd, crew_of, show):
    """Equal pages, filled in pieces that merge before the next comes: 4 GiB that need 1."""
    ksmd = start_ksmd(**MODERATE)
    member = Member.join(crew_of(ksmd), 4 * GIB)

    def merged():
        return ksmd.read("pages_shared") + ksmd.read("pages_sharing")

    def steps():
        for piece in range(4):
            ksmd.write("run", 0)  # in one piece, for a handful of mappings
            member.call(crew.fill_with, piece * GIB, GIB, 0xFF)
            ksmd.write("run", 1)
            goal = (piece + 1) * GIB - 1  # the last one may have no partner
            yield (piece + 1) * GIB, lambda goal=goal: merged() >= goal

    bytes_a_page = growth(ksmd, steps())
    show(f"metadata of merged pages, 1 to 4 GiB: {bytes_a_page:.1f} bytes a page")
    assert bytes_a_page <= MOST_BYTES


def test_unique_pages_that_wait(start_ksmd, crew_of, show):
    """Unique pages: what costs most, an entry in the unstable table each."""
    ksmd = start_ksmd(**MODERATE)
    member = Member.join(crew_of(ksmd), 4 * GIB)

    def steps():
        for piece in range(4):
            first, nr = piece * GIB, GIB
            member.call(crew.number_pages, first, range(first + 1, first + 1 + nr))
            goal = first + nr
            yield goal, lambda goal=goal: ksmd.read("pages_unshared") == goal

    bytes_a_page = growth(ksmd, steps())
    show(f"metadata of unique pages, 1 to 4 GiB: {bytes_a_page:.1f} bytes a page")
    assert bytes_a_page <= MOST_BYTES


def test_a_sparse_space_from_1_to_4_gib(start_ksmd, crew_of, show):
    """One page in 16 is there: counted by the page of range, as the columns have an entry for each."""
    ksmd = start_ksmd(**MODERATE)
    member = Member.join(crew_of(ksmd), 4 * GIB)

    def steps():
        for piece in range(4):
            pages = np.arange(piece * GIB, (piece + 1) * GIB, 16)
            member.call(crew.number_these_pages, pages)
            goal = (piece + 1) * GIB // 16
            yield (piece + 1) * GIB, lambda goal=goal: ksmd.read("pages_unshared") == goal

    bytes_a_page = growth(ksmd, steps())
    show(f"metadata of a sparse space, 1 to 4 GiB: {bytes_a_page:.1f} bytes a page of range")
    assert bytes_a_page <= MOST_BYTES


def test_it_would_be_noticed_if_each_page_cost_as_much_as_the_kernels(start_ksmd, crew_of):
    ksmd = start_ksmd(broken="lean", module="tests.support.ksmd_main", **MODERATE)
    member = Member.join(crew_of(ksmd), GIB // 4)

    def steps():
        for piece in range(2):
            first, nr = piece * GIB // 8, GIB // 8
            member.call(crew.number_pages, first, range(first + 1, first + 1 + nr))
            yield first + nr, lambda goal=first + nr: ksmd.read("pages_unshared") == goal

    bytes_a_page = growth(ksmd, steps())
    with pytest.raises(AssertionError):
        assert bytes_a_page <= MOST_BYTES
