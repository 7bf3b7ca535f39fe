"""A command in a terminal: what it writes there, and keys for it."""

import contextlib
import os
import pty
import select
import subprocess

from tests.support.processes import DEADLINE


class Terminal:
    """Runs a command in a terminal; use as a context manager.

    Attributes:
        said: all that was written to it so far, as it came.
    """

    def __init__(self, command, **variables):
        self._ours, theirs = pty.openpty()
        env = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"} | variables
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        self.said = b""

    def until(self, text):
        """Return when a text was written."""
        while text not in self.said:
            assert self._read(), f"no {text!r} in {self.said!r}"

    def press(self, keys):
        os.write(self._ours, keys)

    def status(self):
        """Return the exit status, when it has ended and all was read."""
        while self._read():
            pass
        return self.process.wait(DEADLINE)

    def _read(self):
        """Read what comes next; return whether something did."""
        assert select.select([self._ours], [], [], DEADLINE)[0], f"nothing after {self.said!r}"
        with contextlib.suppress(OSError):  # EIO: nobody is at the other end any more
            more = os.read(self._ours, 1 << 16)
            self.said += more
            return bool(more)
        return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
