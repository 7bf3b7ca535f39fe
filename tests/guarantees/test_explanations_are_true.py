"""What `ksmemu explain` says of a page agrees with what is really mapped, and its figures with a recount."""

import random
from collections import Counter

import pytest

from ksmemu.control.reasons import Reason
from tests.support import books, crew, procmaps
from tests.support.books import Member
from tests.support.explained import assert_adds_up, by_page, totals
from tests.support.procmaps import PAGE

FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}
NR_PAGES = 101
NR_CONTENTS = 113


@pytest.fixture
def at_rest(crew_of):
    """Make members with random contents, written anew in part; return them when nothing changes any more."""

    def settle(ksmd):
        members, chance = [Member.join(crew_of(ksmd), NR_PAGES) for _ in range(3)], random.Random(4711)
        for member in members:
            member.call(crew.put, 0, chance.choices(range(1, NR_CONTENTS), k=NR_PAGES))
        ksmd.wait_full_scans(5)
        for member in members:
            member.call(crew.put, 17, chance.choices(range(1, NR_CONTENTS), k=23))
        books.wait_at_rest(ksmd)
        ksmd.write("run", 0)
        return members

    return settle


def shows_a_frame(member):
    """Return address -> whether the page is mapped from the pool, as the kernel has it."""
    pid, start, end = member.space
    return {
        address: mapping.perms.endswith("p") and mapping.inode != 0
        for mapping in procmaps.mappings(pid, start, end)
        for address in range(mapping.start, mapping.end, PAGE)
    }


def assert_true(ksmd, members):
    """Every page that shows a frame is explained as merged, no other one is, and nothing is left out."""
    for member in members:
        found, shown = by_page(ksmd, member.worker.pid), shows_a_frame(member)
        assert {address for address, reason in found.items() if reason is Reason.MERGED} == {
            address for address, is_shown in shown.items() if is_shown
        }
        assert found.keys() == shown.keys()
        assert Counter(found.values()) == totals(ksmd, member.worker.pid)
    recounted = books.check(ksmd, members)
    assert totals(ksmd) == {Reason.MERGED: recounted.merged, Reason.UNIQUE: recounted.own}
    assert_adds_up(ksmd)


def test_a_page_is_explained_as_merged_if_it_is_and_never_otherwise(start_ksmd, at_rest):
    ksmd = start_ksmd(**FAST)
    assert_true(ksmd, at_rest(ksmd))


def test_it_would_be_noticed_if_a_merged_page_were_explained_as_unique(start_ksmd, at_rest):
    ksmd = start_ksmd(broken="explain", module="tests.support.ksmd_main", **FAST)
    members = at_rest(ksmd)
    with pytest.raises(AssertionError, match=r"set\(\)"):
        assert_true(ksmd, members)
