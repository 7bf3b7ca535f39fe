"""What a scan finds after a fork: as much as without one."""

from tests.support import crew, forking
from tests.support.books import Member

NR_PAGES = 23
EQUAL = [1777, 1777, 1777]


def test_what_was_written_between_a_scan_and_a_fork_merges_still(stepped, crew_of):
    """The fork maps it anew, and with the mapping goes the kernel's mark that it was written."""
    member = Member.join(crew_of(stepped), NR_PAGES)
    member.call(crew.put, 0, range(1, NR_PAGES + 1))
    stepped.scan(3)
    assert stepped.read("pages_unshared") == NR_PAGES
    member.call(crew.put, 3, EQUAL)
    child = member.call(forking.fork)
    assert member.call(forking.end, child) == 0
    stepped.scan(4)
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == (1, 2)
    assert member.call(crew.differing, 3, EQUAL) == []
