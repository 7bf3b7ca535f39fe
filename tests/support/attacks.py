"""What a hostile worker may try on the frames of the pool. Each returns whether it succeeded."""

import ctypes
import mmap
import os

from tests.support import crew, procmaps
from tests.support.procmaps import PAGE

_libc = ctypes.CDLL(None, use_errno=True)


def _succeeds(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True


def map_for_writing(state, frame):
    pool = crew.pool_descriptor(state.space)

    def attempt():
        flags, prot = mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        with mmap.mmap(pool, PAGE, flags, prot, offset=frame * PAGE) as memory:
            memory[0:3] = b"bad"

    return _succeeds(attempt)


def write_to_the_descriptor(state, frame):
    pool = crew.pool_descriptor(state.space)
    return _succeeds(lambda: os.pwrite(pool, b"bad", frame * PAGE))


def shrink(state, frame):
    pool = crew.pool_descriptor(state.space)
    size = os.fstat(pool).st_size

    def attempt():
        os.ftruncate(pool, frame * PAGE)
        os.ftruncate(pool, size)

    return _succeeds(attempt)


def punch(state, frame):
    pool = crew.pool_descriptor(state.space)
    keep_size_and_punch = 3

    def attempt():
        start, size = ctypes.c_long(frame * PAGE), ctypes.c_long(PAGE)
        if _libc.fallocate(pool, keep_size_and_punch, start, size):
            raise OSError(ctypes.get_errno(), "fallocate")

    return _succeeds(attempt)


def unprotect_the_view(state, frame):
    """Make the agent's own view of the pool, with which it verifies, writable."""
    inode = os.fstat(crew.pool_descriptor(state.space)).st_ino
    view = next(m for m in procmaps.mappings(os.getpid()) if m.inode == inode and m.perms.endswith("s"))
    address = view.start + frame * PAGE - view.offset

    def attempt():
        prot = mmap.PROT_READ | mmap.PROT_WRITE
        if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), prot):
            raise OSError(ctypes.get_errno(), "mprotect")
        ctypes.memmove(address, b"bad", 3)

    return _succeeds(attempt)


def open_for_writing(state, frame):
    pool = crew.pool_descriptor(state.space)

    def attempt():
        again = os.open(f"/proc/self/fd/{pool}", os.O_RDWR)
        os.pwrite(again, b"bad", frame * PAGE)
        os.close(again)

    return _succeeds(attempt)


ATTACKS = [
    map_for_writing,
    write_to_the_descriptor,
    shrink,
    punch,
    unprotect_the_view,
    open_for_writing,
]
