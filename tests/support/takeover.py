"""A process that has merged, and forked, and the ksmd that is to come; what it says must be what it maps.

Runs in a worker that has the core of faults.c.
"""

import contextlib
import functools
import itertools
import os
import socket
import tempfile
from mmap import PROT_READ
from pathlib import Path

from ksmemu import _core, wire
from tests.core.test_faults import NR_PAGES, faults_of, held, some_merged
from tests.support.joined import SPACE
from tests.support.next_ksmd import ZEROS, NextKsmd
from tests.support.procmaps import PAGE
from tests.support.stage import stage
from tests.support.waiting import wait_until

BUSY = (2, 8, 19)
SECONDS = 10.0
APART = 3
"""The last pages are a mergeable range of their own."""


@contextlib.contextmanager
def scene(nr_pages=NR_PAGES, **how):
    """Yield a stage with something of everything, and what begins the ksmd that is to come: NextKsmd's."""
    before = held()
    with (
        tempfile.TemporaryDirectory() as directory,
        stage(nr_pages=nr_pages, directory=directory, **how) as on,
    ):
        on.put(nr_pages - 5, b"behind a hole")
        some_merged(on)
        on.put(11, b"read only")
        on.put(12, b"read only, too")
        on.space.protect(10, 13, PROT_READ, at=12)
        at = nr_pages - APART
        assert advise_again(on, (0, at), (at, nr_pages)) == 0
        hear(on)
        with _another_space(on):
            yield on, functools.partial(NextKsmd, Path(directory))
    wait_until(lambda: is_no_more_than(before), what="the end of what was held")


def advise_again(on, *pieces):
    """All of it is mergeable still, by a call of the application for each (from, to). Return the errno."""
    space, bounds = on.space, (on.space.address(0), on.space.address(on.space.nr_pages))
    return space.agent.advise(SPACE, *bounds, False, space.ranges(*pieces))[1]


@contextlib.contextmanager
def _another_space(on):
    """With nothing in it."""
    size = 7 * PAGE
    own = os.memfd_create("own")
    os.truncate(own, size)
    start = _core.reserve(size)
    on.space.agent.add_space(SPACE + 1, start, size, 0, own)
    try:
        yield
    finally:
        on.space.agent.close()
        _core.unreserve(start, size)


def is_no_more_than(before):
    """Whether no more is held; a fork ends threads of libraries."""
    (fds, threads, shared), (fds_before, threads_before, shared_before) = held(), before
    return (fds, shared) == (fds_before, shared_before) and threads <= threads_before


def told(shows):
    """Return what a process must say that it maps, in frames and zeros."""
    return {
        page: ZEROS if frame is None else frame
        for page, (perms, frame) in shows.items()
        if frame is not None or "p" in perms
    }


def check_told(said, shows):
    """What is not in a pool and private shows zeros or an ancestor."""
    assert {**said.mapped, **dict.fromkeys(said.inherited, ZEROS)} == told(shows)
    assert not {*said.mapped} & {*said.inherited}


def go_on_with(on, said):
    """Its ksmd is another now."""
    on.space.order.close()
    on.space.control.close()
    on.space.order, on.space.control, on.space.epoch = said.order, said.control, said.epoch
    on.space.order.setblocking(True)
    on.is_parted = False


def go_home(on):
    """All comes home by orders of the ksmd that it has; the own object of now holds the bytes."""
    at, end = on.space.nr_pages - APART, on.space.nr_pages
    for first, stop in itertools.pairwise([*range(0, at, 64), at, end]):
        errors = on.rehome((first, stop - first))
        assert not any(errors.values()), errors
    on.check()
    assert all(on.space.object_holds(page) == want for page, want in on.model.items())


def forked_before(on):
    """Fork, so that pages show an ancestor; the child is gone again."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    hear(on)
    on.put(13, b"since the fork")


def hear(on):
    """Take what was reported off the socket; a hang-up is noted."""
    with contextlib.suppress(BlockingIOError):
        while message := on.space.order.recv(wire.REPORT_MAX_BYTES, socket.MSG_DONTWAIT):
            on.space.epoch = wire.unpack_report(message)[3]
        on.is_parted = True


def drive(play, calls_there, **how):
    """Play a scene without a fault, and then once for each; return what was played."""
    calls = play(**how)
    assert calls_there <= {*calls}, calls_there - {*calls}
    faults = [fault for fault in faults_of(calls) if fault[0] != "munmap"]  # of a pool that was left
    failed = {}
    for fault in faults:
        try:
            play([fault], **how)
        except Exception as error:
            failed[fault] = repr(error)
    assert not failed, failed
    return faults
