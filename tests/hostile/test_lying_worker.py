"""A worker that lies about its memory, or does too much of everything: it spoils only itself."""

import contextlib
import os

import pytest

from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from ksmemu.wire import ReportKind
from tests.support import procmaps
from tests.support.fakes import PAGE, FakeWorker, connect
from tests.support.processes import Worker
from tests.support.waiting import over_and_over

NR_PAGES = 29


@pytest.fixture(scope="module")
def ksmd(lasting_ksmd):
    return lasting_ksmd


@pytest.fixture
def honest(lasting):
    return lasting


@pytest.fixture
def fake(ksmd, honest):
    """Joined, without a space; nobody obeys its orders."""
    with FakeWorker(ksmd.directory) as fake:
        yield fake


def own_inodes(honest):
    """Return the inodes of its own objects; a page of each is mapped from there, and merged no more."""
    spans = honest.worker.call(unmerge_one)
    maps = [m for start, end in spans for m in procmaps.mappings(honest.pid, start, end)]
    return {mapping.inode for mapping in maps if "s" in mapping.perms}


def mapped_inodes(pid):
    return {mapping.inode for mapping in procmaps.mappings(pid)}


def test_ksmd_maps_no_object_of_a_worker_so_none_can_raise_sigbus_there(ksmd, honest):
    own = own_inodes(honest)
    assert len(own) == 2
    assert own <= mapped_inodes(honest.pid), "the control"
    assert not own & mapped_inodes(ksmd.pid)
    assert not [m.path for m in procmaps.mappings(ksmd.pid) if "memfd" in m.path or "/dev/shm" in m.path]
    honest.worker.call(advise_all)


def unmerge_one(state):
    """Let the first page of each space be mapped from its own object; return where the spaces are."""
    for space in state.spaces:
        space.madvise(space.start, PAGE, MADV_UNMERGEABLE)
    return [(space.start, space.start + space.size) for space in state.spaces]


def advise_all(state):
    for space in state.spaces:
        space.madvise_all(MADV_MERGEABLE)


def test_an_object_that_shrinks_and_grows_under_the_scan_harms_nobody(ksmd, fake):
    """Whatever ksmd is just doing with it: counting, looking for data, reading, filling frames from it."""
    data = os.urandom(NR_PAGES * PAGE) * 2
    own = fake.own(data)
    space = fake.register(own, 2 * NR_PAGES)
    fake.report(ReportKind.ADVISED, space, (0, 2 * NR_PAGES, 0))

    def shrink_and_grow():
        os.truncate(own, 0)
        os.truncate(own, NR_PAGES * PAGE + 1)
        os.pwrite(own, data, 0)

    with over_and_over(shrink_and_grow):
        ksmd.wait_full_scans(211)
    os.close(own)


def test_the_object_of_another_worker_is_no_way_to_its_pages(ksmd, honest, fake):
    """Who may open it anyway registers it as its own, and reports of it what it likes."""
    inodes = own_inodes(honest)
    number = next(fd for fd in procmaps.descriptors(honest.pid) if inode_of(honest.pid, fd) in inodes)
    own = os.open(f"/proc/{honest.pid}/fd/{number}", os.O_RDONLY)
    space = fake.register(own, honest.nr_pages)
    fake.report(ReportKind.ADVISED, space, (0, honest.nr_pages, 0))
    ksmd.wait_full_scans(5)
    for kind in (ReportKind.UNADVISED, ReportKind.UNMAPPED, ReportKind.CLOSED):
        fake.report(kind, space, (0, honest.nr_pages, 0))
    honest.worker.call(advise_all)
    honest.assert_is_served()
    os.close(own)


def inode_of(pid, fd):
    with contextlib.suppress(FileNotFoundError):
        return os.stat(f"/proc/{pid}/fd/{fd}").st_ino
    return None


def test_a_flood_of_connections_delays_nobody(ksmd, honest):
    with Worker(ksmd.directory) as flooding:
        flooding.start(connect_and_leave, ksmd.directory)
        ksmd.wait_full_scans(53)
        honest.assert_is_served()
        ksmd.write("sleep_millisecs", 3)
        assert not flooding.is_done()
        flooding.kill()


def connect_and_leave(state, directory):
    while True:
        with contextlib.suppress(OSError), connect(directory) as control:
            control.send(b"{}")


def test_a_flood_of_spaces_and_advice_delays_nobody(ksmd, honest, fake):
    own = fake.own(os.urandom(PAGE))

    def come_and_go():
        space = fake.register(own, 1)
        fake.report(ReportKind.ADVISED, space, (0, 1, 0))
        fake.report(ReportKind.CLOSED, space)

    with over_and_over(come_and_go):
        ksmd.wait_full_scans(53)
        honest.assert_is_served()
    os.close(own)
