"""What the machine has once: the kernel's own KSM, its tunables, its swap. Several tests run at a time.

Who changes them waits until nobody looks, and who relies on them until nobody changes them. Only flock() is
used, on a file that everybody may read: it ends with its holder.
"""

import contextlib
import ctypes
import fcntl
import os
import subprocess
from pathlib import Path

MAX_MAP_COUNT = "/proc/sys/vm/max_map_count"
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _locked(how):
    with open(MAX_MAP_COUNT, encoding="ascii") as file:
        fcntl.flock(file, how)
        yield


def changed():
    """A context in which this test alone may change them."""
    return _locked(fcntl.LOCK_EX)


def unchanged():
    """A context in which no other test changes them."""
    return _locked(fcntl.LOCK_SH)


@contextlib.contextmanager
def set_to(path, value):
    """Give a tunable of the kernel another value while the block runs."""
    before = Path(path).read_text()
    Path(path).write_text(str(value))
    try:
        assert int(Path(path).read_text()) == value
        yield
    finally:
        Path(path).write_text(before)


@contextlib.contextmanager
def swap_in(path, size):
    """Let the kernel swap into a file while the block runs."""
    path.touch(0o600)
    os.posix_fallocate(fd := os.open(path, os.O_RDWR), 0, size)
    os.close(fd)
    subprocess.run(["mkswap", path], stdout=subprocess.DEVNULL, check=True)
    _swap(_LIBC.swapon, path, 0)
    try:
        yield
    finally:
        _swap(_LIBC.swapoff, path)


def _swap(call, path, *flags):
    if call(os.fspath(path).encode(), *flags):
        raise OSError(ctypes.get_errno(), f"swap in {path}")
