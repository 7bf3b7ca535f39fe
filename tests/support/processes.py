"""Workers of the tests: real processes that run functions of a test, under a SIGKILL deadline.

A Python thread that faults on a frozen page keeps the GIL: only another process can end such a test.
"""

import os
import select
import signal
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection, Pipe

import dill

from tests.support import procmaps
from tests.support.waiting import wait_until

DEADLINE = 60.0
_MAIN = "tests.support.processes"


class WorkerError(AssertionError):
    """A function raised in a worker; the text has its traceback."""


class Worker:
    """A child process; `call(function, *args)` runs function(state, *args) there and returns its result.

    `state` is a namespace that lasts as long as the worker. Functions travel by dill, so closures work.
    """

    def __init__(self, directory=None, break_step=None, prefix=()):
        ours, theirs = Pipe()
        command = [sys.executable, "-m", _MAIN, str(theirs.fileno())]
        env = {**os.environ}
        if directory is not None:
            env["KSMEMU_DIR"] = str(directory)
        if break_step is not None:
            env["KSMEMU_BREAK"] = break_step
        command = [*prefix, *command]  # it must end in exec: the pid is to be the worker's
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env)
        self.pid = self.process.pid
        theirs.close()
        self._connection = ours

    def start(self, function, *args):
        """Begin a call; finish() returns its result."""
        self._connection.send_bytes(dill.dumps((function, args), recurse=True))

    def finish(self, timeout=DEADLINE):
        if not self._connection.poll(timeout):
            self.kill()
            raise AssertionError(f"a worker did not answer in {timeout} s and was killed")
        try:
            ok, result = dill.loads(self._connection.recv_bytes())
        except EOFError:
            raise WorkerError(f"the worker died: {self.process.wait(DEADLINE)}") from None
        if not ok:
            raise WorkerError(result)
        return result

    def call(self, function, *args, timeout=DEADLINE):
        self.start(function, *args)
        return self.finish(timeout)

    def is_done(self):
        return self._connection.poll(0)

    def kill(self, number=signal.SIGKILL):
        if self.process.poll() is None:
            self.process.send_signal(number)
            if number == signal.SIGSTOP:  # its threads may run for a moment longer
                wait_until(lambda: {*procmaps.thread_states(self.pid)} == {"T"}, what="the stop")
            if number == signal.SIGKILL:
                self.process.wait(DEADLINE)

    def close(self):
        """Let the worker end; kill it if it does not."""
        self._connection.close()
        if self.process.poll() is None:
            end = os.pidfd_open(self.pid)  # wait() with a timeout would look every 50 ms only
            select.select([end], [], [], DEADLINE)
            os.close(end)
        self.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class State:
    """What the functions of a test keep in a worker."""


def serve(connection, state):
    """Run what comes, until the other end is closed."""
    while True:
        try:
            function, args = dill.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = True, function(state, *args)
        except BaseException:
            answer = False, traceback.format_exc()
        connection.send_bytes(dill.dumps(answer, recurse=True))


if __name__ == "__main__":
    if os.environ.get("KSMEMU_BREAK"):
        from tests.support import breaks

        breaks.load(os.environ["KSMEMU_BREAK"])
    elif "KSMEMU_CORE" in os.environ:
        from tests.support import core_plugin  # noqa: F401 - the core that the whole run is to use
    import ksmemu  # noqa: F401 - while the others start, and not one after the other in their first calls

    serve(Connection(int(sys.argv[1])), State())
