"""The memory of merged pages is really given back to the host, and only what is equal is merged."""

import pytest

from tests.support import books, crew
from tests.support.books import Member
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

NR_WORKERS, NR_PAGES = 4, 25_013
SHARE = 0.95


def memory_falls(ksmd, crew_of, nr_pages, break_step=None):
    """Merge the same pages in four workers; return bytes in use before and after."""
    ksmd.write("run", 0)
    members = [Member.join(crew_of(ksmd, break_step), nr_pages) for _ in range(NR_WORKERS)]
    for member in members:
        member.call(crew.fill_unique, 0, nr_pages, 1)
    before = books.memory_in_use(ksmd, members)
    ksmd.write("run", 1)
    goal = (NR_WORKERS - 1) * nr_pages
    wait_until(lambda: ksmd.read("pages_sharing") == goal, 60.0, what="merging")
    after = books.memory_in_use(ksmd, members)
    assert before - after >= SHARE * goal * PAGE, "memory did not come back"
    return before, after


def test_at_least_95_percent_of_the_copies_come_back(ksmd, crew_of, show):
    before, after = memory_falls(ksmd, crew_of, NR_PAGES)
    possible = (NR_WORKERS - 1) * NR_PAGES * PAGE
    show(
        f"{NR_WORKERS} workers with the same {NR_PAGES:,} pages: {before / 2**20:.1f} MiB in use, "
        f"{after / 2**20:.1f} MiB merged, {(before - after) / possible:.2%} of what can be saved"
    )


def test_it_would_be_noticed_if_own_pages_were_kept(ksmd, crew_of):
    with pytest.raises(AssertionError, match="memory did not come back"):
        memory_falls(ksmd, crew_of, 1009, break_step="punch")


def unique_and_equal_pages_end_up_right(ksmd, crew_of):
    member = Member.join(crew_of(ksmd), 199)
    member.call(crew.fill_unique, 0, 101, 1)
    member.call(crew.fill_with, 101, 98, 7)
    ksmd.wait_full_scans(5)
    assert ksmd.read("pages_unshared") == 101
    assert ksmd.read("pages_shared") + ksmd.read("pages_sharing") == 98


def test_what_is_quiet_is_seen_to_be_quiet(ksmd, crew_of):
    unique_and_equal_pages_end_up_right(ksmd, crew_of)


def test_it_would_be_noticed_if_a_harvest_did_not_arm_again(start_ksmd, crew_of):
    fast = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}
    ksmd = start_ksmd(broken="rearm", module="tests.support.ksmd_main", **fast)
    with pytest.raises(AssertionError):
        unique_and_equal_pages_end_up_right(ksmd, crew_of)
