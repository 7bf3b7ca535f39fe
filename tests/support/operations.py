"""Every public operation of ksmemu, to be repeated: each leaves its worker as it found it.

A step runs once, or once for each of the thousands of times: what leaks grows with it.
"""

import contextlib
import ctypes
import gc
import os
import sys
from mmap import PROT_READ, PROT_WRITE

import numpy as np

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from ksmemu.control.explain import explain
from ksmemu.instance import Instance
from tests.support import leftovers
from tests.support.procmaps import PAGE

NR_PAGES = 7


class _Mallinfo2(ctypes.Structure):
    """Source: <malloc.h>."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _Mallinfo2


def begin(state, directory):
    """Make what the operations work on: a space with advised pages, and one without."""
    state.directory, state.kept = directory, []
    state.space = ksmemu.AddressSpace(NR_PAGES * PAGE, instance=directory)
    state.start = state.space.mmap(state.space.size)
    state.space.madvise_all(MADV_MERGEABLE)
    state.space.write(state.start, os.urandom(state.space.size))
    state.ordinary = ksmemu.AddressSpace(NR_PAGES * PAGE, instance=directory)
    state.ksmd = ksmemu.connect(directory)


def end(state):
    state.ksmd.close()
    for space in (state.space, state.ordinary):
        space.close()


def repeat(state, operation, times):
    for _ in range(times):
        operation(state)


def held(_):
    """Return how much this process holds, as Python, malloc and the kernel count it."""
    gc.collect()
    counts = leftovers.counts(os.getpid())
    return counts | {"objects": sys.getallocatedblocks(), "malloc bytes": _mallinfo2().uordblks}


# ---- address spaces ----------------------------------------------------------------------------------


def create_and_close(state):
    ksmemu.AddressSpace(NR_PAGES * PAGE).close()


def create_and_forget(state):
    ksmemu.AddressSpace(NR_PAGES * PAGE)


def create_in_vain(state):
    with contextlib.suppress(OSError):
        ksmemu.AddressSpace(1 << 60)


def map_and_unmap(state):
    state.ordinary.munmap(state.ordinary.mmap(3 * PAGE), 3 * PAGE)


def map_in_vain(state):
    with contextlib.suppress(OSError):
        state.space.mmap(PAGE, state.start)


def view(state):
    with state.space.view(state.start + 1, 3 * PAGE) as view:
        view[0] = 1


def array(state):
    state.space.ndarray((3, PAGE // 8), np.int64, state.start)[1, 1] = 1


def read_and_write(state):
    state.space.write(state.start, state.space.read(state.start, PAGE))


def read_in_vain(state):
    with contextlib.suppress(OSError):
        state.ordinary.read(state.ordinary.start, PAGE)


def protect(state):
    for prot in (PROT_READ, PROT_READ | PROT_WRITE):
        state.space.mprotect(state.start + PAGE, 3 * PAGE, prot)


def bind(state):
    for node in (1, 0):
        state.space.mbind(state.start + PAGE, 3 * PAGE, node)


def look(state):
    _ = repr(state.space), state.space.blocks_bytes(), state.space.is_advised, state.space.instance


# ---- advice ------------------------------------------------------------------------------------------


def advise_both_ways(state):
    for advice in (MADV_UNMERGEABLE, MADV_MERGEABLE):
        ksmemu.madvise(state.start + PAGE, 3 * PAGE, advice)


def advise_a_buffer(state):
    ksmemu.madvise(state.space.view(state.start, PAGE))


def advise_in_vain(state):
    with contextlib.suppress(OSError):
        state.space.madvise(state.start, PAGE, 14)


def map_advise_fill_and_unmap(state):
    """In a space that has its object already: ordinary memory is adopted, and goes."""
    state.space.munmap(state.start, PAGE)
    state.space.mmap(PAGE, state.start)
    state.space.write(state.start, b"x")
    state.space.madvise(state.start, PAGE, MADV_MERGEABLE)


def advise_a_new_space(state):
    """One more space of a worker that has joined."""
    with ksmemu.AddressSpace(NR_PAGES * PAGE, instance=state.directory) as space:
        space.mmap(space.size)
        space.madvise_all(MADV_MERGEABLE)


def join_and_leave(state):
    """A process's first space of a ksmd, and its last: an agent comes and goes."""
    state.space.close()
    state.space = ksmemu.AddressSpace(NR_PAGES * PAGE, instance=state.directory)
    state.start = state.space.mmap(state.space.size)
    state.space.madvise_all(MADV_MERGEABLE)


def join_in_vain(state):
    with ksmemu.AddressSpace(PAGE, instance="/nonexistent/ksmemu") as space, contextlib.suppress(OSError):
        space.mmap(PAGE)
        space.madvise_all(MADV_MERGEABLE)


def set_memory_merge(state):
    for on in (True, False):
        ksmemu.set_memory_merge(on)
        assert ksmemu.get_memory_merge() is on
    state.space.madvise_all(MADV_MERGEABLE)


# ---- merging -----------------------------------------------------------------------------------------


def merge_break_and_come_home(state):
    """Equal pages merge, are written and go home; what was equal once is unique again."""
    state.space.write(state.start, b"x" * state.space.size)
    state.ksmd.wait_full_scans(3)
    state.space.write(state.start, os.urandom(state.space.size))
    state.ksmd.wait_full_scans(3)


def merge_and_renew(state):
    state.space.write(state.start, b"x" * state.space.size)
    state.ksmd.wait_full_scans(3)


def merge_and_unmerge(state):
    state.space.write(state.start, b"x" * state.space.size)
    state.ksmd.wait_full_scans(3)
    state.ksmd.write("run", 2)
    state.ksmd.write("run", 1)


# ---- a ksmd from outside -----------------------------------------------------------------------------


def connect(state):
    ksmemu.connect(state.directory).close()


def connect_in_vain(state):
    with contextlib.suppress(ksmemu.NotRunningError):
        ksmemu.connect("/nonexistent/ksmemu")


def counters(state):
    state.ksmd.counters()
    state.ksmd.stats()


def store(state):
    for value in (1009, 1_000_003):
        state.ksmd.write("pages_to_scan", value)


def store_in_vain(state):
    with contextlib.suppress(ValueError):
        state.ksmd.write("run", 3)


def wait(state):
    state.ksmd.wait_full_scans(1)


def explain_all(state):
    explain(Instance.resolve(state.directory))


def explain_a_page(state):
    explain(Instance.resolve(state.directory), os.getpid(), state.start)


def merge_from_outside(state):
    for name in ("merge_pid", "unmerge_pid"):
        state.ksmd.write(name, os.getpid())


def start_and_stop_a_ksmd(state):
    with ksmemu.Ksmd(f"{state.directory}/another"):
        pass


def fork(state):
    """A child of a worker, which has the memory to itself."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


FAST = [
    map_and_unmap, map_in_vain, view, array, read_and_write, read_in_vain, protect, look, advise_in_vain,
    store_in_vain, connect_in_vain,
]  # fmt: skip
"""Operations of microseconds."""

SLOW = [
    create_and_close, create_and_forget, create_in_vain, bind, advise_both_ways, advise_a_buffer,
    map_advise_fill_and_unmap, advise_a_new_space, join_and_leave, join_in_vain, merge_break_and_come_home,
    merge_and_renew, merge_and_unmerge, connect, counters, store, wait, explain_all, explain_a_page,
    merge_from_outside, set_memory_merge,
]  # fmt: skip
"""Operations that ask the kernel for much, or another process. The last refuses what comes from outside."""

SLOWEST = [fork, start_and_stop_a_ksmd]
"""Operations that start processes."""
