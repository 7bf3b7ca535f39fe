"""A program unmaps, moves and maps memory of a space behind its back: what is its own stays its own."""

import ctypes
import errno
import mmap
import os
import signal
import threading

import numpy as np
import pytest

import ksmemu
from ksmemu import MADV_UNMERGEABLE
from tests.support import books, crew, procmaps
from tests.support.books import Member
from tests.support.joined import ZERO, joined
from tests.support.processes import Worker
from tests.support.procmaps import PAGE
from tests.support.waiting import run_for, wait_until

NR_PAGES = 61
CONTENTS = [0, 0, *range(1, NR_PAGES - 1)]
_MAP_FIXED = 0x10
_MREMAP_MAYMOVE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = _libc.mremap.restype = ctypes.c_void_p


def _munmap(address, nr_pages):
    assert _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(nr_pages * PAGE)) == 0


def merged(crew_of, ksmd, break_step=None):
    members = [Member.join(crew_of(ksmd, break_step), NR_PAGES), Member.join(crew_of(ksmd), NR_PAGES)]
    for member in members:
        member.call(crew.put, 0, CONTENTS)
    wait_until(lambda: ksmd.read("pages_sharing") > 0, what="merging")
    books.wait_at_rest(ksmd)
    return members


# ---- what is mapped over a space ---------------------------------------------------------------------


def a_file_mapped_over_the_space_stays_shared(_):
    """A file of zeros, shared: only what the kernel says of the mapping tells it from a page of the space."""
    with joined(NR_PAGES, NR_PAGES) as space:
        file = os.memfd_create("of the program's own")
        os.truncate(file, 5 * PAGE)
        _munmap(space.address(31), 5)
        flags = mmap.MAP_SHARED | _MAP_FIXED
        args = ctypes.c_size_t(5 * PAGE), mmap.PROT_READ | mmap.PROT_WRITE, flags, file, ctypes.c_long(0)
        assert _libc.mmap(ctypes.c_void_p(space.address(31)), *args) == space.address(31)
        outcome = space.merge((29, ZERO, 2), (31, ZERO, 5), (36, ZERO, 2))
        os.pwrite(file, b"seen", 2 * PAGE)
        assert space.read(33)[:4] == b"seen"
        os.close(file)
        return [outcome[page] for page in range(29, 38)]


def test_a_file_that_the_program_maps_over_the_space_is_left_alone():
    with Worker() as worker:
        outcome = worker.call(a_file_mapped_over_the_space_stays_shared)
    assert outcome[2:7] == [errno.EFAULT] * 5


def test_it_would_be_noticed_if_it_were_not():
    with Worker(break_step="ours") as worker, pytest.raises(AssertionError, match="seen"):
        worker.call(a_file_mapped_over_the_space_stays_shared)


def _unmap_by_itself(state, first, nr):
    _munmap(state.start + first * PAGE, nr)


def test_a_piece_that_the_program_unmaps_is_nobodys_loss(ksmd, crew_of):
    members = merged(crew_of, ksmd)
    members[0].call(_unmap_by_itself, 11, 13)
    for member in members:
        member.call(crew.put, 40, [55, 56, 57])
    ksmd.wait_full_scans(5)
    expected = [*CONTENTS[:40], 55, 56, 57, *CONTENTS[43:]]
    assert members[1].call(crew.differing, 0, expected) == []
    assert members[0].call(crew.differing, 0, expected[:11]) == []
    assert members[0].call(crew.differing, 24, expected[24:]) == []
    members[0].call(crew.close_space)
    books.wait_at_rest(ksmd)
    books.check(ksmd, members[1:])


def _move_by_itself(state, first, nr):
    size = ctypes.c_size_t(nr * PAGE)
    at = _libc.mremap(ctypes.c_void_p(state.start + first * PAGE), size, size, _MREMAP_MAYMOVE | 2, _free(nr))
    assert at
    state.moved = np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_uint8)), (nr, PAGE))


def _free(nr):
    """Return an address where nothing is."""
    at = _libc.mmap(
        None, ctypes.c_size_t(nr * PAGE), 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, ctypes.c_long(0)
    )
    return ctypes.c_void_p(at)


def _moved_holds(state, numbers):
    return [n for n, number in enumerate(numbers) if state.moved[n].tobytes() != crew.content(number)]


def test_a_piece_that_the_program_moves_keeps_its_bytes(ksmd, crew_of):
    """As long as the space is open."""
    members = merged(crew_of, ksmd)
    members[0].call(_move_by_itself, 11, 13)
    members[1].call(crew.put, 0, range(9000, 9000 + NR_PAGES))
    ksmd.wait_full_scans(5)
    assert members[0].call(_moved_holds, CONTENTS[11:24]) == []
    members[1].call(crew.advise, 0, NR_PAGES, MADV_UNMERGEABLE)
    assert members[0].call(_moved_holds, CONTENTS[11:24]) == []


# ---- threads, signals, stops -------------------------------------------------------------------------


def _begin_and_end_threads(state, seconds):
    """Threads that live for one write each, while pages are merged and broken; return what is lost."""
    lost = []

    def write(page, number):
        crew.put(state, page, [number])
        if crew.differing(state, page, [number]):
            lost.append(page)

    nr = 0
    for _ in run_for(seconds):
        pages = range(nr % 7, NR_PAGES, 7)
        threads = [threading.Thread(target=write, args=(page, nr % 5)) for page in pages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        nr += len(threads)
    return nr, lost


def test_threads_that_come_and_go_during_freezes_lose_nothing(ksmd, crew_of):
    one = merged(crew_of, ksmd)[0]
    nr, lost = one.call(_begin_and_end_threads, 1.0)
    assert nr > 50
    assert lost == []


def _write_under_signals(state, seconds):
    """A timer interrupts whatever the writer does, sleep on a frozen page included."""
    caught, model = [], {}
    signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0007, 0.0007)
    lost, nr = [], 0
    for _ in run_for(seconds):
        for page in range(NR_PAGES):
            if page in model and crew.differing(state, page, [model[page]]):
                lost.append(page)
            model[page] = nr % 5
            crew.put(state, page, [model[page]])
            nr += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    return nr, len(caught), lost


def test_signals_that_interrupt_a_writer_lose_nothing(ksmd, crew_of):
    one = merged(crew_of, ksmd)[0]
    nr, nr_caught, lost = one.call(_write_under_signals, 1.0)
    assert nr > 500
    assert nr_caught > 100
    assert lost == []


def test_workers_and_ksmd_that_are_stopped_lose_nothing(ksmd, crew_of):
    members = merged(crew_of, ksmd)
    for who in (members[0].worker.pid, members[1].worker.pid, ksmd.pid) * 5:
        os.kill(who, signal.SIGSTOP)
        wait_until(lambda who=who: set(procmaps.thread_states(who)) == {"T"}, what="the stop")
        others = [member for member in members if member.worker.pid != who]
        for member in others:
            member.call(crew.put, 3, [555, 556, 557])
            assert member.call(crew.differing, 3, [555, 556, 557, *CONTENTS[6:]]) == []
        os.kill(who, signal.SIGCONT)
        for member in members:
            member.call(crew.put, 3, CONTENTS[3:6])
        ksmd.wait_full_scans(1)
    books.wait_at_rest(ksmd)
    books.check(ksmd, members)
    for member in members:
        assert member.call(crew.differing, 0, CONTENTS) == []


def _trace(pid):
    """Attach a debugger to every thread of a process, let it run a while, and let go."""
    libc = ctypes.CDLL(None, use_errno=True)
    for task in os.listdir(f"/proc/{pid}/task"):
        assert libc.ptrace(16, int(task), None, None) == 0
        os.waitpid(int(task), 0x40000000)
    for task in os.listdir(f"/proc/{pid}/task"):
        libc.ptrace(17, int(task), None, None)


def test_a_worker_under_a_debugger_loses_nothing(ksmd, crew_of):
    members = merged(crew_of, ksmd)
    for number in range(7):
        pid = os.fork()
        if pid == 0:
            try:
                _trace(members[0].worker.pid)
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        for member in members:
            member.call(crew.put, number, [9000 + number])
        ksmd.wait_full_scans(1)
    expected = [*range(9000, 9007), *CONTENTS[7:]]
    for member in members:
        assert member.call(crew.differing, 0, expected) == []
    books.wait_at_rest(ksmd)
    books.check(ksmd, members)


def test_what_is_unmapped_by_the_space_itself_is_mapped_anew(ksmd, crew_of):
    """The way to do it."""
    members = merged(crew_of, ksmd)
    members[0].call(crew.unmap, 11, 13)
    members[0].call(crew.map_again, 11, 13)
    members[0].call(crew.advise, 0, NR_PAGES, ksmemu.MADV_MERGEABLE)
    members[0].call(crew.put, 11, CONTENTS[11:24])
    books.wait_at_rest(ksmd)
    books.check(ksmd, members)
