"""Shared-memory objects that never had a name: own objects of spaces, and the pool. kill -9 leaks nothing."""

from __future__ import annotations

import logging
import os

from ksmemu import room

log = logging.getLogger(__name__)


def create(size: int, needed: int) -> int:
    """Make an object of `size` bytes, all hole; return its descriptor.

    It lies where POSIX shared memory does, if there is room for `needed` bytes. If there is not, a page
    written later could end the writer by SIGBUS: a memfd serves then, which only memory bounds.

    Raises:
        OSError: EMFILE, ENFILE, ENOMEM; nothing is left behind.
    """
    if room.shm_bytes() >= needed:
        try:
            # What shm_open(3) makes has a name at first: who is killed before unlinking it leaves it behind.
            fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("no shared memory in /dev/shm (%s): a memfd serves", error)
        else:
            return _sized(fd, size)
    else:
        log.warning("/dev/shm has no room for %d bytes: a memfd serves", needed)
    return create_memfd(size)


def create_memfd(size: int) -> int:
    """Make an object that no file system limits, only memory; errors as create()."""
    return _sized(os.memfd_create("ksmemu", os.MFD_CLOEXEC), size)


def _sized(fd: int, size: int) -> int:
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_read_only(fd: int) -> int:
    """Return a second descriptor of the object that cannot write."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
