"""Forking with an advised space: a warning, closed objects in the child, and the parent as it was."""

import gc
import json
import os
import subprocess
import warnings

import multiprocess
import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, ForkWarning
from tests.support import procmaps
from tests.support.fakes import nr_merged
from tests.support.waiting import wait_until

PAGE = procmaps.PAGE
NR_PAGES = 23
OURS = ("userfaultfd", "/dev/shm/", "memfd:", "socket:", "pagemap")


CALLS = (
    lambda space: space.read(space.start, PAGE),
    lambda space: space.write(space.start, b"x"),
    lambda space: space.madvise_all(MADV_MERGEABLE),
    lambda space: space.mmap(PAGE),
)


def _descriptors_of_ours():
    """What is open beside the socket over which the test talks to this process."""
    found = procmaps.descriptors("self").items()
    return sorted(f"{fd} {what}" for fd, what in found if any(name in what for name in OURS))


def _mappings_of_ours():
    return [m.path for m in procmaps.mappings("self") if "/dev/shm/" in m.path or "memfd:" in m.path]


def _in_child(function, *args):
    """Fork, and return what the function returns there and which warnings the parent had."""
    read, write = os.pipe()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(write, json.dumps(function(*args)).encode())
                status = 0
            finally:
                os._exit(status)
    os.close(write)
    with open(read, "rb") as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return json.loads(said), [warning.category for warning in caught]


def _look(spaces):
    """What a child sees of the spaces it inherited: everything raises, nothing is held."""
    refusals = 0
    for space in spaces:
        for call in CALLS:
            try:
                call(space)
            except ValueError as error:
                refusals += "closed" in str(error)
        space.close()
    spaces.clear()
    gc.collect()
    return refusals, _descriptors_of_ours(), _mappings_of_ours(), procmaps.threads("self")


@pytest.fixture
def forking(ksmd, start_worker):
    """A worker that knows what it held before it joined ksmd, with two spaces that are merged."""
    worker = start_worker()
    worker.call(_make_twins)
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES)
    return worker


def _make_twins(state):
    state.before = _descriptors_of_ours()
    state.data = os.urandom(NR_PAGES * PAGE)
    state.spaces = [ksmemu.AddressSpace(len(state.data)) for _ in range(2)]
    for space in state.spaces:
        space.mmap(space.size)
        space.madvise_all(MADV_MERGEABLE)
        space.write(space.start, state.data)


def _has_its_bytes(state):
    return all(space.read(space.start, space.size) == state.data for space in state.spaces)


def _fork_and_look(state):
    (refusals, descriptors, mappings, threads), warned = _in_child(_look, list(state.spaces))
    assert warned == [ForkWarning]
    assert refusals == 8
    assert descriptors == state.before
    assert mappings == []
    assert threads == 1
    assert _has_its_bytes(state)


def _write_anew(state):
    state.data = os.urandom(len(state.data))
    for space in state.spaces:
        space.write(space.start, state.data)


def _assert_parent_is_unharmed(ksmd, worker):
    assert worker.call(_has_its_bytes)
    worker.call(_write_anew)
    wait_until(lambda: worker.call(nr_merged) == 2 * NR_PAGES)
    assert worker.call(_has_its_bytes)
    assert (ksmd.read("workers"), ksmd.read("spaces")) == (1, 2)


def test_a_fork_warns_and_closes_the_objects_in_the_child_alone(ksmd, forking):
    for _ in range(3):
        forking.call(_fork_and_look)
    _assert_parent_is_unharmed(ksmd, forking)


def test_a_fork_by_multiprocess_does_the_same(ksmd, forking):
    forking.call(_fork_by_multiprocess)
    _assert_parent_is_unharmed(ksmd, forking)


def _fork_by_multiprocess(state):
    context = multiprocess.get_context("fork")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours, theirs = context.Pipe()
        child = context.Process(target=lambda: theirs.send(_look(list(state.spaces))[0]))
        child.start()
        refusals = ours.recv()
        child.join(30)
    assert [warning.category for warning in caught] == [ForkWarning]
    assert (refusals, child.exitcode) == (8, 0)
    assert _has_its_bytes(state)


def test_forks_in_the_middle_of_merging_lose_nothing(ksmd, forking):
    for _ in range(37):
        forking.call(_write_and_fork)
    _assert_parent_is_unharmed(ksmd, forking)


def _write_and_fork(state):
    _write_anew(state)
    _, warned = _in_child(list)
    assert warned == [ForkWarning]
    assert _has_its_bytes(state)


def test_a_child_may_join_with_spaces_of_its_own(ksmd, forking):
    forking.call(_join_in_child)
    wait_until(lambda: (ksmd.read("workers"), ksmd.read("spaces")) == (1, 2))
    _assert_parent_is_unharmed(ksmd, forking)


def _join_in_child(state):
    def join():
        with ksmemu.connect() as ksmd:
            _make_twins(state)
            wait_until(lambda: ksmd.read("pages_shared") == 2 * NR_PAGES)
        return _has_its_bytes(state)

    is_intact, _ = _in_child(join)
    assert is_intact


def test_an_unadvised_space_is_forked_as_any_memory(ksmd, start_worker):
    worker = start_worker()
    worker.call(_fork_unadvised)
    _assert_parent_is_unharmed(ksmd, worker)


def _fork_unadvised(state):
    state.data = os.urandom(NR_PAGES * PAGE)
    state.spaces = [ksmemu.AddressSpace(len(state.data)) for _ in range(2)]
    for space in state.spaces:
        space.mmap(space.size)
        space.write(space.start, state.data)
    parents = state.data

    def live():
        with ksmemu.connect() as ksmd:
            assert _has_its_bytes(state)
            _write_anew(state)
            for space in state.spaces:
                space.madvise_all(MADV_MERGEABLE)
            wait_until(lambda: ksmd.read("pages_shared") == NR_PAGES)
            assert _has_its_bytes(state)
            _write_anew(state)
        return _has_its_bytes(state)

    is_intact, warned = _in_child(live)
    assert is_intact
    assert warned == []
    assert state.data == parents
    assert _has_its_bytes(state)
    for space in state.spaces:
        space.madvise_all(MADV_MERGEABLE)
    with ksmemu.connect() as ksmd:
        wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES)


def test_a_program_started_by_an_advised_process_inherits_nothing(ksmd, forking):
    forking.call(_start_a_program)
    _assert_parent_is_unharmed(ksmd, forking)


def _start_a_program(state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], close_fds=False, stdout=subprocess.PIPE, check=True
        )
    inherited = [line for line in run.stdout.decode().splitlines() if any(name in line for name in OURS)]
    assert len(inherited) <= len(state.before), inherited
    assert _has_its_bytes(state)
