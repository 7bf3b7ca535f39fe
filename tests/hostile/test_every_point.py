"""Each call of the core in a worker's life is where it is killed, or stopped for a while, or where it fails.

Each life is a fork of one process that has advised nothing itself, so that it is quick to begin.
"""

import json
import os
import signal
import threading
import traceback
from collections import Counter

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE, features
from tests.core.test_faults import faults_of
from tests.support import breaks, procmaps
from tests.support.processes import Worker
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

NR_PAGES = 11
NR_BUSY = 3
"""Pages at the end of which a thread writes all the time, so that they do not merge."""
KILL_BEFORE, STOP_BEFORE = 3, 5
BEYOND_REPAIR = {"calloc", "register"}
"""A space that ksmd knows, and the agent not; a page that is not tracked again may never merge."""
PARTED = 3
"""How a life ends whose agent could not tell ksmd what had changed."""
COUNTERS = ("workers", "spaces", "pages_shared", "pages_sharing", "pages_tracked", "pool_bytes")


@pytest.fixture(scope="module")
def ksmd(lasting_ksmd):
    return lasting_ksmd


@pytest.fixture(scope="module")
def mother(lasting_ksmd):
    with Worker(lasting_ksmd.directory, breaks.FAULTS) as worker:
        yield worker


def points(mother):
    """Return (name, number among its like) of each call of a whole life."""
    calls = mother.call(_calls_of_a_life)
    return [(name, nth) for name, nr in Counter(calls).items() for nth in range(1, nr + 1)]


def test_a_worker_killed_at_any_point_leaves_nothing(ksmd, mother):
    killed, names = 0, procmaps.shm_names()
    for point in points(mother):
        killed += mother.call(_kill_at, point)
        wait_until(lambda: not any(map(ksmd.read, COUNTERS)), what=f"zero after a death at {point}")
    assert procmaps.shm_names() == names
    assert killed > 50


def test_a_call_that_fails_spoils_no_books(ksmd, mother):
    calls = mother.call(_calls_of_a_life)
    calls = [call for call in calls if call not in BEYOND_REPAIR]
    faults = {fault[:2]: fault for fault in reversed(faults_of(calls))}  # one of each call
    del faults["send", 1]  # the second space would wait for a ksmd to take over, and long
    ends = Counter()
    for fault in faults.values():
        ends[mother.call(_fail_at, fault)] += 1
        wait_until(lambda: not any(map(ksmd.read, COUNTERS)), what=f"zero after {fault}")
    assert ends[0] > 50
    assert ends[PARTED] > 0  # the others had joined again before they looked


def test_a_worker_stopped_at_any_point_goes_on_with_every_byte(mother):
    assert sum(mother.call(_stop_at, point) for point in points(mother)) > 50


# ---- in the mother ---------------------------------------------------------------------------------


def _calls_of_a_life(_):
    features.probe()  # once for all lives
    said, to_say = os.pipe()
    pid = _bear(("", 0, 0, 0), to_say)
    with os.fdopen(said) as pipe:
        calls = json.load(pipe)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return calls


def _kill_at(_, point):
    """Return whether that point was met; where it is not, the life comes to a good end."""
    pid = _bear((*point, KILL_BEFORE, 0), os.open("/dev/null", os.O_WRONLY))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _stop_at(_, point):
    pid = _bear((*point, STOP_BEFORE, 0), os.open("/dev/null", os.O_WRONLY))
    _, status = os.waitpid(pid, os.WUNTRACED)
    if was_stopped := os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return was_stopped


def _fail_at(_, fault):
    """Return how the life ends."""
    pid = _bear(fault, os.open("/dev/null", os.O_WRONLY))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, PARTED), fault
    return code


def _bear(chosen, to_say):
    pid = os.fork()
    if pid == 0:
        signal.alarm(40)
        try:
            _live(chosen, to_say)
        except ksmemu.NotRunningError:
            os._exit(PARTED)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(to_say)
    return pid


# ---- a life ----------------------------------------------------------------------------------------


def _live(chosen, to_say):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    faults.begin(chosen)
    first, second = spaces = [_Space() for _ in range(2)]
    for space in spaces:
        space.put(range(NR_PAGES), b"equal")
    _await(spaces, lambda: all(space.nr_private() == NR_PAGES for space in spaces))
    first.put(range(2, 5), b"equal")
    first.put(range(6, 9), b"other")
    _await(spaces, lambda: first.nr_private() == NR_PAGES - 3)
    _twice(second.space.madvise_all, MADV_UNMERGEABLE)
    assert second.nr_private() == 0
    first.unmap_first()
    for space in spaces:
        space.end()
    calls = faults.end()
    if chosen[0] != "send":  # a report may be missing, and then only death makes up for it
        ksmd = ksmemu.connect()
        wait_until(lambda: not any(map(ksmd.read, COUNTERS)), what="books of nothing")
    os.write(to_say, json.dumps(calls).encode())
    os._exit(0)


def _twice(call, *args):
    """What fails once works when it is tried again."""
    try:
        return call(*args)
    except OSError:
        return call(*args)


def _await(spaces, condition):
    """Wait for what ksmd is to do; a process that has parted with it goes on alone, and ends."""
    wait_until(lambda: condition() or not all(space.is_joined() for space in spaces), what="ksmd's work")
    if not condition():
        for space in spaces:
            space.end()
        os._exit(PARTED)


class _Space:
    """A space, its model, and a thread that counts in its last pages."""

    def __init__(self):
        self.space = _twice(ksmemu.AddressSpace, (NR_PAGES + NR_BUSY) * PAGE)
        _twice(self.space.mmap, self.space.size)
        self.space.write(self.space.start, b"here before the advice")
        _twice(self.space.madvise_all, MADV_MERGEABLE)
        self.model = {page: bytes(PAGE) for page in range(NR_PAGES)}
        self.count, self.is_over = 0, False
        self._thread = threading.Thread(target=self._count)
        self._thread.start()

    def _count(self):
        while not self.is_over:
            for page in range(NR_PAGES, NR_PAGES + NR_BUSY):
                self.space.write(self.space.start + page * PAGE, (self.count + 1).to_bytes(8, "little"))
            self.count += 1
            threading.Event().wait(0.001)

    def put(self, pages, word):
        for page in pages:
            self.model[page] = (b"%s %d " % (word, page) * PAGE)[:PAGE]
            self.space.write(self.space.start + page * PAGE, self.model[page])

    def unmap_first(self):
        _twice(self.space.munmap, self.space.start, PAGE)
        del self.model[0]

    def is_joined(self):
        return self.space._own._agent.is_alive()

    def nr_private(self):
        """Return how many pages are merged, also if they have been written since."""
        start = self.space.start
        parts = procmaps.mappings("self", start, start + NR_PAGES * PAGE)
        return sum(part.pages for part in parts if "p" in part.perms and "r" in part.perms)

    def end(self):
        self.is_over = True
        self._thread.join()
        counted = self.count.to_bytes(8, "little").ljust(PAGE, b"\0")
        self.model |= dict.fromkeys(range(NR_PAGES, NR_PAGES + NR_BUSY), counted)
        for page, want in self.model.items():
            assert self.space.read(self.space.start + page * PAGE, PAGE) == want
        _twice(self.space.close)
