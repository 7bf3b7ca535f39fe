"""What the workers of a test do: map, fill, check, advise. Each function runs in a worker.

A content is a number: 0 is the page of zeros, n a page that only n looks like.
"""

import ctypes
import functools
import hashlib
import mmap
import os

import numpy as np

import ksmemu
from tests.support import procmaps
from tests.support.procmaps import PAGE

_libc = ctypes.CDLL(None, use_errno=True)


@functools.lru_cache(4096)
def content(number):
    return hashlib.shake_128(str(number).encode()).digest(PAGE) if number else bytes(PAGE)


def open_space(state, nr_pages, domain=None):
    """Map and advise a space; return (pid, start, end) as procmaps.recount() takes it."""
    state.space = ksmemu.AddressSpace(nr_pages * PAGE, domain=domain)
    state.start = state.space.mmap(nr_pages * PAGE)
    state.space.madvise(state.start, nr_pages * PAGE, ksmemu.MADV_MERGEABLE)
    return os.getpid(), state.start, state.start + nr_pages * PAGE


def put(state, first, numbers):
    """Write contents, a page each."""
    for page, number in enumerate(numbers, first):
        state.space.write(state.start + page * PAGE, content(number))


def differing(state, first, numbers):
    """Return the pages that do not hold these contents."""
    found = (state.space.read(state.start + page * PAGE, PAGE) for page in pages(first, numbers))
    return [
        page
        for page, (bytes_, number) in enumerate(zip(found, numbers, strict=True), first)
        if bytes_ != content(number)
    ]


def pages(first, numbers):
    return range(first, first + len(numbers))


def put_byte(state, first, nr, offset, value):
    """Write one byte into each of some pages."""
    for page in range(first, first + nr):
        state.space.write(state.start + page * PAGE + offset, bytes([value]))


def bytes_at(state, first, nr, offset):
    """Return that byte of each of some pages."""
    return [state.space.read(state.start + p * PAGE + offset, 1)[0] for p in range(first, first + nr)]


def advise(state, first, nr, advice):
    state.space.madvise(state.start + first * PAGE, nr * PAGE, advice)


def unmap(state, first, nr):
    state.space.munmap(state.start + first * PAGE, nr * PAGE)


def map_again(state, first, nr):
    state.space.mmap(nr * PAGE, state.start + first * PAGE)


def close_space(state):
    state.space.close()


def own_bytes(state):
    return state.space.blocks_bytes()


def discard(state, first, nr):
    """Throw private copies away behind ksmemu's back (MADV_DONTNEED)."""
    start = ctypes.c_void_p(state.start + first * PAGE)
    assert _libc.madvise(start, ctypes.c_size_t(nr * PAGE), mmap.MADV_DONTNEED) == 0


def pool_descriptor(space):
    """Return the descriptor of the pool whose frames a space shows."""
    start, end = space.start, space.start + space.size
    inode = next(m.inode for m in procmaps.mappings(os.getpid(), start, end) if m.inode and "p" in m.perms)
    return next(
        fd for fd in procmaps.descriptors(os.getpid()) if _exists(fd) and os.fstat(fd).st_ino == inode
    )


def _exists(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def frames_digest(state, frames):
    """Return a digest of what frames of the pool hold, read through this worker's descriptor."""
    pool = pool_descriptor(state.space)
    digest = hashlib.sha256()
    for frame in sorted(frames):
        digest.update(os.pread(pool, PAGE, frame * PAGE))
    return digest.hexdigest()


def fill_unique(state, first, nr, seed):
    """Fill pages, each unlike the others; the same seed makes the same pages."""
    view = state.space.ndarray((nr, PAGE // 8), np.uint64, state.start + first * PAGE)
    view[:] = _unique(nr, seed)


def is_unique(state, first, nr, seed):
    """Return whether they hold what fill_unique() left."""
    view = state.space.ndarray((nr, PAGE // 8), np.uint64, state.start + first * PAGE)
    return bool((view == _unique(nr, seed)).all())


def _unique(nr, seed):
    return np.random.default_rng(seed).integers(1 << 63, size=(nr, PAGE // 8), dtype=np.uint64)


def fill_with(state, first, nr, value):
    view = state.space.ndarray((nr, PAGE), np.uint8, state.start + first * PAGE)
    view[:] = value


def is_filled_with(state, first, nr, value):
    view = state.space.ndarray((nr, PAGE), np.uint8, state.start + first * PAGE)
    return bool((view == value).all())


def open_ordinary_space(state, nr_pages):
    """Map a space and advise nothing; return (pid, start, end)."""
    state.space = ksmemu.AddressSpace(nr_pages * PAGE)
    state.start = state.space.mmap(nr_pages * PAGE)
    return os.getpid(), state.start, state.start + nr_pages * PAGE


def number_pages(state, first, numbers):
    """Make neighbouring pages unique at little cost: each holds its number, and zeros."""
    view = state.space.ndarray((len(numbers), PAGE // 8), np.uint64, state.start + first * PAGE)
    view[:, 0] = np.arange(numbers.start, numbers.stop)


def number_these_pages(state, pages):
    """The same for pages that are not neighbours."""
    nr = state.space.size // PAGE
    state.space.ndarray((nr, PAGE // 8), np.uint64, state.start)[pages, 0] = pages + 1
