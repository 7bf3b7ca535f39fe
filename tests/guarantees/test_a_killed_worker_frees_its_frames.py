"""A worker that dies while its pages are merged gives its frames back at once, not with the next scan."""

import statistics
import time

import pytest

from tests.support import books, crew, procmaps
from tests.support.books import Member
from tests.support.waiting import wait_until

NR_PAGES, NR_ROUNDS = 5003, 7
FAST = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}
MEDIAN_SECONDS = 0.1


def seconds_to_release(ksmd, crew_of, timeout):
    """Kill both of two workers that share all their pages; return how long each one's frames were kept."""
    left, right = members = [Member.join(crew_of(ksmd), NR_PAGES) for _ in range(2)]
    for member in members:
        member.call(crew.fill_unique, 0, NR_PAGES, 1)
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="merging")
    # Nothing is scanned from here on: what is released is released by the death alone.
    ksmd.write("run", 0)
    first = seconds_to(lambda: ksmd.read("pages_sharing") == 0, left.worker, timeout)
    second = seconds_to(lambda: ksmd.read("pool_bytes") == 0, right.worker, timeout)
    books.check(ksmd, [])
    ksmd.write("run", 1)
    return first, second


def seconds_to(condition, worker, timeout):
    start = time.monotonic()
    worker.kill()
    wait_until(condition, timeout, what="the release of a dead worker's frames")
    return time.monotonic() - start


def test_frames_are_released_within_100_ms(ksmd, crew_of, show):
    before = procmaps.shm_names()
    times = []
    for _ in range(NR_ROUNDS):
        times += seconds_to_release(ksmd, crew_of, timeout=10.0)
    median, longest = statistics.median(times), max(times)
    show(
        f"{len(times)} workers killed with {NR_PAGES} merged pages each: frames released after "
        f"{median * 1e3:.1f} ms (median), {longest * 1e3:.1f} ms (longest)"
    )
    assert median <= MEDIAN_SECONDS
    assert procmaps.shm_names() == before


def test_it_would_be_noticed_if_a_death_released_nothing(start_ksmd, crew_of):
    ksmd = start_ksmd(broken="reap", module="tests.support.ksmd_main", **FAST)
    with pytest.raises(AssertionError, match="dead worker's frames did not come true"):
        seconds_to_release(ksmd, crew_of, timeout=2.0)
