"""The soak itself runs beside the suite (`make soak`); here: what it would notice."""

import os
import random
import signal

import pytest

from ksmemu.control import launch
from tests import soak
from tests.support.processes import Worker, WorkerError

MINUTES = 0.5
NOTICED = {
    "verify": ("ksmemu.ksmd", "bytes are lost"),
    "copy": ("ksmemu.ksmd", "bytes are lost"),
    "count": ("tests.support.ksmd_main", r"AssertionError: (frames|memory of the pool|pages that refer)"),
}
"""Step that is taken out -> who runs as ksmd, what the soak then says."""


def soak_here(_, ksmd_module):
    launch.MODULE = ksmd_module
    soak.BOOKS_SECONDS = 1.0
    soak.run(MINUTES, random.SystemRandom().randrange(1 << 32))


@pytest.mark.parametrize("step", NOTICED)
def test_the_soak_would_notice_without(step):
    module, text = NOTICED[step]
    with Worker(break_step=step) as driver, pytest.raises(WorkerError, match=text):
        driver.call(soak_here, module)


def soak_with_a_worker_that_stays_stopped(_):
    soak.TURN_SECONDS = 2.0
    soak._ACTIONS = {soak.Soak.stop_worker: 1}
    soak.Soak.stop = lambda _, pid: os.kill(pid, signal.SIGSTOP)
    soak.run(MINUTES, random.SystemRandom().randrange(1 << 32))


def test_the_soak_would_notice_a_worker_that_hangs():
    with Worker() as driver, pytest.raises(WorkerError, match="threads hang"):
        driver.call(soak_with_a_worker_that_stays_stopped)
