"""The cursor: how far it goes, how often, and what it never looks at again."""

import pytest

from ksmemu.control.tunables import U32_MAX
from tests.support.waiting import wait_until


def fill_twins(memory, ksmd, nr_pages=23):
    twins = [memory(ksmd, nr_pages) for _ in range(2)]
    for twin in twins:
        twin.fill(range(nr_pages))
    return twins


def test_nothing_merges_after_one_full_scan_and_all_after_two(stepped, memory):
    fill_twins(memory, stepped)
    stepped.scan()
    assert (stepped.read("full_scans"), stepped.read("merges")) == (1, 0)
    stepped.scan()
    assert (stepped.read("full_scans"), stepped.read("merges")) == (2, 46)
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == (23, 23)


@pytest.mark.parametrize("batch", [1, 7, 22])
def test_a_batch_takes_pages_to_scan_pages(start_ksmd, memory, batch):
    ksmd = start_ksmd(pages_to_scan=batch, sleep_millisecs=1_000_003)
    fill_twins(memory, ksmd)
    for turn in range(1, 3):
        ksmd.write("run", 1)
        wait_until(lambda n=turn: ksmd.read("pages_scanned") >= n * batch)
        ksmd.write("run", 0)
        assert ksmd.read("pages_scanned") == turn * batch
        assert ksmd.read("full_scans") == 0


def test_a_full_scan_passes_every_page_once(stepped, memory):
    fill_twins(memory, stepped)
    for turn in range(1, 5):
        stepped.scan()
        assert stepped.read("pages_scanned") == turn * 46


def test_the_cursor_goes_on_where_it_stopped(start_ksmd, memory):
    ksmd = start_ksmd(run=1, pages_to_scan=5, sleep_millisecs=0)
    fill_twins(memory, ksmd, 101)
    wait_until(lambda: ksmd.read("pages_sharing") == 101, what="merging in small steps")


def test_a_long_sleep_is_slept_and_a_shorter_one_ends_it(start_ksmd, memory):
    ksmd = start_ksmd(run=1, pages_to_scan=1_000_003, sleep_millisecs=U32_MAX)
    fill_twins(memory, ksmd)
    wait_until(lambda: ksmd.read("full_scans") == 1)
    ksmd.write("use_zero_pages", 1)  # it answers in its sleep
    assert ksmd.read("full_scans") == 1
    ksmd.write("sleep_millisecs", 0)
    ksmd.wait_full_scans(3)
    assert ksmd.read("pages_sharing") == 23


def test_no_pages_to_scan_is_no_scan(start_ksmd, memory):
    ksmd = start_ksmd(run=1, pages_to_scan=0, sleep_millisecs=1)
    fill_twins(memory, ksmd)
    for value in (2, 3, 5):
        ksmd.write("sleep_millisecs", value)
    assert (ksmd.read("full_scans"), ksmd.read("pages_scanned")) == (0, 0)
    ksmd.write("pages_to_scan", 1009)
    ksmd.wait_full_scans(3)
    assert ksmd.read("pages_sharing") == 23


def test_without_a_space_nothing_is_scanned(start_ksmd):
    ksmd = start_ksmd(run=1, pages_to_scan=1009, sleep_millisecs=0)
    for value in (1, 2, 3):
        ksmd.write("sleep_millisecs", value)
    assert ksmd.read("full_scans") == 0


def test_a_space_without_data_is_scanned_too(stepped, memory):
    memory(stepped)
    stepped.scan(3)
    assert (stepped.read("full_scans"), stepped.read("pages_scanned")) == (3, 0)
