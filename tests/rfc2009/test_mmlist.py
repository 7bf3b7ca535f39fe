"""Patches 2/4 and 3/4: who is scanned, for how long, and what `run` does."""

import time

from ksmemu import MADV_UNSHAREABLE
from tests.rfc2009.conftest import FILLED, NR_PAGES
from tests.support import crew, procmaps
from tests.support.waiting import wait_until


def test_a_space_stays_listed_until_it_dies(ksm, mm):
    """An admitted flaw: also when nothing of it is mergeable any more; it costs scan time, not memory."""
    one = mm()
    ksm.scan()
    one.call(crew.advise, 0, NR_PAGES, MADV_UNSHAREABLE)
    ksm.scan(7)  # scans go on, though there is nothing to scan
    assert (ksm.read("spaces"), ksm.read("pages_tracked")) == (1, 0)
    one.call(crew.close_space)
    wait_until(lambda: ksm.read("spaces") == 0, what="the space to go")
    still = ksm.read("full_scans")
    ksm.write("sleep", 1000)
    assert ksm.read("full_scans") == still


def test_a_dying_process_keeps_its_memory_until_the_scanner_passes(ksm, mm):
    """An admitted flaw. The scanner sleeps for ever here, so nothing passes."""
    pair = mm(), mm()
    ksm.scan()
    ksm.write("sleep", 2**32 - 1)
    seen = ksm.counters()
    assert seen == (NR_PAGES, NR_PAGES)
    for one in pair:
        one.kill()
    _hear_of_the_death(ksm)
    assert ksm.counters() == seen
    assert ksm.read("pool_bytes") == NR_PAGES * procmaps.PAGE
    ksm.write("sleep", 1000)  # wakes it: it passes
    wait_until(lambda: ksm.counters() == (0, 0), what="the memory to be freed")
    assert ksm.read("pool_bytes") == ksm.read("spaces") == 0


def _hear_of_the_death(ksm):
    """Let ksmd go round its loop some times: what it did on a death, it has done."""
    for pages in (1009, 1_000_003, 1009, 1_000_003):
        ksm.write("pages_to_scan", pages)


def test_run_0_unmerges_everything(ksm, mm):
    """An admitted flaw: `echo 0 > run` throws away all that was saved."""
    pair = mm(), mm()
    ksm.scan()
    ksm.write("run", 0)
    assert ksm.counters() == (0, 0)
    assert ksm.read("pool_bytes") == 0
    assert all(one.call(crew.differing, 0, FILLED) == [] for one in pair)
    ksm.scan()
    assert ksm.counters() == (NR_PAGES, NR_PAGES)


def test_run_0_lets_the_dead_go(ksm, mm):
    pair = mm(), mm()
    ksm.scan()
    ksm.write("sleep", 2**32 - 1)
    pair[0].kill()
    _hear_of_the_death(ksm)
    assert ksm.read("spaces") == 2
    ksm.write("run", 0)
    assert (ksm.read("spaces"), ksm.read("pool_bytes")) == (1, 0)


def test_who_dies_while_nothing_is_scanned_is_gone_at_once(ksm, mm):
    one = mm()
    one.kill()
    wait_until(lambda: ksm.read("spaces") == 0, what="the space to go")


def test_sleep_is_in_microseconds(ksm, mm):
    """A scan a batch: five of them sleep at least 0.8 s between each other, and do not take minutes."""
    mm()
    ksm.write("sleep", 200_000)
    ksm.scan(1)
    since = time.monotonic()
    ksm.wait_full_scans(5)
    assert time.monotonic() - since >= 0.8


def test_max_kernel_pages_bounds_the_frames(ksm, mm):
    ksm.write("max_kernel_pages", 7)
    pair = mm(), mm()
    ksm.scan(5)
    assert ksm.counters() == (7, 7)
    assert all(one.call(crew.differing, 0, FILLED) == [] for one in pair)
    ksm.write("max_kernel_pages", 0)  # no limit
    for one in pair:
        one.call(crew.put, 0, FILLED)
    ksm.scan(5)
    assert ksm.counters() == (NR_PAGES, NR_PAGES)


def test_there_is_no_sharing_limit_and_no_zero_page(ksm, mm):
    one = mm()
    one.call(crew.put, 0, [0] * NR_PAGES)
    ksm.scan()
    assert ksm.counters() == (1, NR_PAGES - 1)
