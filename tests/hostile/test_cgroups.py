"""A memory limit of a worker: what would not fit below it is refused before anything changes. Needs root."""

import errno
import os

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from tests.support import procmaps
from tests.support.cgroups import memory_group, times_at_limit
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root
PAGE = procmaps.PAGE
NR_PAGES = 8209
LIMIT = 24 << 20
"""More than the worker holds while its pages are merged, and less than all of them at home."""


@pytest.fixture
def group():
    with memory_group(f"ksmemu-{os.getpid()}", 1 << 40) as group:
        yield group


@pytest.fixture
def limited(ksmd, start_worker, group):
    """Two workers that share all their pages; the first one may not hold many more."""
    workers = [start_worker() for _ in range(2)]
    for worker in workers:
        worker.call(_make_space)
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES, what="merging")
    group.add(workers[0].pid)
    group.write("memory.limit_in_bytes" if group.is_v1 else "memory.max", LIMIT)
    return workers


def _make_space(state):
    state.space = ksmemu.AddressSpace(NR_PAGES * PAGE)
    state.space.mmap(state.space.size)
    state.space.madvise_all(MADV_MERGEABLE)
    for page in range(NR_PAGES):
        state.space.write(state.space.start + page * PAGE, _content(page))


def _content(page):
    return (b"%d " % page * PAGE)[:PAGE]


def _has_its_bytes(state):
    """A page at a time: a copy of all would not fit below the limit."""
    start = state.space.start
    return all(state.space.read(start + page * PAGE, PAGE) == _content(page) for page in range(NR_PAGES))


def _all_pages_are(state, perms):
    start, end = state.space.start, state.space.start + state.space.size
    return {mapping.perms for mapping in procmaps.mappings("self", start, end)} == {perms}


def test_run_2_that_a_worker_has_no_room_for_is_refused(ksmd, group, limited):
    assert ksmd.read("unmerge_bytes") == 2 * NR_PAGES * PAGE
    with pytest.raises(ksmemu.KsmError, match="run=2 refused, it is 0"):
        ksmd.write("run", 2)
    assert ksmd.read("pages_sharing") == NR_PAGES
    assert times_at_limit(group) == 0
    for worker in limited:
        assert worker.call(_all_pages_are, "rw-p")
        assert worker.call(_has_its_bytes)
    group.write("memory.limit_in_bytes" if group.is_v1 else "memory.max", 1 << 40)
    ksmd.write("run", 2)
    assert ksmd.read("unmerge_bytes") == 0
    for worker in limited:
        assert worker.call(_all_pages_are, "rw-s")
        assert worker.call(_has_its_bytes)


def test_unmergeable_that_the_worker_has_no_room_for_is_refused(ksmd, group, limited):
    assert limited[0].call(_unmerge) == errno.EAGAIN
    assert times_at_limit(group) == 0
    assert limited[0].call(_all_pages_are, "rw-p")
    assert limited[1].call(_unmerge) == 0
    for worker in limited:
        assert worker.call(_has_its_bytes)


def _unmerge(state):
    try:
        return state.space.madvise_all(MADV_UNMERGEABLE) or 0
    except OSError as error:
        return error.errno
