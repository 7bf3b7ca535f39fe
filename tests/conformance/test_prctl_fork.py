"""test_prctl_fork and test_prctl_fork_exec of ksm_functional_tests: children inherit the prctl."""

import os
import subprocess
import sys

import pytest

import ksmemu
from tests.support import inheritor

NR_PAGES = 512


@pytest.fixture
def parent(ksmd, child):
    """Start a worker that has turned merging on, or not, and owns a merged page or two itself."""
    ksmd.write("run", 1)

    def start(*, on=True):
        one = child()
        one.call(turn, on)
        return one

    return start


def turn(state, on):
    if on:
        ksmemu.set_memory_merge(True)
    state.space = ksmemu.AddressSpace(2 * inheritor.PAGE)
    state.space.mmap(state.space.size)
    state.space.madvise_all(ksmemu.MADV_MERGEABLE)  # ksmd scans only where something is registered


def in_a_fork(_, exec_):
    """Return what a forked child reports; it has ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        if exec_:
            os.execv(sys.executable, [sys.executable, "-m", inheritor.__name__])
        os.write(1, inheritor.report(NR_PAGES).encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        told = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return told.strip()


def in_a_program(_):
    return subprocess.run(
        [sys.executable, "-m", inheritor.__name__], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def test_prctl_fork(parent):
    assert parent().call(in_a_fork, False) == f"1 {NR_PAGES}"


def test_prctl_fork_exec(parent):
    assert parent().call(in_a_fork, True) == f"1 {NR_PAGES}"


def test_a_worker_that_a_worker_starts(parent):
    assert parent().call(in_a_program) == f"1 {NR_PAGES}"


def test_nothing_is_inherited_of_nothing(parent):
    """The negative control: without the prctl no child merges."""
    one = parent(on=False)
    assert one.call(in_a_fork, False) == one.call(in_a_fork, True) == one.call(in_a_program) == "0 0"
