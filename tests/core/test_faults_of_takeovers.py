"""Each call of the core fails while it joins the next ksmd: all stays as it is, and it joins in the end.

Runs in a worker that has the core of faults.c (`faulty`).
"""

import contextlib
import errno
import itertools
import os

import pytest

from tests.core.test_faults import FAIL
from tests.support.joined import ZERO
from tests.support.next_ksmd import ZEROS
from tests.support.procmaps import PAGE
from tests.support.stage import Busy
from tests.support.takeover import BUSY, SECONDS, check_told, drive, forked_before, go_home, go_on_with, scene
from tests.support.waiting import wait_until


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


@pytest.mark.parametrize("how", TAKEOVERS)
def test_who_joins_the_next_ksmd_loses_nothing_by_a_fault(faulty, how):
    assert faulty.call(drive_takeover, TAKEOVERS[how], timeout=200)


def test_who_could_not_join_tries_again_by_itself(faulty):
    """After a second, and then after two; nothing else happens there."""
    faulty.call(take_over_late)


def take_over_late(_):
    failing = [("recvmsg", 1, FAIL, errno.ENOMEM), ("recvmsg", 2, FAIL, errno.ENOMEM)]
    take_over(failing[:1], is_late=True, ksmd={"stirs": False})
    take_over(failing, ksmd={"stirs": False})


def test_a_ksmd_that_cuts_off_who_has_joined_is_not_joined_at_once(faulty):
    first, *others = faulty.call(join_after_cuts)
    assert all(later - earlier >= 0.99 for earlier, later in itertools.pairwise([first, *others]))


def join_after_cuts(_):
    """Return when each try began."""
    with scene() as (on, next_ksmd), next_ksmd(stirs=False, cuts=2) as ksmd:
        part(on)
        go_on_with(on, ksmd.await_one(os.getpid(), SECONDS))
        go_home(on)
        return ksmd.tries


def test_what_is_no_answer_of_a_ksmd_is_not_believed(faulty):
    """None at all, a number that is no errno, no pool, half of one, and descriptors that are none of it."""
    faulty.call(take_over_from_liars)


def take_over_from_liars(_):
    with open("/dev/null", "rb") as null:
        fd = null.fileno()
        wrong = [(), ({"errno": -1},), ({},), ({"holder": 1}, (fd,))]
        wrong += [({"holder": 1, "pool_bytes": PAGE}, fds) for fds in ([fd], [fd, fd])]
        take_over(ksmd={"wrong": wrong})


def test_who_waits_for_an_answer_can_be_ended(faulty):
    faulty.call(end_while_asking)


def end_while_asking(_):
    """By the end of the scene; the silence would last for longer than anybody waits there."""
    with scene() as (on, next_ksmd), next_ksmd(wrong=[None]) as silent:
        part(on)
        wait_until(lambda: silent.heard, SECONDS, "the hello")
        on.space.agent.close()
        silent.heard.pop().close()


@pytest.mark.root
def test_nobody_joins_a_ksmd_of_another_user(faulty):
    faulty.call(take_over_from_another_user)


def take_over_from_another_user(_):
    with scene() as (on, next_ksmd):
        forked_before(on)
        part(on)
        with next_ksmd(user=65534) as other:
            wait_until(lambda: len(other.tries) > 1, SECONDS, "a second look")
        assert not other.joined
        assert not on.space.agent.wait(0)
        with next_ksmd() as ksmd:
            see_all_taken_over(on, ksmd.await_one(os.getpid(), SECONDS))


def test_more_mappings_than_one_report_has_room_for_are_told(faulty):
    faulty.call(take_over_many)


def take_over_many(_):
    nr_pages = 2 * 4096 + 131
    take_over(nr_pages=nr_pages, merge=range(40, nr_pages - 7, 2))
