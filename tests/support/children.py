"""Tests that may hang run in a child under a SIGKILL deadline: a writer frozen for good keeps the GIL."""

import functools
import gc
import os
import select
import signal
import traceback
from pathlib import Path

from tests.support import procmaps
from tests.support.waiting import wait_until

DEADLINE = 40.0


def in_child(test):
    """Run a test in a child of its own; what it leaves behind there fails it too."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        said, to_say = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(said)
            os._exit(_act(lambda: test(*args, **kwargs), to_say))
        os.close(to_say)
        _judge(pid, said)

    return run


def _act(act, to_say):
    try:
        before = _inventory()
        act()
        gc.collect()
        # A thread that was joined can be seen in /proc for a moment longer.
        wait_until(lambda: _inventory() == before, 5.0, "the end of all descriptors and threads")
    except BaseException:
        os.write(to_say, traceback.format_exc().encode())
        return 1
    return 0


def _inventory():
    open_ones = {f: what for f, what in procmaps.descriptors(os.getpid()).items() if "/proc/" not in what}
    return open_ones, len(list(Path("/proc/self/task").iterdir()))


def _judge(pid, said):
    pidfd = os.pidfd_open(pid)
    is_over = select.select([pidfd], [], [], DEADLINE)[0]
    if not is_over:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(pidfd)
    with os.fdopen(said, "rb") as pipe:
        text = pipe.read().decode()
    assert is_over, f"the child was killed after {DEADLINE} s"
    assert status == 0, f"status {status}\n{text}"
