"""Patch 1/4: MADV_SHAREABLE and MADV_UNSHAREABLE, which does not break what is merged."""

import ksmemu
from ksmemu import MADV_SHAREABLE, MADV_UNSHAREABLE
from tests.rfc2009.conftest import FILLED, NR_PAGES
from tests.support import crew, procmaps
from tests.support.waiting import wait_until


def shown(one):
    """Return what the mappings of a process's space say."""
    start, end = one.call(lambda state: (state.start, state.start + state.space.size))
    return procmaps.recount([(one.pid, start, end)])


def test_the_numbers_are_those_of_the_patch():
    assert (MADV_SHAREABLE, MADV_UNSHAREABLE) == (12, 13)
    assert (ksmemu.MADV_MERGEABLE, ksmemu.MADV_UNMERGEABLE) == (12, 13)


def test_shareable_pages_are_merged(ksm, mm):
    pair = mm(), mm()
    ksm.scan()
    assert ksm.counters() == (NR_PAGES, NR_PAGES)
    assert all(one.call(crew.differing, 0, FILLED) == [] for one in pair)


def test_pages_written_with_what_they_held_are_merged_again(ksm, mm):
    one, other = mm(), mm()
    ksm.scan()
    one.call(crew.put, 3, FILLED[3:14])
    ksm.scan()
    assert (ksm.read("pages_renewed"), ksm.read("pages_rehomed")) == (11, 0)
    assert (shown(one).broken, shown(one).merged) == (0, NR_PAGES)
    assert ksm.counters() == (NR_PAGES, NR_PAGES)
    assert one.call(crew.differing, 0, FILLED) == other.call(crew.differing, 0, FILLED) == []


def test_unshareable_does_not_break_merged_pages(ksm, mm):
    one, other = mm(), mm()
    ksm.scan()
    one.call(crew.advise, 0, 7, MADV_UNSHAREABLE)
    assert shown(one).merged == NR_PAGES
    ksm.scan()
    assert shown(one).merged == NR_PAGES
    # KSM no longer knows them: what it counts falls, and nothing is given back.
    assert ksm.counters() == (NR_PAGES, NR_PAGES - 7)
    assert one.call(crew.differing, 0, FILLED) == other.call(crew.differing, 0, FILLED) == []


def test_a_frame_that_nobody_known_shows_is_counted_no_more_and_kept(ksm, mm):
    pair = mm(), mm()
    ksm.scan()
    for one in pair:
        one.call(crew.advise, 0, 7, MADV_UNSHAREABLE)
    ksm.scan()
    assert ksm.counters() == (NR_PAGES - 7, NR_PAGES - 7)
    assert all(one.call(crew.differing, 0, FILLED) == [] for one in pair)
    assert ksm.read("pool_bytes") == NR_PAGES * procmaps.PAGE


def test_what_was_left_is_written_and_nobody_elses_bytes_change(ksm, mm):
    one, other = mm(), mm()
    ksm.scan()
    one.call(crew.advise, 0, 7, MADV_UNSHAREABLE)
    ksm.scan()
    one.call(crew.put, 3, [77, 78])
    ksm.scan()
    assert one.call(crew.differing, 3, [77, 78]) == []
    assert other.call(crew.differing, 0, FILLED) == []


def test_unshareable_keeps_new_pages_from_being_merged(ksm, mm):
    one, _ = mm(), mm()
    one.call(crew.advise, 0, 7, MADV_UNSHAREABLE)
    ksm.scan()
    assert ksm.counters() == (NR_PAGES - 7, NR_PAGES - 7)
    assert shown(one).own == 7


def test_shareable_again_merges_and_knows_again(ksm, mm):
    one, _ = mm(), mm()
    ksm.scan()
    one.call(crew.advise, 0, 11, MADV_UNSHAREABLE)
    ksm.scan()
    one.call(crew.put, 0, [77, 78])
    one.call(crew.advise, 0, 11, MADV_SHAREABLE)
    ksm.scan()
    assert ksm.counters() == (NR_PAGES, NR_PAGES - 2)
    one.call(crew.put, 0, FILLED[:2])
    ksm.scan()
    assert ksm.counters() == (NR_PAGES, NR_PAGES)
    assert one.call(crew.differing, 0, FILLED) == []


def test_when_nothing_is_shareable_any_more_the_pages_are_broken_within_two_scans(ksm, mm):
    one, other = mm(), mm()
    ksm.scan()
    ksm.write("sleep", 2**32 - 1)  # two scans may pass at any moment otherwise
    one.call(crew.advise, 0, NR_PAGES, MADV_UNSHAREABLE)
    assert shown(one).merged == NR_PAGES
    ksm.write("sleep", 1000)
    ksm.scan()
    wait_until(lambda: shown(one).own == NR_PAGES, what="the pages to be broken")
    assert ksm.counters() == (NR_PAGES, 0)
    assert one.call(crew.differing, 0, FILLED) == other.call(crew.differing, 0, FILLED) == []


def test_memory_that_was_left_merged_is_unmapped(ksm, mm):
    one, other = mm(), mm()
    ksm.scan()
    for member in (one, other):
        member.call(crew.advise, 0, 7, MADV_UNSHAREABLE)
    ksm.scan()
    for member in (one, other):
        member.call(crew.unmap, 0, 7)
    wait_until(lambda: ksm.read("pool_bytes") == (NR_PAGES - 7) * procmaps.PAGE, what="the frames to go")


def test_the_first_equal_page_needs_two_scans_and_one_that_is_merged_already_needs_one(ksm, mm):
    """In 2009 the stable tree was searched first, and the checksum looked at after that."""
    mm(), mm()
    ksm.scan()
    one = mm()
    one.call(crew.put, 0, FILLED)
    before = ksm.read("full_scans")
    wait_until(lambda: ksm.counters() == (NR_PAGES, 2 * NR_PAGES), what="the third to merge")
    assert ksm.read("full_scans") >= before
