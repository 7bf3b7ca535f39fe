"""Each call of the core fails while a process forks: parent and child keep every byte, each its own.

Runs in a worker that has the core of faults.c (`faulty`).
"""

import errno
import json
import os
import select
import signal
import traceback
from collections import Counter
from dataclasses import dataclass

import pytest

from ksmemu import _core
from tests.core.test_faults import FAIL, NR_PAGES
from tests.support import procmaps
from tests.support.joined import SPACE
from tests.support.stage import Busy
from tests.support.takeover import (
    BUSY,
    SECONDS,
    advise_again,
    check_told,
    drive,
    forked_before,
    go_home,
    go_on_with,
    hear,
    scene,
)
from tests.support.waiting import wait_until

MAX_ANCESTORS = 16
"""Source: KSMEMU_MAX_ANCESTORS."""


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
        on.space.agent.close()
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
    on.space.agent.close()
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
    """Fork under a fault, and where the parent met it, once more without one; return the calls of both.

    The child's are those until the fork, and then its own.
    """
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with scene(**how) as (on, begin), begin() as next_ksmd:
        with faults.fault(*chosen) as calls:
            its = bring_up(on, next_ksmd, may_be_left_out=bool(chosen))
        if any(Counter(calls)[name] >= nth for name, nth, *_ in chosen):
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


def test_and_it_is_not_in_the_child_if_there_is_no_room_for_that(faulty):
    faulty.call(fork_often, [("pwrite", 3, FAIL, errno.ENOSPC)])


def fork_often(_, chosen=()):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with scene(nr_pages=MAX_ANCESTORS + NR_PAGES + 7) as (on, begin), begin() as next_ksmd:
        for page in range(NR_PAGES, NR_PAGES + MAX_ANCESTORS):
            _own_again(on, page)
            forked_before(on)
        _own_again(on, NR_PAGES + MAX_ANCESTORS)
        with faults.fault(*chosen):
            bring_up(on, next_ksmd, may_be_left_out=bool(chosen))
        bring_up(on, next_ksmd)
        go_home(on)


def test_ancestors_that_take_many_freezes_come_home_by_and_by(faulty):
    faulty.call(leave_a_long_ancestor)


def leave_a_long_ancestor(_):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with scene(nr_pages=3 * _core.WINDOW_PAGES) as (on, _):
        for page in range(20, on.space.nr_pages):
            on.put(page, b"of before")
        forked_before(on)
        # In the middle of the long one: the first mappings are short.
        with faults.fault(("pwrite", 6, FAIL, errno.ENOSPC)) as calls:
            assert advise_again(on, (0, on.space.nr_pages)) == errno.ENOSPC
        assert calls.count("pwrite") == 6
        on.check()
        assert advise_again(on, (0, on.space.nr_pages)) == 0
        hear(on)
        go_home(on)


def _own_again(on, page):
    """Let the own object hold data."""
    on.put(page, b"of this generation")
    assert on.rehome((page, 1)) == {page: 0}


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


OF_A_FORK = {
    *("connect", "eventfd", "fcntl", "ftruncate", "getrandom", "lseek", "madvise", "memfd_create"),
    *("mmap", "open", "poll", "pthread_create", "read", "register", "unregister", "sendmsg"),
}


def drive_fork(_):
    """With a hole that is worth a mapping."""
    return drive(fork, OF_A_FORK, nr_pages=541)


def test_parent_and_child_keep_their_own_bytes_whatever_fails(faulty):
    assert faulty.call(drive_fork, timeout=200)


def test_a_fork_divides_what_is_not_tracked_too(faulty):
    faulty.call(fork_untracked)


def fork_untracked(_):
    fork(tracks=False)
