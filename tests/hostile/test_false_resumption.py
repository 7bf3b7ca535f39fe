"""A worker that claims to have been another ksmd's: it gets no pool but its own, and spoils nothing."""

import contextlib
import os
import socket
import struct

import pytest

from ksmemu import wire
from ksmemu.wire import ReportKind
from tests.support import crew, procmaps
from tests.support.fakes import PAGE, FakeWorker, connect, is_refused
from tests.support.waiting import wait_until

NR_PAGES = 23


@contextlib.contextmanager
def resuming(directory, pool=None, **said):
    """Say such a hello; yield the control connection and ksmd's answer, or None if it hangs up."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    hello = {"hello": wire.VERSION, "resumes": 1, "holder": 1}
    hello |= {"tracks": True, "rfc2009": False, "secure": False} | said
    fds = (theirs.fileno(), pagemap, *([] if pool is None else [pool]))
    with connect(directory) as control, ours, theirs:
        wire.send_control(control, hello, fds)
        os.close(pagemap)
        yield control, ours


def _refused(state, directory, pool=None, **said):
    with resuming(directory, pool, **said) as (control, _):
        return is_refused(control)


WRONG = [
    {"resumes": "1"},
    {"resumes": None},
    {"resumes": -1},
    {"holder": None},
    {"tracks": False},
    {"rfc2009": True},
    {"secure": True},
    {"hello": wire.VERSION - 1},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_resumption_that_is_none_is_refused(ksmd, honest, start_worker, wrong):
    pool = _pool_of(ksmd, honest)
    assert start_worker().call(_refused_with_pool, ksmd.directory, pool, wrong)


def _pool_of(ksmd, honest):
    """Return the path by which others of this user find the pool of a worker."""
    return honest.worker.call(_pool_path)


def _pool_path(state):
    return f"/proc/{os.getpid()}/fd/{crew.pool_descriptor(state.spaces[0])}"


def _refused_with_pool(state, directory, path, said):
    pool = os.open(path, os.O_RDONLY)
    try:
        return _refused(state, directory, pool, **said)
    finally:
        os.close(pool)


def test_the_name_of_another_holder_is_not_believed(ksmd, honest, start_worker):
    """Who could use it would have frames freed that the other one maps."""
    path = _pool_of(ksmd, honest)
    with FakeWorker(ksmd.directory) as fake:
        assert start_worker().call(_refused_with_pool, ksmd.directory, path, {"holder": fake.hello["holder"]})


def _resumes_in_another_domain(state, directory):
    """Join in one domain, and resume in another with what was given; return whether that is refused."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
    with connect(directory) as control, ours, theirs:
        wire.send_control(control, {"hello": wire.VERSION}, (theirs.fileno(), pagemap))
        os.close(pagemap)
        reply, (pool, held) = wire.receive_control(control)
        found = _refused(state, directory, held, holder=reply["holder"], domain="other")
        os.close(pool)
        os.close(held)
        return found


def test_the_pool_of_another_domain_is_not_taken(ksmd, honest, start_worker):
    """Two domains would fill the same frames, each with what it likes."""
    assert start_worker().call(_resumes_in_another_domain, ksmd.directory)


def _objects(state, directory):
    """Return which objects are taken for a pool: files, pipes, shared memory of a wrong size or mode."""
    size = os.sysconf("SC_PHYS_PAGES") * PAGE
    taken = []

    def offer(what, fd, mode=0o400, length=size):
        if length is not None:
            os.truncate(fd, length)
            os.fchmod(fd, mode)
        if not _refused(state, directory, fd):
            taken.append(what)
        os.close(fd)

    offer("too short", os.memfd_create("pool"), length=PAGE)
    offer("too long", os.memfd_create("pool"), length=size + PAGE)
    offer("its group may write to it", os.memfd_create("pool"), mode=0o464)
    offer("others may write to it", os.memfd_create("pool"), mode=0o602)
    offer("a file", os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600))
    offer("a directory", os.open(directory, os.O_RDONLY), length=None)
    read, write = os.pipe()
    offer("a pipe", read, length=None)
    os.close(write)
    return taken


def test_only_a_pool_is_taken_for_a_pool(ksmd, honest, start_worker):
    assert start_worker().call(_objects, ksmd.directory) == []


def _resume_and_say(state, directory, kind, *spans):
    """Resume without a pool, register a space, report; return whether ksmd cuts us off."""
    with resuming(directory) as (control, order):
        _, fds = wire.receive_control(control)
        for fd in fds:
            os.close(fd)
        own = os.memfd_create("own")
        os.truncate(own, NR_PAGES * PAGE)
        body = {"space": {"id": 1, "start": 0x10000000, "size": NR_PAGES * PAGE}}
        wire.send_control(control, body, (own,))
        assert wire.receive_control(control) == ({}, [])
        order.settimeout(20.0)
        for span in spans:
            order.send(wire.REPORT.pack(kind, 1, 0, 0, 1, 0) + span)
        with contextlib.suppress(ConnectionError):
            return order.recv(1) == b""
        return True


def span(page, nr_pages, value):
    return struct.pack("=QQiI", page, nr_pages, 0, value)


LIES = {
    "a frame that holds nothing": [span(0, 1, 1_000_003)],
    "frames beyond the pool": [span(0, 2, (1 << 32) - 3)],
    "frames that wrap": [span(0, NR_PAGES, (1 << 32) - 2)],
    "pages beyond the space": [span(0, NR_PAGES + 1, (1 << 32) - 1)],
    "no page": [span(0, 0, 0)],
    "pages that wrap": [span((1 << 64) - 1, 3, 0)],
    "the same page twice": [span(3, 1, (1 << 32) - 1), span(3, 1, (1 << 32) - 1)],
}


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_mapped_is_not_believed(ksmd, honest, start_worker, lie):
    liar = start_worker()
    assert liar.call(_resume_and_say, ksmd.directory, ReportKind.MAPPED, *LIES[lie])
    liar.kill()


def test_who_is_a_worker_still_cannot_resume(ksmd, honest, start_worker):
    """It could have its references counted twice, and its frames never freed."""
    assert honest.worker.call(_refused, ksmd.directory)


@pytest.mark.parametrize("first", [ReportKind.MAPPED, ReportKind.INHERITED])
def test_no_page_shows_a_frame_and_an_ancestor(ksmd, honest, start_worker, first):
    """One of the two would be lost from the books, and with it a frame or an ancestor for ever."""
    liar = start_worker()
    assert liar.call(_show_both, ksmd.directory, first)
    liar.kill()
    wait_until(lambda: ksmd.read("workers") == 1, what="the end of the liar")


def _show_both(state, directory, first):
    """Say that pages show the zero page, and an ancestor; return whether ksmd cuts us off."""
    fake = state.fake = FakeWorker(directory)
    fake.resume(directory, 1)
    own, ancestor = (fake.own(bytes(NR_PAGES * PAGE)) for _ in range(2))
    space = fake.register(own, NR_PAGES)
    fake.report(ReportKind.FORKED, space, (0, NR_PAGES, 0, 1), order_id=7, fds=(own, ancestor))
    shown = {ReportKind.MAPPED: (1 << 32) - 1, ReportKind.INHERITED: 1}
    second = next(kind for kind in shown if kind is not first)
    fake.report(first, space, (0, 3, 0, shown[first]))
    fake.report(second, space, (2, 3, 0, shown[second]))
    for fd in (own, ancestor):
        os.close(fd)
    return fake.is_cut_off()


def test_a_space_forks_again_only_when_it_has_told_all_of_the_last_time(ksmd, honest, start_worker):
    """Each fork costs ksmd a descriptor, until it is told that nothing is shown of what it is of."""
    liar = start_worker()
    held = len(procmaps.descriptors(ksmd.pid))
    assert liar.call(_fork_on_and_on, ksmd.directory)
    assert len(procmaps.descriptors(ksmd.pid)) < held + 11
    liar.kill()


def _fork_on_and_on(state, directory):
    fake = state.fake = FakeWorker(directory)
    own = fake.own(bytes(NR_PAGES * PAGE))
    space = fake.register(own, NR_PAGES)
    with contextlib.suppress(OSError):
        for holder in range(1, 23):
            ancestor = fake.own(bytes(NR_PAGES * PAGE))
            fake.report(ReportKind.FORKED, space, (0, NR_PAGES, 0, 1), order_id=holder, fds=(own, ancestor))
            os.close(ancestor)
    os.close(own)
    return fake.is_cut_off()
