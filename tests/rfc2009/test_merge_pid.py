"""Patch 4/4: "scanning procsses that were not modifided to use ksm", with the original parsing."""

import os

import pytest

import ksmemu
from tests.rfc2009.conftest import FILLED, NR_PAGES
from tests.rfc2009.test_madvise import shown
from tests.support import crew
from tests.support.waiting import wait_until

FILES = ("merge_pid", "unmerge_pid")


def merge(ksm, *processes):
    for one in processes:
        ksm.write("merge_pid", one.pid)
    # What has been advised is ordinary memory no more.
    wait_until(lambda: not any(shown(one).zero for one in processes), what="the processes to obey")
    ksm.scan()


def test_memory_will_be_merged(ksm, mm):
    """ "just run: echo pid_num > /sys/kernel/mm/ksm/merge_pid - and memory will be merged." """
    pair = mm(advised=False), mm(advised=False)
    merge(ksm, *pair)
    assert ksm.counters() == (NR_PAGES, NR_PAGES)
    assert all(one.call(crew.differing, 0, FILLED) == [] for one in pair)


def map_again(state):
    state.spaces = [state.space]
    crew.open_ordinary_space(state, NR_PAGES)
    crew.put(state, 0, FILLED)


def test_a_vma_created_later_is_covered_at_once(ksm, mm):
    pair = mm(advised=False), mm(advised=False)
    merge(ksm, *pair)
    pair[0].call(map_again)
    ksm.scan()
    assert ksm.counters() == (NR_PAGES, 2 * NR_PAGES)


def test_unmerge_pid_only_clears_the_flag(ksm, mm):
    """The write unmerges nothing; the pages are broken when the scanner drops the space."""
    pair = mm(advised=False), mm(advised=False)
    merge(ksm, *pair)
    ksm.write("sleep", 2**32 - 1)
    ksm.write("unmerge_pid", pair[0].pid)
    assert shown(pair[0]).merged == NR_PAGES
    ksm.write("sleep", 1000)
    ksm.scan()
    wait_until(lambda: shown(pair[0]).own == NR_PAGES, what="the pages to be broken")
    assert ksm.counters() == (NR_PAGES, 0)
    assert ksm.read("spaces") == 2, "the mm stays on the mmlist"


def test_unmerge_pid_of_a_process_that_has_advised_too_leaves_pages_merged(ksm, mm):
    pair = mm(advised=False), mm(advised=False)
    for one in pair:
        one.call(crew.advise, 0, 7, ksmemu.MADV_SHAREABLE)
    merge(ksm, *pair)
    ksm.write("unmerge_pid", pair[0].pid)
    ksm.scan(5)
    assert shown(pair[0]).merged == NR_PAGES
    assert ksm.counters() == (NR_PAGES, 7)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("junk", ["junk", "", "-1", "7 ", "0x7", str(2**70), str(2**22 + 1), "1", "0"])
def test_junk_and_unknown_pids_are_accepted_silently(ksm, mm, name, junk):
    one = mm(advised=False)
    file = ksm.directory / "sys/kernel/mm/ksm" / name
    with file.open("r+b", buffering=0) as held:
        os.ftruncate(held.fileno(), 0)
        held.write(junk.encode() + b"\n")
    wait_until(lambda: file.read_text().isspace(), what="the file to be as it was")
    ksm.write("pages_to_scan", 1009)  # and it goes on
    assert ksm.read("workers") == 0
    assert one.call(crew.differing, 0, FILLED) == []


def test_reading_either_file_gives_an_empty_line(ksm, mm):
    one = mm(advised=False)
    merge(ksm, one)
    for name in FILES:
        assert (ksm.directory / "sys/kernel/mm/ksm" / name).read_text().strip(" ") == "\n"


def fork_and_map(_):
    pid = os.fork()
    if pid == 0:
        with ksmemu.AddressSpace(4096) as space:
            space.mmap(4096)
            os._exit(int(space.is_advised))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:fork with an advised")
def test_a_child_is_not_scanned(ksm, mm):
    one = mm(advised=False)
    merge(ksm, one)
    assert one.call(fork_and_map) == 0
