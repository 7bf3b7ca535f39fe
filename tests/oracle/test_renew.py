"""Pages that are written with what they held, and how both count them."""

import pytest

from tests.oracle.test_smart_scan import step_and_note

pytestmark = pytest.mark.root


def test_they_are_merged_again_in_the_next_scan(agree):
    def workload(engine):
        one, other = engine.member(23), engine.member(23)
        for member in (one, other):
            member.put(0, range(1, 18))
        engine.rest()
        one.put(3, range(4, 11))
        step_and_note(engine, 1)

    agree(workload)


def test_a_frame_that_nobody_held_any_more_is_gone(agree):
    """The last page of a frame is written with what it held: the kernel has freed the frame by then."""

    def workload(engine):
        one, other = engine.member(7), engine.member(7)
        for member in (one, other):
            member.put(0, [1, 2, 3])
        engine.rest()
        one.put(1, [5])
        engine.rest()
        other.put(1, [2])
        engine.rest()

    agree(workload)


@pytest.mark.parametrize("is_first", [True, False], ids=["before", "behind"])
def test_so_is_one_that_all_its_pages_left_at_once(agree, is_first):
    """One page gets back what it held, the other something else, in either order of the scan."""

    def workload(engine):
        one, other = engine.member(7), engine.member(7)
        for member in (one, other):
            member.put(0, [1, 2, 3])
        engine.rest()
        (one if is_first else other).put(1, [2])
        (other if is_first else one).put(1, [5])
        engine.rest()

    agree(workload)


def test_all_pages_of_a_frame_at_once_take_the_room_of_others(agree):
    """With a limit: those that come back fill up the other frames of their content first."""

    def workload(engine):
        one = engine.member(13)
        one.put(0, [1] * 5)
        engine.rest()
        one.put(0, [1, 1, 2])
        engine.rest()
        one.put(3, [1, 1])
        engine.rest()

    agree(workload, max_page_sharing=3)


@pytest.mark.parametrize("before", [0, 1])
def test_zeros_are_what_use_zero_pages_says_now(agree, before):
    def workload(engine):
        one, other = engine.member(13), engine.member(13)
        for member in (one, other):
            member.put(0, [0] * 5 + [1])
        engine.rest()
        engine.ksmd.write("use_zero_pages", 1 - before)
        one.put(1, [0, 0, 0])
        engine.rest()

    agree(workload, use_zero_pages=before)


def test_zeros_wait_for_a_scan_where_they_show_the_zero_page(agree):
    def workload(engine):
        one = engine.member(13)
        one.put(0, [0] * 5 + [1])
        engine.rest()
        one.put(1, [0, 0, 0])
        for _ in range(2):
            engine.step()
            engine.notes.append(engine.ksmd.read("ksm_zero_pages"))

    agree(workload, use_zero_pages=1)


def test_smart_scan_passes_over_those_that_are_old(agree):
    """A page that is written again and again gets old, and a scan that skips it does not merge it."""

    def workload(engine):
        one, other = engine.member(13), engine.member(13)
        for member in (one, other):
            member.put(0, [1, 2, 3])
        step_and_note(engine, 3)
        for _ in range(3):
            one.put(1, [2])
            step_and_note(engine, 1)
        assert engine.notes[-1]["pages_skipped"] == 1
        step_and_note(engine, 5)

    agree(workload, smart_scan=1)
