"""Each call of the core fails while a process forks, or joins the next ksmd: both keep every byte.

Runs in a worker that has the core of faults.c (`faulty`).
"""

import contextlib
import errno
import functools
import json
import os
import select
import signal
import socket
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from ksmemu import wire
from tests.core.test_faults import FAIL, NR_PAGES, _held, faults_of, some_merged
from tests.support import procmaps
from tests.support.joined import SPACE, ZERO
from tests.support.next_ksmd import ZEROS, NextKsmd
from tests.support.procmaps import PAGE
from tests.support.stage import Busy, stage
from tests.support.waiting import wait_until

BUSY = (2, 8, 19)
SECONDS = 10.0
MAX_ANCESTORS = 16
"""Source: KSMEMU_MAX_ANCESTORS."""


@contextlib.contextmanager
def scene(nr_pages=NR_PAGES, **how):
    """Yield a stage with something of everything, and what begins the ksmd that is to come: NextKsmd's."""
    before = _held()
    with (
        tempfile.TemporaryDirectory() as directory,
        stage(nr_pages=nr_pages, directory=directory, **how) as on,
    ):
        on.put(nr_pages - 5, b"behind a hole")
        some_merged(on)
        yield on, functools.partial(NextKsmd, Path(directory))
    wait_until(lambda: is_no_more_than(before), what="the end of what was held")


def is_no_more_than(before):
    """Whether no more is held; a fork ends threads of libraries."""
    (fds, threads, shared), (fds_before, threads_before, shared_before) = _held(), before
    return (fds, shared) == (fds_before, shared_before) and threads <= threads_before


def told(shows):
    """Return what a process must say that it maps, in frames and zeros."""
    return {
        page: ZEROS if frame is None else frame
        for page, (perms, frame) in shows.items()
        if frame is not None or perms == "rw-p"
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
    last = max(on.model) + 1
    for first in range(0, last, 64):
        errors = on.rehome((first, min(64, last - first)))
        assert not any(errors.values()), errors
    on.check()
    assert all(on.space.object_holds(page) == want for page, want in on.model.items())


# ---- the next ksmd ---------------------------------------------------------------------------------


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


def part(on):
    on.space.order.close()
    on.space.control.close()


def take_over(chosen=(), *, is_late=False, with_pool=False, merge=(), ksmd=None, **how):
    """Let an agent join the next ksmd, and meet faults there; return its calls."""
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with contextlib.ExitStack() as closing:
        pool = os.memfd_create("another pool") if with_pool else None
        if pool is not None:
            os.truncate(pool, 71 * PAGE)
            closing.callback(os.close, pool)
        on, next_ksmd = closing.enter_context(scene(**how))
        forked_before(on)
        for first in range(0, len(merge), 1024):
            errors = on.merge(*((page, ZERO, 1) for page in merge[first : first + 1024]))
            assert not any(errors.values())
        busy = Busy(on, BUSY)
        busy.begin()
        with faults.fault(*chosen) as calls:
            if is_late:
                part(on)
                wait_until(lambda: not on.space.agent.is_alive(), SECONDS, "the end of the ksmd")
            ksmd = closing.enter_context(next_ksmd(pool, **(ksmd or {})))
            if not is_late:
                part(on)
            said = ksmd.await_one(os.getpid(), SECONDS)
            assert on.space.agent.wait(int(SECONDS))
        busy.end()
        assert bool({*said.mapped.values()} - {ZEROS}) != with_pool
        see_all_taken_over(on, said)
    return calls


def see_all_taken_over(on, said):
    go_on_with(on, said)
    check_told(said, on.shows())
    assert bool(said.inherited) == bool(said.nr_ancestors)
    assert not said.hello["forked"]
    on.check()
    on.write_all()
    on.check()
    go_home(on)


TAKEOVERS = {
    "the same pool": {},
    "another pool": {"with_pool": True},
}
OF_A_TAKEOVER = {
    *("connect", "getsockopt", "inotify_add_watch", "inotify_init1", "open", "poll", "read", "recvmsg"),
    *("sendmsg", "socket", "socketpair", "send"),
}


def drive_takeover(_, how):
    return drive(take_over, OF_A_TAKEOVER, **how)


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


@pytest.mark.parametrize("how", TAKEOVERS)
def test_who_joins_the_next_ksmd_loses_nothing_by_a_fault(faulty, how):
    assert faulty.call(drive_takeover, TAKEOVERS[how])


def test_who_could_not_join_tries_again_by_itself(faulty):
    """After a second, and then after two; nothing else happens there."""
    faulty.call(take_over_late)


def take_over_late(_):
    failing = [("recvmsg", 1, FAIL, errno.ENOMEM), ("recvmsg", 2, FAIL, errno.ENOMEM)]
    take_over(failing[:1], is_late=True, ksmd={"stirs": False})
    take_over(failing, ksmd={"stirs": False})


def test_what_is_no_answer_of_a_ksmd_is_not_believed(faulty):
    """A number that is no errno, no pool, half of one, and descriptors that are none of it."""
    faulty.call(take_over_from_liars)


def take_over_from_liars(_):
    with open("/dev/null", "rb") as null:
        fd = null.fileno()
        wrong = [({"errno": -1},), ({},), ({"holder": 1}, (fd,))]
        wrong += [({"holder": 1, "pool_bytes": PAGE}, fds) for fds in ([fd], [fd, fd])]
        take_over(ksmd={"wrong": wrong})


@pytest.mark.root
def test_nobody_joins_a_ksmd_of_another_user(faulty):
    faulty.call(take_over_from_another_user)


def take_over_from_another_user(_):
    with scene() as (on, next_ksmd):
        forked_before(on)
        part(on)
        with next_ksmd(user=65534) as other:
            wait_until(lambda: other.nr_tries > 1, SECONDS, "a second look")
        assert not other.joined
        assert not on.space.agent.wait(0)
        with next_ksmd() as ksmd:
            see_all_taken_over(on, ksmd.await_one(os.getpid(), SECONDS))


def test_more_mappings_than_one_report_has_room_for_are_told(faulty):
    faulty.call(take_over_many)


def take_over_many(_):
    nr_pages = 2 * 4096 + 31
    take_over(nr_pages=nr_pages, merge=range(40, nr_pages - 7, 2))


# ---- a fork ----------------------------------------------------------------------------------------


@dataclass
class Child:
    """A forked child that says what it finds, a line each."""

    pid: int
    says: int
    hears: int

    def heard(self):
        ready, _, _ = select.select([self.says], [], [], SECONDS)
        assert ready, "the child does not answer"
        with open(self.says, closefd=False) as says:
            return json.loads(says.readline())

    def end(self):
        os.write(self.hears, b"go on")
        _, status = os.waitpid(self.pid, 0)
        os.close(self.says)
        os.close(self.hears)
        return os.waitstatus_to_exitcode(status)


def bear(on):
    """Fork; the child leads its life, and stops in the middle of it until end()."""
    says, to_say = os.pipe()
    to_hear, hears = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            os.close(hears)
            os.close(says)
            _live(on, to_hear, to_say)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(to_say)
    os.close(to_hear)
    return Child(pid, says, hears)


def _live(on, to_hear, to_say):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    if not _has_space(on):
        os.write(to_say, json.dumps([faults.end(), False, {}]).encode() + b"\n")
        os.read(to_hear, 99)
        return
    # What a thread of the parent wrote at the fork is there, whatever it is, and stays so.
    for page in BUSY:
        on.model[page] = bytearray(on.space.read(page))
    on.check()
    is_joined = _joins(on)
    os.write(to_say, json.dumps([faults.end(), is_joined, on.shows()]).encode() + b"\n")
    on.write_all()
    on.check()
    os.read(to_hear, 99)
    on.check()
    on.write_all()
    on.check()


def _has_space(on):
    """Return whether the child has the space; if not, nothing of its objects is mapped there."""
    start, end = on.space.start, on.space.address(on.space.nr_pages)
    names = [part.path for part in procmaps.mappings("self", start, end)]
    is_mapped = any("memfd:own" in name or "memfd:ksmemu" in name for name in names)
    try:
        os.close(on.space.agent.own(SPACE))
        is_known = True
    except OSError as error:
        is_known = error.errno != errno.ENOENT
    assert is_known == is_mapped, names
    return is_mapped


def _joins(on):
    """Return whether an agent of the child joins; it has none where it could get no thread."""
    agent = on.space.agent
    wait_until(lambda: agent.is_alive() or procmaps.threads("self") == 1, SECONDS, "the joining")
    return agent.is_alive()


def fork(chosen=(), **how):
    """Fork under a fault, and once more without one; return the calls of parent and child.

    The child's are those until the fork, and then its own.
    """
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with scene(**how) as (on, begin), begin() as next_ksmd:
        with faults.fault(*chosen) as calls:
            its = bring_up(on, next_ksmd, may_be_left_out=bool(chosen))
        bring_up(on, next_ksmd)
        go_home(on)
    return [*its, *(Counter(calls) - Counter(its)).elements()]


def bring_up(on, next_ksmd, *, may_be_left_out=False):
    busy = Busy(on, BUSY)
    busy.begin()
    child = bear(on)
    busy.end()
    on.check()
    hear(on)
    calls, is_joined, shows = child.heard()
    on.write_all()
    on.check()
    if on.is_parted:
        go_on_with(on, next_ksmd.await_one(os.getpid(), SECONDS))
    if is_joined:
        said = next_ksmd.await_one(child.pid, SECONDS)
        check_told(said, {int(page): show for page, show in shows.items()})
        assert said.hello["forked"]
    assert may_be_left_out or is_joined
    assert child.end() == 0
    if is_joined:
        said.close()
    on.check()
    return calls


def test_a_space_that_shows_all_the_ancestors_there_may_be_is_divided_again(faulty):
    """What they hold comes home before the next one."""
    faulty.call(fork_often)


def fork_often(_):
    with scene(nr_pages=MAX_ANCESTORS + NR_PAGES) as (on, begin), begin() as next_ksmd:
        for page in range(NR_PAGES, NR_PAGES + MAX_ANCESTORS):
            on.put(page, b"of this generation")
            forked_before(on)
        bring_up(on, next_ksmd)
        go_home(on)


CANNOT_HOLD = ("open", 1, FAIL, errno.EMFILE)
"""Then the child is to have nothing."""
WITHHELD = {
    "the child gets the mappings": [("madvise", 1, FAIL, errno.ENOMEM)],
    "the parent cannot lift that": [("madvise", 2, FAIL, errno.ENOMEM)],
    "the parent cannot lift that twice": [
        ("madvise", 2, FAIL, errno.ENOMEM),
        ("madvise", 3, FAIL, errno.ENOMEM),
    ],
}


@pytest.mark.parametrize("what", WITHHELD)
def test_what_cannot_be_withheld_is_unmapped_in_the_child(faulty, what):
    faulty.call(fork_without, [CANNOT_HOLD, *WITHHELD[what]])


def fork_without(_, chosen):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with scene() as (on, begin), begin() as next_ksmd:
        with faults.fault(*chosen):
            for _ in range(2):
                bring_up(on, next_ksmd, may_be_left_out=True)
        bring_up(on, next_ksmd)
        go_home(on)


def test_a_child_that_would_share_memory_ends(faulty):
    """Where it cannot even be unmapped."""
    faulty.call(fork_to_death)


def fork_to_death(_):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with scene() as (on, _):
        with faults.fault(CANNOT_HOLD, ("madvise", 1, FAIL, errno.ENOMEM), ("munmap", 1, FAIL, errno.ENOMEM)):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGABRT
        on.check()


FORKS = {
    "between holes": {"nr_pages": 541},
    "without a tracker": {"tracks": False},
}
OF_A_FORK = {
    *("connect", "eventfd", "fcntl", "ftruncate", "getrandom", "lseek", "madvise", "memfd_create"),
    *("mmap", "open", "poll", "pthread_create", "read", "register", "unregister", "sendmsg"),
}


def drive_fork(_, how):
    return drive(fork, OF_A_FORK, **how)


@pytest.mark.parametrize("how", FORKS)
def test_parent_and_child_keep_their_own_bytes_whatever_fails(faulty, how):
    assert faulty.call(drive_fork, FORKS[how])
