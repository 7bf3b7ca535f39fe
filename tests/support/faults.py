"""Make calls of the core fail, in a process that has the core of faults.c: Worker(…, breaks.FAULTS).

A call is known by its name and its number among the calls of that name: ("register", 2). Of ioctl(2) and
syscall(2) the request is the name.
"""

import contextlib
import ctypes
import enum

from ksmemu import _core


class How(enum.IntEnum):
    """What becomes of the chosen call."""

    NONE, FAIL, HALF, KILL_BEFORE, KILL_AFTER, STOP_BEFORE, STOP_AFTER = range(7)


_lib = ctypes.CDLL(_core.__file__)


def begin(*chosen):
    """From now on note the calls. Each chosen one, (name, nth, how, errno), gets its fault; nth 0: all."""
    for name, nth, how, error in chosen:
        _lib.faults_choose(name.encode(), nth, how, error)
    _lib.faults_begin()


def end():
    """Return the names of the calls since begin()."""
    _lib.faults_end.restype = ctypes.c_char_p
    return _lib.faults_end().decode().split()


@contextlib.contextmanager
def fault(*chosen):
    """Begin and end; yield a list that has the names of the calls afterwards."""
    calls = []
    begin(*chosen)
    try:
        yield calls
    finally:
        calls += end()
