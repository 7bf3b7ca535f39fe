"""A worker that is stopped (SIGSTOP) holds up nobody, and obeys when it runs again."""

import os
import signal
import time

import pytest

from ksmemu.mm import maps
from tests.support.fakes import Honest
from tests.support.waiting import wait_until

PROMPT_SECONDS = 10.0


@pytest.fixture
def frozen(ksmd, start_worker):
    """A worker to be stopped; it runs again at the end, so that it can be ended."""
    frozen = Honest(ksmd, start_worker(), nr_pages=101)
    yield frozen
    frozen.worker.kill(signal.SIGCONT)


def _stop_with_merges_under_way(ksmd, frozen):
    ksmd.write("run", 0)
    frozen.worker.call(_write_equal_pages, frozen.nr_pages)
    frozen.worker.kill(signal.SIGSTOP)
    ksmd.write("run", 1)
    ksmd.wait_full_scans(5)


def _write_equal_pages(state, nr_pages):
    state.data = bytes(range(256)) * 16 * nr_pages
    for space in state.spaces:
        space.write(space.start, state.data)


def test_others_are_served_while_it_is_stopped(ksmd, honest, frozen):
    _stop_with_merges_under_way(ksmd, frozen)
    since = time.monotonic()
    for _ in range(3):
        honest.assert_is_served()
    ksmd.wait_full_scans(97, timeout=PROMPT_SECONDS)
    assert time.monotonic() - since < PROMPT_SECONDS
    frozen.worker.kill(signal.SIGCONT)
    frozen.assert_is_served()


@pytest.mark.parametrize("is_merged", [True, False])
def test_run_2_does_not_wait_for_it_and_it_unmerges_when_it_continues(ksmd, honest, frozen, is_merged):
    if is_merged:
        frozen.assert_is_served()
        frozen.worker.kill(signal.SIGSTOP)
    else:
        _stop_with_merges_under_way(ksmd, frozen)
    since = time.monotonic()
    ksmd.write("run", 2)
    assert time.monotonic() - since < PROMPT_SECONDS
    assert honest.worker.call(_nr_shown_merged) == 0
    honest.assert_bytes_are_intact()

    frozen.worker.kill(signal.SIGCONT)
    wait_until(lambda: frozen.worker.call(_nr_shown_merged) == 0, what="unmerged")
    wait_until(lambda: ksmd.read("pages_shared") == 0)
    frozen.assert_bytes_are_intact()
    ksmd.write("run", 1)
    frozen.assert_is_served()


def _own_inode(space):
    with space._own._opened() as own:
        return os.fstat(own).st_ino


def _nr_shown_merged(state):
    return sum(
        len(part)
        for space in state.spaces
        for part in maps.not_of(_own_inode(space), space.start, space.start + space.size)
    )


def test_it_may_die_while_it_is_stopped(ksmd, honest, frozen):
    _stop_with_merges_under_way(ksmd, frozen)
    frozen.worker.kill(signal.SIGKILL)
    wait_until(lambda: ksmd.read("spaces") == 2)
    wait_until(lambda: ksmd.read("pages_shared") == honest.nr_pages)
    honest.assert_is_served()
