"""Each call of the core fails, in every transaction: no byte is lost, and nobody sleeps for ever.

Runs in a worker that has the core of faults.c (`faulty`).
"""

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from ksmemu import _core, wire
from tests.support import cores, procmaps
from tests.support.joined import SPACE, ZERO
from tests.support.pages import content
from tests.support.procmaps import PAGE
from tests.support.stage import Busy, SleepsForEverError, stage
from tests.support.uffd import Userfaultfd
from tests.support.waiting import wait_until

NR_PAGES = 23

THE_CALL = -1
"""Among pages: that of no page in particular."""
FAIL, HALF, STOP_BEFORE = 1, 2, 5
FAULTS = {
    "api": [(FAIL, errno.EINVAL)],
    "calloc": [(FAIL, errno.ENOMEM)],
    "connect": [(FAIL, errno.EAGAIN), (FAIL, errno.ECONNREFUSED)],
    "eventfd": [(FAIL, errno.EMFILE)],
    "fallocate": [(FAIL, errno.EINTR)],
    "fcntl": [(FAIL, errno.ENOLCK)],
    "fstatfs64": [(FAIL, errno.EIO)],
    "ftruncate": [(FAIL, errno.ENOMEM)],
    "getrandom": [(FAIL, errno.ENOSYS)],
    "getsockopt": [(FAIL, errno.ENOBUFS)],
    "inotify_add_watch": [(FAIL, errno.ENOSPC)],
    "inotify_init1": [(FAIL, errno.EMFILE)],
    "lseek": [(FAIL, errno.EIO)],
    "madvise": [(FAIL, errno.EAGAIN)],
    "malloc": [(FAIL, errno.ENOMEM)],
    "memfd_create": [(FAIL, errno.EMFILE)],
    "mmap": [(FAIL, errno.ENOMEM)],
    "mprotect": [(FAIL, errno.ENOMEM), (HALF, errno.ENOMEM)],
    "mremap": [(FAIL, errno.ENOMEM)],
    "munmap": [(FAIL, errno.ENOMEM)],
    "new": [(FAIL, errno.EMFILE)],
    "open": [(FAIL, errno.EMFILE)],
    "poll": [(FAIL, errno.EINTR)],
    "pread": [(FAIL, errno.EIO), (FAIL, errno.EINTR), (HALF, 0)],
    "process_madvise": [(FAIL, errno.EBADF), (HALF, 0)],
    "protect": [(FAIL, errno.EAGAIN), (HALF, errno.ENOENT)],
    "pthread_create": [(FAIL, errno.EAGAIN)],
    "pwrite": [(FAIL, errno.ENOSPC), (FAIL, errno.EINTR), (FAIL, errno.EFAULT), (HALF, 0)],
    "read": [(FAIL, errno.ENOMEM)],
    "recvmsg": [(FAIL, errno.ENOMEM)],
    "register": [(FAIL, errno.EBUSY), (FAIL, errno.ENOMEM), (HALF, errno.ENOMEM)],
    "scan": [(FAIL, errno.ENOTTY), (FAIL, errno.ENOMEM)],
    "send": [(FAIL, errno.ENOBUFS), (FAIL, errno.EINTR)],
    "sendmsg": [(FAIL, errno.ENOBUFS), (FAIL, errno.EINTR)],
    "socket": [(FAIL, errno.EMFILE)],
    "socketpair": [(FAIL, errno.EMFILE)],
    "strdup": [(FAIL, errno.ENOMEM)],
    "unregister": [(FAIL, errno.EINVAL), (FAIL, errno.ENOMEM), (HALF, errno.ENOMEM)],
    "userfaultfd": [(FAIL, errno.EMFILE), (FAIL, errno.EPERM)],
}
"""How each call can fail. A wake cannot: the kernel looks at its arguments and at nothing else."""
OF_THE_LOOP = {"recv", "sched_getattr", "sched_setattr"}
"""Calls that an agent makes at a time of its own."""


@dataclass(frozen=True)
class Scene:
    """A transaction: what comes before it, and what may meet a fault."""

    prepare: Callable
    act: Callable
    busy: tuple = ()
    how: dict = None
    again: bool = True
    """Whether to try again what has failed."""


# ---- scenes ----------------------------------------------------------------------------------------


def two_runs_and_zeros(on):
    on.twin(*((page, page + 17) for page in range(3, 12)))
    on.put(7, b"other")
    on.put(5, b"between")


def merge_them(on):
    return on.merge((3, 20, 2), (6, 23, 4, 1), (15, ZERO, 3, 1), (21, ZERO, 1))


def some_merged(on):
    """3 and 4 show frames, 8 and 9 copies of them, 15 to 17 zeros, 16 a copy of zeros."""
    on.twin((3, 20), (4, 21), (8, 25), (9, 26))
    assert not any(on.space.merge((3, 20, 2), (8, 25, 2), (15, ZERO, 3)).values())
    on.put(8, b"mine")
    on.put(16, b"mine")
    on.put(9, content(9)[:4])


def renew_them(on):
    return on.renew((3, 20, 2), (8, 25, 2), (15, ZERO, 3))


def copies_apart(on):
    """3 to 9 show frames: 3, 5 and 9 equal copies of them, 7 one that differs."""
    on.twin(*((page, page + 17) for page in range(3, 10)))
    assert not any(on.space.merge((3, 20, 7)).values())
    for page in (3, 5, 9):
        on.put(page, content(page)[:4])
    on.put(7, b"mine")


def renew_those_apart(on):
    return on.renew((3, 20, 1), (5, 22, 1), (7, 24, 1), (9, 26, 1))


def rehome_them(on):
    return on.rehome((3, 2), (8, 2), (15, 3))


def protected(prepare):
    def prepared(on):
        prepare(on)
        on.space.protect(4, 17, 0)

    return prepared


def some_ordinary(on):
    on.space.map()
    on.twin((0, None), (3, None), (4, None), (9, None), (22, None))


def advise_them(on):
    return _advise(on, adopt=True)


def advise_again(on):
    return _advise(on, adopt=False)


def _advise(on, adopt):
    """What a call before has moved is not ordinary any more."""
    space, end = on.space, on.space.address(NR_PAGES)
    moved = sum(perms == "rw-s" for perms, _ in on.shows().values())
    adopt = adopt and moved < NR_PAGES
    start = space.address(moved if adopt else 0)
    done, error = space.agent.advise(SPACE, start, end, adopt, space.ranges((0, NR_PAGES)))
    if not error:
        assert done == end
        _hear(on)
    pages = {page: error if adopt and space.address(page) >= done else 0 for page in range(NR_PAGES)}
    return {**pages, THE_CALL: error}


def _hear(on):
    """Take the report of a change off the socket."""
    try:
        on.space.epoch = on.space.report()[3]
    except (EOFError, ConnectionError):
        on.is_parted = True


def of_one_call(call):
    """An act of one call of the application, that does all or nothing."""

    def act(on):
        try:
            call(on)
        except OSError as error:
            return dict.fromkeys(range(NR_PAGES), error.errno)
        return dict.fromkeys(range(NR_PAGES), 0)

    return act


def unmerge_them(on):
    agent, bounds = on.space.agent, (on.space.address(0), on.space.address(NR_PAGES))
    agent.withdraw(SPACE, b"")
    agent.rehome(SPACE, *bounds)
    agent.unadvised(SPACE, *bounds)
    _hear(on)


def unmap_some(on):
    space = on.space
    space.agent.unmap(SPACE, space.address(4), space.address(10), space.ranges((0, 4), (10, 23)))
    for page in range(4, 10):
        on.model.pop(page, None)
    _hear(on)


def protect_some(on):
    on.space.protect(4, 17, 0)


def give_up(on):
    on.space.remove()
    on.model.clear()
    _hear(on)


SCENES = {
    "merge": Scene(two_runs_and_zeros, merge_them, busy=(5, 13)),
    "merge, without a tracker": Scene(two_runs_and_zeros, merge_them, busy=(5, 13), how={"tracks": False}),
    "merge evenly": Scene(two_runs_and_zeros, merge_them, busy=(5, 13), how={"secure": True}),
    "merge what is protected": Scene(protected(two_runs_and_zeros), merge_them, busy=(19,), again=False),
    "renew": Scene(some_merged, renew_them, busy=(5,)),
    "renew together": Scene(copies_apart, renew_those_apart, busy=(6,)),
    "renew evenly": Scene(copies_apart, renew_those_apart, busy=(6,), how={"secure": True}),
    "rehome": Scene(some_merged, rehome_them, busy=(8, 16)),
    "rehome, without a tracker": Scene(some_merged, rehome_them, busy=(8, 16), how={"tracks": False}),
    "rehome what is protected": Scene(protected(some_merged), rehome_them),
    "adopt": Scene(some_ordinary, advise_them, busy=(3, 9, 13), how={"advised": False}),
    "adopt, without a tracker": Scene(
        some_ordinary, advise_them, busy=(3, 9, 13), how={"advised": False, "tracks": False}
    ),
    "advise again": Scene(some_merged, advise_again, busy=(5,)),
    "unmerge": Scene(some_merged, of_one_call(unmerge_them), busy=(5, 8, 16)),
    "unmerge, without a tracker": Scene(
        some_merged, of_one_call(unmerge_them), busy=(5, 8, 16), how={"tracks": False}
    ),
    "unmap": Scene(some_merged, of_one_call(unmap_some), busy=(16,)),
    "mprotect": Scene(some_merged, of_one_call(protect_some), busy=(2, 19)),
    "close": Scene(some_merged, of_one_call(give_up)),
}


# ---- the driver ------------------------------------------------------------------------------------


def drive(_, name):
    """Play a scene without a fault, and then once for each that can befall it; return what was played."""
    scene = SCENES[name]
    calls, clean = play(scene)
    faults, failed = faults_of(calls), {}
    for fault in faults:
        try:
            play(scene, [fault], clean)
        except Exception as error:
            failed[fault] = repr(error)
    assert not failed, failed
    return faults


def faults_of(calls):
    """Return each fault that can befall one of these calls: (name, number among its like, how, errno)."""
    return [
        (call, nth, *fault)
        for call, nr in Counter(calls).items()
        for nth in range(1, nr + 1)
        for fault in FAULTS.get(call, ())
        if call not in OF_THE_LOOP
    ]


def play(scene, chosen=(), clean=None):
    """Play a scene; assert that nothing is lost, and that it ends as a clean one when it is tried again.

    Returns:
        The calls that were made, and how it ended: the errors of each page, and what it shows.
    """
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with stage(nr_pages=NR_PAGES, **(scene.how or {})) as on:
        scene.prepare(on)
        before = on.shows()
        busy = Busy(on, scene.busy)
        busy.begin()
        with faults.fault(*chosen) as calls:
            errors = scene.act(on)
        busy.end()
        shows = on.shows()
        for page, error in errors.items():
            assert not error or shows.get(page) == before.get(page), f"page {page} failed, and was changed"
        on.check()
        if on.is_parted:
            wait_until(lambda: not on.space.agent.is_alive(), what="the agent to notice")
        elif clean and scene.again:
            errors = errors if errors == clean[0] else scene.act(on)
            shows = on.shows()
            assert (errors, shows) == clean, "another end"
            on.check()
        on.write_all()
        on.check()
        _go_home(on, shows)
        return calls, (errors, shows)


def _go_home(on, shows):
    """Bring every page home; assert that the own object holds the bytes."""
    space = on.space
    for page in on.model:
        if "p" in shows[page][0]:
            space.agent.rehome(SPACE, space.address(page), space.address(page + 1))
    on.check()
    assert all(space.object_holds(page) == want for page, want in on.model.items())


@pytest.mark.parametrize("name", SCENES)
def test_no_fault_loses_a_byte_or_leaves_a_writer_asleep(faulty, name):
    assert faulty.call(drive, name)


def test_copies_that_lie_apart_are_renewed_under_one_freeze(faulty):
    calls = Counter(faulty.call(calls_of, "renew together"))
    assert (calls["protect"], calls["process_madvise"], calls["mmap"]) == (1, 1, 0)
    apart = Counter(faulty.call(calls_of, "renew"))  # own pages lie between, or zeros
    assert (apart["protect"], apart["process_madvise"]) == (4, 0)


def calls_of(_, name):
    return play(SCENES[name])[0]


def test_a_copy_written_after_the_first_look_is_kept(faulty):
    """It was equal then; what verify sees counts."""
    at = faulty.call(_stage_copies)
    faulty.start(_renew_stopping_before_the_freeze)
    wait_until(lambda: {*procmaps.thread_states(faulty.pid)} == {"T"}, what="the agent to come there")
    with open(f"/proc/{faulty.pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(at)
        memory.write(b"late")
    faulty.process.send_signal(signal.SIGCONT)
    assert faulty.finish() == {3: 0, 5: errno.EAGAIN, 7: errno.EAGAIN, 9: 0}
    faulty.call(_keep_what_was_written)


def _stage_copies(state):
    """Return where page 5 is."""
    state.opened = contextlib.ExitStack()
    state.on = state.opened.enter_context(stage(nr_pages=NR_PAGES))
    copies_apart(state.on)
    return state.on.space.address(5)


def _renew_stopping_before_the_freeze(state):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with faults.fault(("register", 1, STOP_BEFORE, 0)):
        return renew_those_apart(state.on)


def _keep_what_was_written(state):
    with state.opened:
        state.on.model[5][:4] = b"late"
        state.on.check()
        state.on.write_all()
        state.on.check()


# ---- more than one at once -------------------------------------------------------------------------

# Where writes are tracked the first thing to let go of is that, and nothing would be frozen.
TOGETHER = {
    "nothing can be let go of, when pages differ": (
        "merge, without a tracker",
        [("unregister", 0, FAIL, errno.ENOMEM)],
    ),
    "nor when there is no room": (
        "rehome, without a tracker",
        [("pwrite", 1, FAIL, errno.ENOSPC), ("unregister", 0, FAIL, errno.ENOMEM)],
    ),
    "nor when the copies are equal": (
        "renew",
        [("mmap", 0, FAIL, errno.ENOMEM), ("unregister", 0, FAIL, errno.EINVAL)],
    ),
    "no call drops a copy": (
        "renew together",
        [("process_madvise", 0, FAIL, errno.EPERM), ("madvise", 0, FAIL, errno.EINVAL)],
    ),
    "not one byte of a copy fits": ("rehome", [("pwrite", 0, HALF, 0)]),
    "where the data lie cannot be told, and there is no room": (
        "unmerge",
        [("lseek", 1, FAIL, errno.EIO), ("pwrite", 1, FAIL, errno.ENOSPC)],
    ),
}


@pytest.mark.parametrize("what", TOGETHER)
def test_faults_that_come_together_lose_no_byte(faulty, what):
    faulty.call(play_together, *TOGETHER[what])


def play_together(_, name, chosen):
    clean = play(SCENES[name])[1]
    play(SCENES[name], chosen, clean)


def test_what_takes_many_freezes_ends_with_the_first_that_fails(faulty):
    faulty.call(_rehome_many)


def _rehome_many(_):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    nr = 3 * _core.WINDOW_PAGES + 7
    with stage(nr_pages=nr, nr_frames=nr) as on:
        on.twin(*((page, page) for page in range(nr)))
        assert not any(on.merge((0, 0, nr)).values())
        with faults.fault(("pwrite", 2, FAIL, errno.ENOSPC)) as calls, pytest.raises(OSError, match="space"):
            on.space.agent.rehome(SPACE, on.space.address(0), on.space.address(nr))
        assert calls.count("pwrite") == 2
        on.check()
        on.write_all()
        on.space.agent.rehome(SPACE, on.space.address(0), on.space.address(nr))
        _go_home(on, on.shows())


def test_a_page_that_stays_frozen_is_noticed(faulty):
    """The negative control of all of these."""
    faulty.call(_see_a_frozen_page)


def _see_a_frozen_page(_):
    with stage(nr_pages=NR_PAGES, tracks=False) as on, contextlib.closing(Userfaultfd()) as held:
        held.register(on.space.address(7), PAGE)
        held.write_protect(on.space.address(7), PAGE)
        with pytest.raises(SleepsForEverError):
            on.write_all(seconds=0.1)
        held.unregister(on.space.address(7), PAGE)
        wait_until(lambda: threading.active_count() == 1, what="the end of who slept there")


# ---- joining ---------------------------------------------------------------------------------------

NOT_PERMITTED = ("userfaultfd", 1, FAIL, errno.EPERM)
"""Then the device is asked, and at last for user mode only."""


@pytest.mark.parametrize("is_permitted", [True, False])
def test_an_agent_that_cannot_join_leaves_nothing(faulty, is_permitted):
    assert faulty.call(drive_joining, [] if is_permitted else [NOT_PERMITTED])


def drive_joining(_, given):
    faults = [fault for fault in faults_of(join(None, given)) if fault[0] != "munmap"]  # of the end
    for fault in faults:
        join(None, [*given, fault], may_fail=True)
    return faults


def join(_, chosen, *, may_fail=False):
    """Create an agent and let it know a space, or see that both can be tried again; return the calls."""
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    before = held()
    own = os.memfd_create("own")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ksmd, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pool = os.memfd_create("pool")
    os.truncate(pool, PAGE)
    descriptors = {
        "control": control.detach(),
        "order": theirs.detach(),
        "pool": pool,
        "held": os.dup(pool),
        "pagemap": os.open("/proc/self/pagemap", os.O_RDONLY),
    }
    others = {"pool_bytes": PAGE, "holder": 1, "directory": "/nowhere", "label": ""}
    others |= {"tracks": True, "rfc2009": False, "secure": False}
    start = _core.reserve(PAGE)
    with faults.fault(*chosen) as calls, contextlib.ExitStack() as joined:
        try:
            agent = _core.Agent(**descriptors, **others)
            joined.callback(agent.close)
            agent.add_space(SPACE, start, PAGE, 0, own)
        except OSError:
            assert may_fail
            os.close(own)  # the agent has closed the others, and did not take this one
    ours.close()
    ksmd.close()
    _core.unreserve(start, PAGE)
    wait_until(lambda: held() == before, what="the end of what was held")
    return calls


def held():
    shared = [mapping for mapping in procmaps.mappings("self") if "memfd:" in mapping.path]
    return procmaps.descriptors(os.getpid()), procmaps.threads("self"), shared


# ---- orders and reports ----------------------------------------------------------------------------


def test_an_interrupted_agent_takes_the_next_order(faulty):
    assert faulty.call(_take_orders, errno.EINTR)


@pytest.mark.parametrize("call", ["sched_getattr", "sched_setattr"])
def test_an_agent_whose_slices_cannot_be_short_works_with_long_ones(faulty, call):
    faulty.call(join, [(call, 1, FAIL, errno.EPERM)])


def test_an_agent_that_cannot_listen_parts_with_ksmd(faulty):
    assert not faulty.call(_take_orders, errno.ENOMEM)


def _take_orders(_, error):
    """Let the agent's wait for its second order fail; return whether it takes a third one."""
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with stage(nr_pages=NR_PAGES) as on:
        on.twin((3, 20), (4, 21))
        with faults.fault(("recv", 1, FAIL, error)):
            on.merge((3, 20, 1))
            on.merge((4, 21, 1))
        on.check()
        on.write_all()
        on.check()
        return not on.is_parted


def test_what_cannot_be_kept_or_told_changes_nothing(faulty):
    faulty.call(_ask_the_agent)


def _ask_the_agent(_):
    """Calls that make nothing but a copy: they fail, and work the next time."""
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    with stage(nr_pages=NR_PAGES) as on:
        agent = on.space.agent
        note = np.array([(on.space.start, on.space.address(3), wire.ReportKind.BOUND, 1)], wire.NOTE)
        calls = {"malloc": lambda: agent.remember(SPACE, note.tobytes())}
        for call, act in (*calls.items(), ("fcntl", agent.control), ("fcntl", lambda: agent.own(SPACE))):
            with faults.fault((call, 1, *FAULTS[call][0])), pytest.raises(OSError):
                act()
            if fd := act():
                os.close(fd)
        with faults.fault(("fstatfs64", 1, FAIL, errno.EIO)), pytest.raises(OSError, match="fstatfs"):
            _core.file_system(on.space.own)


def test_every_call_that_can_fail_is_made_to():
    """What the core wants of the C library is wrapped, or cannot fail, or what follows does not ask.

    XXH3 only computes; it is in the core itself where the system's library does not look what the CPU has.
    """
    product = next((cores.ROOT / "ksmemu").glob("_core.*.so"))
    asked = subprocess.run(["nm", "-u", product], capture_output=True, text=True, check=True)
    wanted = {re.sub("@.*", "", line.split()[-1]) for line in asked.stdout.splitlines()}
    ours = {name for name in wanted if not name.startswith(("_", "Py", "XXH"))}
    assert ours - set(cores.WRAPPED) == CANNOT_FAIL


CANNOT_FAIL = {
    *("abort", "clock_gettime", "close", "eventfd_write", "free", "fstat", "malloc_trim", "mallopt"),
    *("memcmp", "memcpy", "sched_yield", "setsockopt"),
    *("pthread_cond_broadcast", "pthread_cond_destroy", "pthread_cond_init", "pthread_cond_timedwait"),
    *("pthread_condattr_destroy", "pthread_condattr_init", "pthread_condattr_setclock"),
    *("pthread_join", "pthread_once", "pthread_mutex_destroy", "pthread_mutex_init", "pthread_mutex_lock"),
    *("pthread_mutex_unlock", "pthread_sigmask", "shutdown", "sigfillset", "snprintf", "strerror", "strlen"),
}
