"""Each call that ksmd makes of the core fails: it has the whole answer, or an errno."""

import errno
import os

import numpy as np
import pytest

from ksmemu import _core
from tests.core.test_faults import FAIL, HALF, faults_of
from tests.support.children import in_child
from tests.support.procmaps import PAGE
from tests.support.stage import stage

NR_PAGES = 61
PAGES = np.array([3, 4, 5, 11, *range(20, 57)], np.uint64)
FRAMES = np.arange(2, 2 + len(PAGES), dtype=np.uint64)
TRIED_AGAIN = {(FAIL, errno.EINTR), (HALF, 0)}


def checksum(on):
    found = np.zeros(len(PAGES), np.uint64)
    _core.checksum_pages(on.space.own, PAGES, 7, found)
    return found.tolist()


def fill(on):
    found = np.zeros(len(PAGES), np.uint64)
    _core.fill_frames(on.space.own, PAGES, on.space.pool, FRAMES, 7, found)
    assert all(on.space.pool_holds(f) == on.space.object_holds(p) for p, f in zip(PAGES, FRAMES, strict=True))
    return found.tolist()


def harvest(on):
    on.put(11, b"written")
    return on.space.harvest()


def find_broken(on):
    return on.space.broken(3, 6)


def find_data(on):
    return list(_core.data_extents(on.space.own, 0, NR_PAGES * PAGE))


def punch(on):
    return _core.punch(on.space.pool, 0, PAGE)


def reserve(_):
    start = _core.reserve(PAGE)
    _core.map_ordinary(start, PAGE)
    _core.protect(start, PAGE, 0)
    _core.map_nothing(start, PAGE)
    _core.unreserve(start, PAGE)


def probe_userfaultfd(_):
    return _core.probe_userfaultfd()


def probe_pagemap_scan(_):
    return _core.probe_pagemap_scan()


CALLS = [
    checksum,
    fill,
    harvest,
    find_broken,
    find_data,
    punch,
    reserve,
    probe_userfaultfd,
    probe_pagemap_scan,
]


@pytest.mark.parametrize("call", CALLS)
def test_a_fault_is_an_errno_or_makes_no_difference(faulty, call):
    assert faulty.call(drive, call)


def drive(_, call):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with stage(nr_pages=NR_PAGES) as on:
        on.twin(*((int(page), None) for page in PAGES), (57, None))
        on.twin((3, 58), (4, 59))
        on.merge((3, 58, 2), (5, 60, 1))
        on.put(4, b"broken")
        on.space.harvest()
        with faults.fault() as calls:
            clean = call(on)
        played = faults_of(calls)
        for fault in played:
            with faults.fault(fault):
                errors, found = _try(call, on)
            assert found == clean or (errors == fault[3] and fault[2:] not in TRIED_AGAIN), fault
            assert call(on) == clean
        on.check()
    return played


def _try(call, on):
    try:
        return 0, call(on)
    except OSError as error:
        return error.errno, None


TOGETHER = {
    "not one byte of a frame fits": (fill, [("pwrite", 0, HALF, 0)], errno.ENOSPC),
    "before Linux 6.7, and a pagemap that cannot be read": (
        find_broken,
        [("scan", 1, FAIL, errno.ENOTTY), ("pread", 1, FAIL, errno.EIO)],
        errno.EIO,
    ),
}


@pytest.mark.parametrize("what", TOGETHER)
def test_faults_that_come_together_are_an_errno_too(faulty, what):
    faulty.call(fail_together, *TOGETHER[what])


def fail_together(_, call, chosen, error):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with stage(nr_pages=NR_PAGES) as on:
        on.twin(*((int(page), None) for page in PAGES))
        with faults.fault(*chosen):
            assert _try(call, on) == (error, None)
        assert _try(call, on)[0] == 0
        on.check()


@in_child
def test_an_object_that_ends_early_is_enodata():
    with stage(nr_pages=NR_PAGES) as on:
        os.truncate(on.space.own, 22 * PAGE)
        for call in (checksum, fill):
            assert _try(call, on) == (errno.ENODATA, None)
        os.truncate(on.space.own, NR_PAGES * PAGE)


@in_child
def test_before_linux_6_7_entries_are_read_in_turns():
    """A file stands for the pagemap: it does not know PAGEMAP_SCAN either."""
    entries = np.zeros(2100, np.uint64)
    entries[[3, 4, 5, 1030, 2099]] = 1 << 63  # present
    entries[7] = 1 << 63 | 1 << 61  # of a file
    entries[9] = 1 << 62  # swapped out
    pagemap = os.memfd_create("pagemap")
    os.write(pagemap, entries.tobytes())
    found = np.frombuffer(_core.find_private(pagemap, 0, 2100 * PAGE), np.uint64).reshape(-1, 2) // PAGE
    assert found.tolist() == [[3, 6], [9, 10], [1030, 1031], [2099, 2100]]
    with pytest.raises(ProcessLookupError):  # as of a process that is gone
        _core.find_private(pagemap, 2100 * PAGE, 2101 * PAGE)
    os.close(pagemap)


@in_child
def test_more_than_one_call_has_room_for_is_found_in_turns():
    """4,096 ranges: each second page is one."""
    pages = np.arange(3, 9001, 2)
    entries = np.zeros(9001, np.uint64)
    entries[pages] = 1 << 63
    pagemap = os.memfd_create("pagemap")
    os.write(pagemap, entries.tobytes())
    data = os.memfd_create("data")
    os.truncate(data, 9001 * PAGE)
    for page in pages.tolist():
        os.pwrite(data, b"x", page * PAGE)
    for found in (
        _core.find_private(pagemap, 0, 9001 * PAGE),
        _core.data_extents(data, 0, 9001 * PAGE),
    ):
        starts, ends = np.frombuffer(found, np.uint64).reshape(-1, 2).T // PAGE
        assert starts.tolist() == pages.tolist()
        assert (ends == starts + 1).all()
    os.close(data)
    os.close(pagemap)
