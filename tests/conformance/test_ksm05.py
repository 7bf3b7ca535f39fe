"""LTP ksm05 (CVE-2011-2183): for ten seconds children advise a page and die at once; the scanner survives."""

import ctypes
import os
import resource
import signal

import ksmemu
from tests.support.procmaps import PAGE
from tests.support.scanning import merge
from tests.support.waiting import run_for, wait_until

SECONDS = 10.0


def bear_one_that_dies(state):
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        space = ksmemu.AddressSpace(PAGE)
        space.madvise(space.mmap(PAGE), PAGE, ksmemu.MADV_MERGEABLE)
        space.write(space.start, b"any")
        ctypes.string_at(0)
    _, status = os.waitpid(pid, 0)
    return -os.waitstatus_to_exitcode(status)


def test_ksm05(ksmd, child):
    mothers = [child(), child()]
    ksmd.write("run", 1)
    for _ in run_for(SECONDS):
        for mother in mothers:
            mother.start(bear_one_that_dies)
        assert {mother.finish() for mother in mothers} == {signal.SIGSEGV}
    wait_until(lambda: ksmd.read("workers") == 0, what="the end of the dead")
    assert ksmd.read("pages_shared") == ksmd.read("pool_bytes") == 0


def test_the_scanner_still_merges_after_that(ksmd, child, area):
    child().call(bear_one_that_dies)
    area(7).call(lambda state: state.space.write(state.start, b"x" * 2 * PAGE))
    merge(ksmd, scans=3)
    assert ksmd.read("pages_sharing") == 1
