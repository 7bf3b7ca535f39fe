"""Pages of zeros: merged with each other, or with the zero page."""

import pytest

import ksmemu

pytestmark = [pytest.mark.root, pytest.mark.parametrize("use_zero_pages", [0, 1])]
NR_PAGES = 31
FILLED = [0, 0, 1, 2, 0, 1, 0, 0, 0]


def members(engine):
    one, other = engine.member(NR_PAGES), engine.member(NR_PAGES)
    one.put(0, FILLED)
    other.put(0, [0] * 7)
    engine.rest()
    return one, other


def test_zeros_are_merged(agree, use_zero_pages):
    def workload(engine):
        one, other = members(engine)
        assert one.differing(0, FILLED) == other.differing(0, [0] * 7) == []

    agree(workload, use_zero_pages=use_zero_pages)


def test_a_page_of_zeros_is_written(agree, use_zero_pages):
    def workload(engine):
        one, other = members(engine)
        one.put(0, [2])
        other.put_byte(1, 2, 4095, 1)
        engine.rest()
        one.put(0, [0])
        engine.rest()

    agree(workload, use_zero_pages=use_zero_pages)


def test_zeros_that_nobody_wrote_are_no_pages(agree, use_zero_pages):
    def workload(engine):
        engine.member(NR_PAGES)
        engine.rest()

    agree(workload, use_zero_pages=use_zero_pages)


def test_zeros_are_unmerged_by_advice_and_by_run_2(agree, use_zero_pages):
    def workload(engine):
        one, _ = members(engine)
        one.advise(0, 5, ksmemu.MADV_UNMERGEABLE)
        engine.rest()
        engine.unmerge()
        engine.note()
        engine.rest()

    agree(workload, use_zero_pages=use_zero_pages)


def test_the_tunable_changes_for_what_merges_later(agree, use_zero_pages):
    def workload(engine):
        one, other = members(engine)
        engine.ksmd.write("use_zero_pages", 1 - use_zero_pages)
        engine.rest()
        one.put(11, [0, 0, 0])
        engine.rest()
        other.put(11, [0])
        one.put(0, [3])
        engine.rest()

    agree(workload, use_zero_pages=use_zero_pages)


def test_the_limit_holds_for_zeros_too(agree, use_zero_pages):
    def workload(engine):
        one = engine.member(NR_PAGES)
        one.put(0, [0] * 16)
        engine.rest()
        one.discard(0, 5)
        engine.rest(chains=False)

    agree(workload, use_zero_pages=use_zero_pages, max_page_sharing=3)
