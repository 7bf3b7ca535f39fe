"""Workers and ksmd killed at random moments: nothing of the dead stays, nothing of the living is lost.

KSMEMU_WORKER_KILLS and KSMEMU_KSMD_KILLS say how many (`make kills`: 1,000 and 200).
"""

import collections
import contextlib
import os
import random
import signal
import struct
import threading

import numpy as np
import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from tests.support import books, crew, leftovers, procmaps
from tests.support.books import Member
from tests.support.fakes import Honest
from tests.support.waiting import wait_until

PAGE = procmaps.PAGE
NR_PAGES = 307
NR_DEATHS = int(os.environ.get("KSMEMU_WORKER_KILLS", "53"))
NR_LIVES = int(os.environ.get("KSMEMU_KSMD_KILLS", "7"))
NR_KEPT = 3
SEED = 307
_STARTS = struct.Struct("3Q")


def test_a_worker_killed_at_any_moment_leaves_nothing(ksmd, start_worker):
    """Each is a child of a process that has advised nothing itself, so that it is quick to be born.

    It shares pages with a worker that lives on: then the books must be what that one maps.
    """
    mother = start_worker()
    names, in_ksmd = procmaps.shm_names(), None
    living = Member.join(start_worker(), NR_PAGES)
    living.call(crew.fill_unique, 0, NR_PAGES, SEED)
    chance = random.Random(NR_DEATHS)
    nr_amid = 0
    for round_ in range(NR_DEATHS):
        nr_amid += mother.call(_bear_and_kill, round_, chance.uniform(0.0, 0.03))
        wait_until(lambda: ksmd.read("workers") == 1, what=f"the end of worker {round_}")
        living.call(crew.put_byte, chance.randrange(NR_PAGES - 7), 7, 1777, round_ % 256)
        books.wait_at_rest(ksmd)
        books.check_tracked(ksmd, [living], books.check(ksmd, [living]))
        in_ksmd = in_ksmd or leftovers.of_busy_ksmd(ksmd)
        assert leftovers.of_busy_ksmd(ksmd) == in_ksmd
    assert procmaps.shm_names() == names
    assert nr_amid >= NR_DEATHS // 20, "hardly one died while its pages were being merged"


def _bear_and_kill(state, round_, seconds):
    """Return whether the dead had merged some of its twin pages, and not all, a moment before."""
    said, in_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            _write_for_ever(in_child, round_)
        os._exit(1)
    os.close(in_child)
    starts = _STARTS.unpack(os.read(said, _STARTS.size))
    os.close(said)
    twins = [(pid, start, start + NR_PAGES * PAGE) for start in starts[:2]]
    if round_ % 2:
        wait_until(lambda: procmaps.recount(twins).merged, what="the beginning of a merge")
    threading.Event().wait(seconds)
    found = procmaps.recount(twins)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return found.merged > found.broken and found.own > 0


def _write_for_ever(to_say, seed):
    """Two spaces get the same pages again and again, shuffled; a third has what the living one has."""
    spaces = [ksmemu.AddressSpace(NR_PAGES * PAGE) for _ in range(3)]
    views = [space.ndarray((NR_PAGES, PAGE // 8), np.uint64) for space in spaces]
    for space in spaces:
        space.madvise_all(MADV_MERGEABLE)
    views[2][:] = np.random.default_rng(SEED).integers(1 << 63, size=views[2].shape, dtype=np.uint64)
    os.write(to_say, _STARTS.pack(*(space.start for space in spaces)))
    chance = np.random.default_rng(seed)
    while True:
        data = chance.integers(1 << 63, size=views[0].shape, dtype=np.uint64)
        for view in views[:2]:
            view[:] = chance.permutation(data)
        threading.Event().wait(0.017)


@pytest.fixture
def living(ksmd, start_worker):
    living = Honest(ksmd, start_worker(), nr_pages=NR_PAGES)
    living.assert_is_served()
    return living


def _kill(ksmd):
    os.kill(ksmd.pid, signal.SIGKILL)
    ksmd.close()


def test_when_ksmd_is_killed_its_workers_go_on(ksmd, living):
    _kill(ksmd)
    living.assert_bytes_are_intact()
    assert living.is_merged()
    living.worker.call(_write_half)
    living.assert_bytes_are_intact()
    living.worker.call(_unadvise)
    living.assert_bytes_are_intact()
    assert not living.worker.call(_is_advice_possible)
    living.worker.call(_close)


def _write_half(state):
    half = len(state.data) // 2
    state.data = os.urandom(half) + state.data[half:]
    for space in state.spaces:
        space.write(space.start, state.data)


def _unadvise(state):
    for space in state.spaces:
        space.madvise_all(MADV_UNMERGEABLE)
        assert {m.perms for m in procmaps.mappings("self", space.start, space.start + space.size)} == {"rw-s"}


def _is_advice_possible(state):
    try:
        state.spaces[0].madvise_all(MADV_MERGEABLE)
    except ksmemu.NotRunningError:
        return False
    return True


def _close(state):
    for space in state.spaces:
        space.close()
    assert not [m for m in procmaps.mappings("self") if "/dev/shm/" in m.path]
    assert not [what for what in procmaps.descriptors("self").values() if "userfaultfd" in what]


def test_ksmd_killed_while_it_merges_leaves_every_byte(start_ksmd, start_worker):
    """Each time the worker joins the next one with new spaces; those of the old ones stay readable."""
    chance = random.Random(NR_LIVES)
    names = procmaps.shm_names()
    worker = start_worker()
    before = worker.call(_begin)
    for _ in range(NR_LIVES):
        ksmd = start_ksmd(run=1, pages_to_scan=1_000_003, sleep_millisecs=0)
        worker.call(_add_twins, ksmd.directory)
        threading.Event().wait(chance.uniform(0.0, 0.03))
        _kill(ksmd)
        worker.call(_check_all)
        worker.call(_close_the_oldest, 2 * NR_KEPT)
    worker.call(_write_and_check_all)
    assert worker.call(_close_the_oldest, 0) == before
    assert procmaps.shm_names() == names


def _begin(state):
    state.spaces, state.wanted = collections.deque(), collections.deque()
    return leftovers.of_worker(state)


def _close_the_oldest(state, nr_kept):
    while len(state.spaces) > nr_kept:
        state.spaces.popleft().close()
        state.wanted.popleft()
    return leftovers.of_worker(state)


def _add_twins(state, directory):
    data = os.urandom(NR_PAGES * PAGE)
    for _ in range(2):
        space = ksmemu.AddressSpace(len(data), instance=directory)
        space.mmap(space.size)
        space.madvise_all(MADV_MERGEABLE)
        space.write(space.start, data)
        state.spaces.append(space)
        state.wanted.append(data)


def _check_all(state):
    for space, wanted in zip(state.spaces, state.wanted, strict=True):
        assert space.read(space.start, space.size) == wanted


def _write_and_check_all(state):
    state.wanted = collections.deque(os.urandom(len(wanted)) for wanted in state.wanted)
    for space, wanted in zip(state.spaces, state.wanted, strict=True):
        space.write(space.start, wanted)
    _check_all(state)
