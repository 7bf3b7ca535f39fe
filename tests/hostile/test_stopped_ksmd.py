"""A ksmd that is stopped (SIGSTOP) holds up the advice that needs it for a while, and nothing else."""

import errno
import itertools
import os
import signal
import socket
import struct
import time

import ksmemu
from ksmemu.mm import attach
from tests.support import crew
from tests.support.waiting import wait_until

NR_PAGES = 13
PATIENCE = struct.pack("ll", 10, 0)
"""Source: KSMEMU_PATIENCE_SECONDS."""


def advise_in_vain(state, seconds):
    attach._ANSWER_SECONDS = seconds
    try:
        crew.open_space(state, NR_PAGES)
    except OSError as error:
        return error.errno
    return 0


def test_a_first_advice_ends_in_an_error_and_the_next_one_works(ksmd, start_worker):
    worker = start_worker()
    signal.pidfd_send_signal(ksmd._pidfd, signal.SIGSTOP)
    try:
        assert worker.call(advise_in_vain, 0.5) == errno.ETIMEDOUT
    finally:
        signal.pidfd_send_signal(ksmd._pidfd, signal.SIGCONT)
    assert worker.call(advise_in_vain, 30.0) == 0
    worker.call(crew.put, 0, [7] * NR_PAGES)
    ksmd.wait_full_scans(3)
    assert ksmd.read("pages_sharing") == NR_PAGES - 1


def advise_until_nobody_listens(state):
    """Change the advice again and again, until that takes a second, and not the ten that there are."""
    patient = [fd for fd in map(int, os.listdir("/proc/self/fd")) if patience(fd) == PATIENCE]
    assert len(patient) == 1
    patience(patient[0], struct.pack("ll", 1, 0))
    for advice in itertools.cycle((ksmemu.MADV_UNMERGEABLE, ksmemu.MADV_MERGEABLE)):
        since = time.monotonic()
        crew.advise(state, 0, NR_PAGES, advice)
        if time.monotonic() - since >= 1:
            break
    wait_until(lambda: not state.space._own._agent.is_alive(), what="the parting")


def patience(fd, value=None):
    """Return how long a send may take, or None for what is no socket."""
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if value is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16)
    except OSError:
        return None


def test_advice_that_it_does_not_read_is_held_up_for_a_while(ksmd, start_worker):
    """Then the worker parts with it, and comes back to it when it runs again."""
    worker = start_worker()
    worker.call(crew.open_space, NR_PAGES)
    worker.call(crew.put, 0, [7] * NR_PAGES)
    ksmd.wait_full_scans(3)
    signal.pidfd_send_signal(ksmd._pidfd, signal.SIGSTOP)
    try:
        worker.call(advise_until_nobody_listens)
        assert worker.call(crew.differing, 0, [7] * NR_PAGES) == []
    finally:
        signal.pidfd_send_signal(ksmd._pidfd, signal.SIGCONT)
    content = [8] * 6 + [9] * (NR_PAGES - 6)
    worker.call(crew.put, 0, content)
    worker.call(crew.advise, 0, NR_PAGES, ksmemu.MADV_MERGEABLE)
    wait_until(lambda: ksmd.read("pages_sharing") == NR_PAGES - 2, 30.0, "another merge")
    assert worker.call(crew.differing, 0, content) == []
