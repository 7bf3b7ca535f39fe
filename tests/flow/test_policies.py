"""A policy says what to try, and when; what merges is equal under each, and counters mean the same."""

import numpy as np
import pytest

from ksmemu import Ksmd
from ksmemu.control.reasons import Reason
from ksmemu.policy import POLICIES, Hints, Policy
from tests.support import books
from tests.support.explained import reasons
from tests.support.pages import content
from tests.support.waiting import wait_until

NR_PAGES = 101
TWINS = range(0, NR_PAGES, 2)
ALONE = range(1, NR_PAGES, 2)
HERE = __name__


class OnlyCrowds(Policy):
    """Two equal pages are not worth a frame."""

    def chosen(self, nr_equal):
        return nr_equal > 2


class Nothing(Policy):
    def candidates(self, seen):
        return np.zeros_like(seen.quiet)


class Everything(Policy):
    """Names pages that are not to be had, too: merged ones, written ones."""

    def candidates(self, seen):
        return np.ones_like(seen.quiet)


class LastFirst(Hints):
    def order(self, spaces):
        return spaces[::-1]


def spans(*memories):
    return [("self", one.start, one.end) for one in memories]


def twins(memory, ksmd, nr=2):
    """Spaces; pages with an even number are equal in all, the others are like no other page."""
    spaces = [memory(ksmd, NR_PAGES) for _ in range(nr)]
    for number, one in enumerate(spaces, 1):
        one.fill(TWINS)
        one.fill(ALONE, seed=number)
    return spaces


def assert_bytes_are_right(spaces):
    for number, one in enumerate(spaces, 1):
        for page in range(NR_PAGES):
            assert one.read(page) == content(repr((0 if page in TWINS else number, page)))


@pytest.mark.parametrize("policy", [*POLICIES, f"{HERE}:Everything", f"{HERE}:LastFirst"])
def test_what_is_equal_merges(start_stepped, memory, policy):
    ksmd = start_stepped(policy=policy, smart_scan=0)
    spaces = twins(memory, ksmd, 3)
    ksmd.scan(5)  # what lies between merged pages is not armed after the merge: it counts as written once
    assert (ksmd.read("pages_shared"), ksmd.read("pages_sharing")) == (len(TWINS), 2 * len(TWINS))
    assert ksmd.read("pages_unshared") == 3 * len(ALONE)
    books.check_spaces(ksmd, spans(*spaces))
    spaces[1].write(TWINS[3], b"mine")
    ksmd.scan(4)
    books.check_spaces(ksmd, spans(*spaces))
    assert spaces[1].read(TWINS[3])[:4] == b"mine"
    spaces[1].fill([TWINS[3]])
    assert_bytes_are_right(spaces)


@pytest.mark.parametrize(("policy", "nr_scans"), [("written", 2), ("checksum", 2), ("hints", 1)])
def test_a_hint_saves_a_scan(start_stepped, memory, policy, nr_scans):
    ksmd = start_stepped(policy=policy)
    twins(memory, ksmd)
    ksmd.scan(nr_scans - 1)
    assert ksmd.read("pages_sharing") == 0
    ksmd.scan()
    assert ksmd.read("pages_sharing") == len(TWINS)


def test_what_a_policy_does_not_name_never_merges(start_stepped, memory):
    ksmd = start_stepped(policy=f"{HERE}:Nothing")
    twins(memory, ksmd)
    ksmd.scan(5)
    assert (ksmd.read("merges"), ksmd.read("pages_volatile")) == (0, 2 * NR_PAGES)


def test_what_a_policy_does_not_choose_waits_for_more_of_the_same(start_stepped, memory):
    ksmd = start_stepped(policy=f"{HERE}:OnlyCrowds", smart_scan=0)
    spaces = twins(memory, ksmd)
    ksmd.scan(4)
    assert (ksmd.read("merges"), ksmd.read("pages_unshared")) == (0, 2 * NR_PAGES)
    third = memory(ksmd, NR_PAGES)
    third.fill(TWINS)
    third.fill(ALONE, seed=3)
    ksmd.scan(2)
    assert (ksmd.read("pages_shared"), ksmd.read("pages_sharing")) == (len(TWINS), 2 * len(TWINS))
    books.check_spaces(ksmd, spans(*spaces, third))
    assert_bytes_are_right([*spaces, third])


@pytest.mark.parametrize(("policy", "first"), [("written", 0), ("hints", 1), (f"{HERE}:LastFirst", 1)])
def test_spaces_are_scanned_in_the_order_of_the_policy(start_stepped, memory, policy, first):
    """A batch passes one of two spaces, or a part of it; the second has more that is new."""
    ksmd = start_stepped(policy=policy, pages_to_scan=len(TWINS))
    spaces = [memory(ksmd, NR_PAGES) for _ in range(2)]
    spaces[0].fill(TWINS)
    spaces[1].fill(range(NR_PAGES))
    ksmd.write("run", 1)
    wait_until(lambda: ksmd.read("pages_scanned") > 0, what="a batch")
    ksmd.write("run", 0)
    is_seen = [any(reasons(ksmd, one)[page] is not Reason.NEW for page in TWINS) for one in spaces]
    assert is_seen == [first == 0, first == 1]


def test_a_mode_of_its_own_has_no_policy_besides():
    with pytest.raises(ValueError, match="not together: secure and policy hints"):
        Ksmd(secure=True, policy="hints")
