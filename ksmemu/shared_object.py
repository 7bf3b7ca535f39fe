"""Shared-memory objects without a name: the own object of a space, and the pool. kill -9 leaks nothing."""

from __future__ import annotations

import logging
import os

import posix_ipc

from ksmemu import room

log = logging.getLogger(__name__)


def create(size: int, needed: int) -> int:
    """Make an object of `size` bytes, all hole, with no name left; return its descriptor.

    A POSIX shared-memory object where its file system has room for `needed` bytes. Where it has not, a page
    written later could end the writer by SIGBUS: a memfd serves then, which only memory bounds.

    Raises:
        OSError: EMFILE, ENFILE, ENOMEM; nothing is left behind.
    """
    if room.shm_bytes() >= needed:
        try:
            shared = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, mode=0o600, size=size)
        except OSError as error:
            log.warning("no POSIX shared memory (%s): a memfd serves", error)
        else:
            shared.unlink()
            os.set_inheritable(shared.fd, False)
            return int(shared.fd)
    else:
        log.warning("/dev/shm has no room for %d bytes: a memfd serves", needed)
    return create_memfd(size)


def create_memfd(size: int) -> int:
    """Make an object that no file system limits, only memory; errors as create()."""
    fd = os.memfd_create("ksmemu", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_read_only(fd: int) -> int:
    """Return a second descriptor of the object that cannot write."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
