"""Few pages, one step at a time: merged, changed, changed back, discarded, gone."""

import pytest

import ksmemu
from tests.support.procmaps import PAGE

pytestmark = pytest.mark.root
NR_PAGES = 13
TWINS = [1, 2, 3, 4, 5]


def twins(engine):
    """Return two members with five pages alike, and one that only the second has; merged."""
    one, other = engine.member(NR_PAGES), engine.member(NR_PAGES)
    one.put(0, TWINS)
    other.put(3, TWINS)
    other.put(0, [7])
    assert engine.rest()["pages_sharing"] == len(TWINS)
    return one, other


def test_twins(agree):
    def workload(engine):
        one, other = twins(engine)
        assert one.differing(0, TWINS) == other.differing(3, TWINS) == []

    agree(workload)


def test_the_profits_of_the_processes_add_up_to_more_than_the_general_one(agree):
    """Each counts every page that it shares, the general one only those that are saved."""

    def workload(engine):
        members = twins(engine)
        profits = [int(member.figures()["ksm_stat"].split()[7]) for member in members]
        surplus = sum(profits) - engine.ksmd.read("general_profit")
        assert surplus == engine.ksmd.read("pages_shared") * PAGE

    agree(workload)


def test_equal_pages_of_one_space(agree):
    def workload(engine):
        engine.member(NR_PAGES).put(0, [1, 2, 1, 3, 1, 2, 0, 0])
        engine.rest()

    agree(workload)


def test_a_page_is_changed_and_changed_back(agree):
    def workload(engine):
        one, other = twins(engine)
        one.put_byte(2, 1, 1777, 1)
        engine.rest()
        one.put(2, TWINS[2:3])
        engine.rest()
        assert one.differing(0, TWINS) == other.differing(3, TWINS) == []

    agree(workload)


def test_a_merged_page_is_written_with_what_it_holds(agree):
    def workload(engine):
        one, _ = twins(engine)
        one.put(1, TWINS[1:3])
        engine.rest()

    agree(workload)


def test_both_of_two_merged_pages_change_alike(agree):
    def workload(engine):
        one, other = twins(engine)
        for member, page in ((one, 0), (other, 3)):
            member.put(page, [11])
        engine.rest()

    agree(workload)


def test_a_merged_page_is_discarded(agree):
    def workload(engine):
        one, other = twins(engine)
        one.discard(1, 2)
        engine.rest()
        other.discard(3, 5)
        engine.rest()
        one.put(1, [0, 3])
        engine.rest()

    agree(workload)


def test_a_unique_page_is_discarded(agree):
    def workload(engine):
        _, other = twins(engine)
        other.discard(0, 1)
        engine.rest()

    agree(workload)


def test_pages_are_unmerged_by_advice(agree):
    def workload(engine):
        one, other = twins(engine)
        one.advise(1, 3, ksmemu.MADV_UNMERGEABLE)
        engine.rest()
        other.advise(0, NR_PAGES, ksmemu.MADV_UNMERGEABLE)
        engine.rest()
        one.advise(0, NR_PAGES, ksmemu.MADV_MERGEABLE)
        other.advise(0, NR_PAGES, ksmemu.MADV_MERGEABLE)
        engine.rest()

    agree(workload)


def test_pages_are_unmerged_by_run_2_and_merged_again(agree):
    def workload(engine):
        twins(engine)
        engine.unmerge()
        engine.note()
        assert engine.ksmd.read("full_scans") == 0
        engine.rest()

    agree(workload)


def test_a_worker_exits(agree):
    def workload(engine):
        one, other = twins(engine)
        third = engine.member(NR_PAGES)
        third.put(0, TWINS[:3])
        engine.rest()
        one.exit()
        engine.rest()
        other.exit()
        engine.rest()

    agree(workload)


def test_a_range_is_unmapped(agree):
    def workload(engine):
        one, other = twins(engine)
        one.unmap(0, 2)
        engine.rest()
        other.unmap(0, NR_PAGES)
        engine.rest()

    agree(workload)
