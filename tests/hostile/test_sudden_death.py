"""Workers and ksmd killed at random moments: nothing of the dead stays, nothing of the living is lost."""

import contextlib
import os
import random
import signal
import threading

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from tests.support import procmaps
from tests.support.fakes import Honest
from tests.support.waiting import wait_until

PAGE = procmaps.PAGE
NR_PAGES = 307
NR_DEATHS = 101
NR_LIVES = 7
COUNTERS = ("workers", "spaces", "pages_shared", "pages_sharing", "pages_tracked", "pool_bytes")


def test_a_worker_killed_at_any_moment_leaves_nothing(ksmd, start_worker):
    """Each is a child of a process that has advised nothing itself, so that it is quick to be born."""
    mother = start_worker()
    chance = random.Random(NR_DEATHS)
    names = procmaps.shm_names()
    for round_ in range(NR_DEATHS):
        mother.call(_bear_and_kill, chance.uniform(0.0, 0.05))
        wait_until(lambda: not any(map(ksmd.read, COUNTERS)), what=f"zero after death {round_}")
    assert procmaps.shm_names() == names


def _bear_and_kill(state, seconds):
    ready, in_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            _write_for_ever(in_child)
        os._exit(1)
    os.close(in_child)
    assert os.read(ready, 1)
    os.close(ready)
    threading.Event().wait(seconds)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def _write_for_ever(ready):
    spaces = [ksmemu.AddressSpace(NR_PAGES * PAGE) for _ in range(2)]
    for space in spaces:
        space.mmap(space.size)
        space.madvise_all(MADV_MERGEABLE)
    os.write(ready, b"x")
    while True:
        data = os.urandom(NR_PAGES * PAGE)
        for space in spaces:
            space.write(space.start, data)
        threading.Event().wait(0.007)


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
    """Each time the worker joins the next one with new spaces; those of the old one stay readable."""
    chance = random.Random(NR_LIVES)
    worker = start_worker()
    worker.call(_begin)
    for _ in range(NR_LIVES):
        ksmd = start_ksmd(run=1, pages_to_scan=1_000_003, sleep_millisecs=0)
        worker.call(_add_twins, ksmd.directory)
        threading.Event().wait(chance.uniform(0.0, 0.03))
        _kill(ksmd)
        worker.call(_check_all)
    worker.call(_write_and_check_all)


def _begin(state):
    state.spaces, state.wanted = [], []


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
    state.wanted = [os.urandom(len(wanted)) for wanted in state.wanted]
    for space, wanted in zip(state.spaces, state.wanted, strict=True):
        space.write(space.start, wanted)
    _check_all(state)
