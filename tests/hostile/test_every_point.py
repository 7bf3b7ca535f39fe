"""Each call of the core in a worker's life is where it is killed, or stopped for a while, or where it fails.

Each life is a fork of one process that has advised nothing itself, so that it is quick to begin.
"""

import errno
import functools
import json
import operator
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
FAIL, KILL_BEFORE, STOP_BEFORE = 1, 3, 5
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


def points(mother, life):
    """Return (name, number among its like) of each call of a life; of a family's, what each may come to."""
    calls = mother.call(_calls_of, life)
    return [(name, nth) for name, nr in calls.items() for nth in range(1, nr + 1)]


@pytest.mark.parametrize(("life", "enough"), [("alone", 50), ("with a child", 60), ("joining again", 40)])
def test_a_worker_killed_at_any_point_leaves_nothing(ksmd, mother, life, enough):
    killed, names = 0, procmaps.shm_names()
    for point in points(mother, life):
        killed += mother.call(_kill_at, life, point)
        wait_until(lambda: not any(map(ksmd.read, COUNTERS)), what=f"zero after a death at {point}")
    assert procmaps.shm_names() == names
    assert killed > enough


def test_a_call_that_fails_spoils_no_books(ksmd, mother):
    calls = Counter(mother.call(_calls_of, "alone")).elements()
    calls = [call for call in calls if call not in BEYOND_REPAIR]
    faults = {fault[:2]: fault for fault in reversed(faults_of(calls))}  # one of each call
    del faults["send", 1]  # the second space would wait for a ksmd to take over, and long
    ends = Counter()
    for fault in faults.values():
        ends[mother.call(_fail_at, fault)] += 1
        wait_until(lambda: not any(map(ksmd.read, COUNTERS)), what=f"zero after {fault}")
    assert ends[0] > 50
    assert ends[PARTED] > 0  # the others had joined again before they looked


@pytest.mark.parametrize(("life", "enough"), [("alone", 50), ("with a child", 60), ("joining again", 40)])
def test_a_worker_stopped_at_any_point_goes_on_with_every_byte(mother, life, enough):
    assert sum(mother.call(_stop_at, life, point) for point in points(mother, life)) > enough


# ---- in the mother ---------------------------------------------------------------------------------


def _calls_of(_, life):
    features.probe()  # once for all lives
    code, said = _end_of(*_bear(life))
    assert code == 0
    return dict(functools.reduce(operator.or_, (Counter(calls) for calls, _ in said)))


def _kill_at(_, life, point):
    """Return whether somebody met that point; who does not comes to a good end."""
    code, said = _end_of(*_bear(life, (*point, KILL_BEFORE, 0)))
    assert code in (0, -signal.SIGKILL)
    return code != 0 or len(said) < LIVES[life][1]


def _stop_at(_, life, point):
    """Return whether somebody met that point."""
    pid, pipe = _bear(life, (*point, STOP_BEFORE, 0))
    is_over = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if was_stopped := is_over.si_code == os.CLD_STOPPED:
        os.kill(pid, signal.SIGCONT)
    code, said = _end_of(pid, pipe)
    assert code == 0
    assert len(said) == LIVES[life][1]
    return was_stopped or any(has_seen for _, has_seen in said)


def _fail_at(_, fault):
    """Return how the life ends."""
    code, _ = _end_of(*_bear("alone", fault))
    assert code in (0, PARTED), fault
    return code


def _bear(life, *chosen):
    """Begin a life; return its pid, and from where _end_of() reads."""
    said, to_say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(said)
        signal.alarm(40)
        _do(LIVES[life][0], chosen, to_say)
    os.close(to_say)
    return pid, said


def _do(part, *args):
    """Play a part in a process of its own, which ends with it."""
    try:
        part(*args)
    except ksmemu.NotRunningError:
        os._exit(PARTED)
    finally:
        traceback.print_exc()
        os._exit(1)


def _end_of(pid, said):
    """Return how a life ended, and the (calls, has seen a stop) of each who lived to the end."""
    with os.fdopen(said) as pipe:
        lines = [json.loads(line) for line in pipe]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), lines


def _say(to_say, calls, *, has_seen_a_stop=False):
    os.write(to_say, json.dumps([calls, has_seen_a_stop]).encode() + b"\n")
    os._exit(0)


# ---- a life ----------------------------------------------------------------------------------------


def _merge_two():
    """Return two spaces that show the same frames."""
    spaces = [_Space() for _ in range(2)]
    for space in spaces:
        space.put(range(NR_PAGES), b"equal")
    _await(spaces, lambda: all(space.nr_private() == NR_PAGES for space in spaces))
    return spaces


def _live_alone(chosen, to_say):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    faults.begin(*chosen)
    first, second = spaces = _merge_two()
    first.put(range(2, 5), b"equal")
    first.put(range(6, 9), b"other")
    _await(spaces, lambda: first.nr_private() == NR_PAGES - 3)
    _twice(second.space.madvise_all, MADV_UNMERGEABLE)
    assert second.nr_private() == 0
    first.unmap_first()
    for space in spaces:
        space.end()
    calls = faults.end()
    if not any(name == "send" for name, *_ in chosen):  # a report may be missing: only death makes up for it
        ksmd = ksmemu.connect()
        wait_until(lambda: not any(map(ksmd.read, COUNTERS)), what="books of nothing")
    _say(to_say, calls)


def _live_with_a_child(chosen, to_say):
    """Pages are merged, were written since, or are being written; points are those of the fork."""
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    spaces = _merge_two()
    spaces[0].put(range(2, 5), b"of before")
    faults.begin(*chosen)
    if (pid := os.fork()) == 0:
        _do(_be_the_child, spaces, to_say)
    calls = faults.end()
    spaces[0].put(range(3, 9), b"the parent's")
    _, status = os.waitpid(pid, os.WUNTRACED)
    if is_stopped := os.WIFSTOPPED(status):
        for space in spaces:
            space.put(range(0, NR_PAGES, 2), b"of then")
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
    for space in spaces:
        space.end()
    _say(to_say, calls, has_seen_a_stop=is_stopped)


def _be_the_child(spaces, to_say):
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    signal.alarm(40)
    for space in spaces:
        space.go_on_alone()
    wait_until(lambda: all(space.is_joined() for space in spaces), what="the joining")
    calls = faults.end()
    for space in spaces:
        space.put(range(1, NR_PAGES + 2), b"the child's")
    for space in spaces:
        space.end()
    _say(to_say, calls)


def _live_and_join_again(chosen, to_say):
    """After the next order it cannot hear ksmd, and parts with it; points are those of joining it again."""
    from tests.support import faults  # noqa: PLC0415 - only where the core has them

    spaces = _merge_two()
    faults.begin(("recv", 1, FAIL, errno.ENOMEM), *chosen)
    for pages in (range(2, 5), range(6, 9)):  # the second order comes after the joining
        spaces[0].put(pages, b"other")
        spaces[0].put(pages, b"equal")
        wait_until(spaces[0].is_merged, what="a merge")
    calls = faults.end()
    for space in spaces:
        space.end()
    _say(to_say, calls)


LIVES = {
    "alone": (_live_alone, 1),
    "with a child": (_live_with_a_child, 2),
    "joining again": (_live_and_join_again, 1),
}
"""What is played, and by how many."""


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

    def go_on_alone(self):
        """In a child: whatever the thread had written at the fork stays."""
        self._thread = threading.Thread()
        self._thread.start()
        for page in range(NR_PAGES, NR_PAGES + NR_BUSY):
            self.model[page] = self.space.read(self.space.start + page * PAGE, PAGE)

    def is_joined(self):
        return self.space._own._agent.is_alive()

    def nr_private(self):
        """Return how many pages are merged, also if they have been written since."""
        start = self.space.start
        parts = procmaps.mappings("self", start, start + NR_PAGES * PAGE)
        return sum(part.pages for part in parts if "p" in part.perms and "r" in part.perms)

    def is_merged(self):
        """Whether all is, and nothing of it has been written since."""
        start = self.space.start
        return self.nr_private() == NR_PAGES and not procmaps.private_pages(
            "self", start, start + NR_PAGES * PAGE
        )

    def end(self):
        self.is_over = True
        self._thread.join()
        counted = self.count.to_bytes(8, "little").ljust(PAGE, b"\0")
        self.model = dict.fromkeys(range(NR_PAGES, NR_PAGES + NR_BUSY), counted) | self.model
        for page, want in self.model.items():
            assert self.space.read(self.space.start + page * PAGE, PAGE) == want
        _twice(self.space.close)
