"""Joining and leaving: nothing is paid before the first advice, nothing is left after the last close."""

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE, AddressSpace, NotRunningError
from tests.support import procmaps
from tests.support.pages import content
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until


def held():
    """Return how many threads this process has, and which descriptors."""
    return procmaps.threads("self"), sorted(
        (fd, what) for fd, what in procmaps.descriptors("self").items() if "/proc/" not in what
    )


def test_nothing_is_paid_before_the_first_advice(ksmd):
    before = held()
    with AddressSpace(23 * PAGE, instance=ksmd.directory) as space:
        at = space.mmap(7 * PAGE)
        space.write(at, content("x"))
        assert space.madvise(at, 7 * PAGE, MADV_UNMERGEABLE) == 0
        space.munmap(at, PAGE)
        assert held() == before
    assert ksmd.read("workers") == 0


def test_two_spaces_share_one_thread_and_the_last_takes_it_away(ksmd, memory):
    before = held()
    first = memory(ksmd)
    one = held()
    second = memory(ksmd)
    two = held()
    assert one[0] == two[0] == before[0] + 1
    assert len(two[1]) == len(one[1]) + 1, "its own object"
    first.space.close()
    assert held()[0] == one[0]
    second.space.close()
    assert held() == before
    wait_until(lambda: ksmd.read("workers") == ksmd.read("spaces") == 0)


def test_a_space_stays_registered_when_nothing_is_mergeable_any_more(ksmd, memory):
    one = memory(ksmd)
    one.write(3, content("x"))
    wait_until(lambda: ksmd.read("pages_tracked") == 1)
    one.advise(MADV_UNMERGEABLE)
    wait_until(lambda: ksmd.read("pages_tracked") == 0)
    assert ksmd.read("spaces") == 1
    one.space.close()
    wait_until(lambda: ksmd.read("spaces") == 0)


def test_without_ksmd_advice_is_refused_and_nothing_is_changed(tmp_path):
    before = held()
    with AddressSpace(23 * PAGE, instance=tmp_path / "nobody") as space:
        at = space.mmap(23 * PAGE)
        space.write(at, content("x"))
        with pytest.raises(NotRunningError, match="nobody"):
            space.madvise(at, 23 * PAGE, MADV_MERGEABLE)
        assert held() == before
        assert not space.is_advised
        assert space.read(at, PAGE) == content("x")
        assert [m.perms for m in procmaps.mappings("self", at, at + 23 * PAGE)] == ["rw-p"]


def test_without_ksmd_memory_goes_on_and_unmerges_by_itself(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    stepped.stop()
    one = twins[0]
    assert one.read(3) == content(repr((0, 3)))
    one.write(7, b"alone")
    assert one.read(7, 5) == b"alone"
    assert one.advise(MADV_UNMERGEABLE) == 0
    assert [m.perms for m in procmaps.mappings("self", one.start, one.end)] == ["rw-s"]
    assert one.read(7) == b"alone" + content(repr((0, 7)))[5:]
    assert twins[1].read(7) == content(repr((0, 7)))
    with pytest.raises(NotRunningError):
        one.advise()


def fill_two_spaces(state):
    """In a worker: two spaces of the same 23 pages."""
    state.spaces = [ksmemu.AddressSpace(23 * PAGE) for _ in range(2)]
    for space in state.spaces:
        at = space.mmap(23 * PAGE)
        space.write(at, b"".join(content(page) for page in range(23)))
        space.madvise(at, 23 * PAGE, MADV_MERGEABLE)


def test_a_worker_that_was_killed_gives_everything_back(ksmd, start_worker):
    worker = start_worker()
    worker.call(fill_two_spaces)
    ksmd.wait_full_scans(3)
    assert ksmd.read("pages_sharing") == 23
    worker.kill()
    wait_until(lambda: ksmd.read("workers") == ksmd.read("spaces") == ksmd.read("pool_bytes") == 0)
    wait_until(lambda: ksmd.read("pages_shared") == ksmd.read("pages_tracked") == 0)
