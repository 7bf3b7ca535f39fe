"""The prctl: all memory of a process, present and future, and what it takes out again."""

import pytest

import ksmemu

pytestmark = pytest.mark.root
NR_PAGES = 23
TWINS = [1, 2, 3, 4, 5]


def merged_by_prctl(engine):
    """Return a member that has never called madvise; its pages are merged with those of one that has."""
    one, other = engine.member(NR_PAGES, "open_ordinary_space"), engine.member(NR_PAGES)
    one.put(0, TWINS)
    other.put(3, TWINS)
    one.set_merge(True)
    assert engine.rest()["pages_sharing"] == len(TWINS)
    return one


def test_memory_that_is_there_and_that_comes(agree):
    def workload(engine):
        one = merged_by_prctl(engine)
        one.unmap(7, 3)
        one.map_again(7, 3)
        one.put(7, [1, 2])
        one.leave_the_rest_out()
        assert engine.rest()["pages_sharing"] == len(TWINS) + 2
        one.set_merge(False)
        assert engine.rest()["pages_sharing"] == 0

    agree(workload)


def test_a_range_is_opted_out(agree):
    def workload(engine):
        one = merged_by_prctl(engine)
        one.advise(1, 2, ksmemu.MADV_UNMERGEABLE)
        engine.rest()
        one.put(1, TWINS[1:2])
        one.leave_the_rest_out()
        assert engine.rest()["pages_sharing"] == len(TWINS) - 2
        one.set_merge(True)  # on already: the range stays out
        engine.rest()
        one.set_merge(False)
        engine.rest()
        one.set_merge(True)
        assert engine.rest()["pages_sharing"] == len(TWINS)

    agree(workload)


def test_what_madvise_marked_is_unmerged_too(agree):
    def workload(engine):
        one, other = engine.member(NR_PAGES), engine.member(NR_PAGES)
        one.put(0, TWINS)
        other.put(3, TWINS)
        one.set_merge(False)  # off already: nothing happens
        engine.rest()
        one.set_merge(True)
        engine.rest()
        one.set_merge(False)
        engine.rest()

    agree(workload)
