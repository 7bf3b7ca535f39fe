"""What the workers of an oracle test do with anonymous memory: crew.py for the kernel's own KSM.

AnonymousSpace has the face of an AddressSpace, so most of crew's functions serve both.
"""

import ctypes
import errno
import hashlib
import mmap
import os

import numpy as np

import ksmemu
from tests.support import procmaps
from tests.support.crew import (  # noqa: F401 - the same names, for either engine
    advise,
    close_space,
    differing,
    fill_with,
    is_filled_with,
    map_again,
    number_pages,
    put,
    put_byte,
    unmap,
)
from tests.support.procmaps import PAGE

_NOHUGEPAGE = 15
_FIXED_NOREPLACE = 0x100000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _checked(result):
    if result not in {0, None}:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class AnonymousSpace:
    """Private anonymous memory in small pages, with the methods of an AddressSpace that tests need."""

    def __init__(self, size, *, node=0):
        self.size = size
        self.start = self.mmap(size)

    def mmap(self, length, address=None):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (_FIXED_NOREPLACE if address else 0)
        at = _libc.mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert at != ctypes.c_void_p(-1).value
        self.madvise(at, length, _NOHUGEPAGE)
        return at

    def madvise(self, address, length, advice):
        _checked(_libc.madvise(address, length, advice))

    def munmap(self, address, length):
        _checked(_libc.munmap(address, length))

    def close(self):
        self.munmap(self.start, self.size)

    def read(self, address, length):
        return ctypes.string_at(address, length)

    def write(self, address, data):
        ctypes.memmove(address, bytes(data), len(data))

    def ndarray(self, shape, dtype, address):
        dtype = np.dtype(dtype)
        nr_bytes = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_char * nr_bytes).from_address(address), dtype).reshape(shape)


def open_space(state, nr_pages):
    """Map and advise a space; return (pid, start, end)."""
    found = open_ordinary_space(state, nr_pages)
    advise(state, 0, nr_pages, mmap.MADV_MERGEABLE)
    return found


def open_ordinary_space(state, nr_pages):
    """Map a space and advise nothing; return (pid, start, end)."""
    state.space = AnonymousSpace(nr_pages * PAGE)
    state.start = state.space.start
    return os.getpid(), state.start, state.start + nr_pages * PAGE


def prctl(option, *args):
    """Call it with all arguments: libc passes on whatever the registers hold for the others."""
    result = _libc.prctl(option, *map(ctypes.c_ulong, args))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def set_merge(state, on):
    """Call the prctl, for the space alone."""
    prctl(ksmemu.PR_SET_MEMORY_MERGE, int(on), 0, 0, 0)
    leave_the_rest_out(state)


def leave_the_rest_out(state):
    """Opt out what the interpreter owns: in ksmemu nothing but spaces can be merged.

    It gives memory back and takes some as it looks, so the kernel is asked until it says that there is none.
    """
    space = state.space
    while others := [
        (start, end)
        for start, end in procmaps.mergeable("self")
        if end <= space.start or start >= space.start + space.size
    ]:
        for start, end in others:
            try:
                space.madvise(start, end - start, mmap.MADV_UNMERGEABLE)
            except OSError as error:
                if error.errno != errno.ENOMEM:  # given back since
                    raise


def load(state, name):
    """Hold a file in an advised space, as workers/image.py does; return (pid, start, end)."""
    with open(name, "rb", buffering=0) as file:
        nr_bytes = os.fstat(file.fileno()).st_size
        found = open_space(state, -(-nr_bytes // PAGE))
        memory = memoryview(state.space.ndarray(nr_bytes, np.uint8, state.start))
        while memory:
            memory = memory[file.readinto(memory) :]
    return found


def digest(state):
    """Return the SHA-256 of the whole space."""
    return hashlib.sha256(state.space.ndarray(state.space.size, np.uint8, state.start)).hexdigest()


def discard(state, first, nr):
    """Throw pages away, so that they hold no memory until they are written; they are mergeable anew."""
    for advice in (mmap.MADV_DONTNEED, mmap.MADV_MERGEABLE):
        state.space.madvise(state.start + first * PAGE, nr * PAGE, advice)
