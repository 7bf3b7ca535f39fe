"""ksm_functional_tests of the kernel's selftests: areas of 512 pages, merged and unmerged."""

import ctypes
import errno
import json
import mmap
import os
import select
import threading
from collections import Counter
from pathlib import Path

import pytest

import ksmemu
from ksmemu import MADV_UNMERGEABLE, features
from tests.support import books, crew, procmaps
from tests.support.scanning import merge
from tests.support.uffd import Userfaultfd
from tests.support.waiting import wait_until

NR_PAGES = 512
HALF = NR_PAGES // 2
FILL = ord("*")
OTHER_FILL = ord("/")
PROT_NONE = 0


@pytest.fixture
def merging(ksmd):
    """Return ksm_merging_pages of a worker; a process that never advised has no such file."""

    def read(one, name="ksm_merging_pages"):
        ksmd.write("run", ksmd.read("run"))  # a store brings every figure up to date
        return int(figures(ksmd, one).get(name, 0))

    return read


def figures(ksmd, one):
    file = Path(ksmd.directory) / "proc" / str(one.pid) / "ksm_stat"
    return dict(line.split() for line in file.read_text().splitlines()) if file.exists() else {}


@pytest.fixture
def merged_area(ksmd, area, merging):
    """Start a child with a merged area: merged_area(), or merged_area(0) for zeros."""

    def start(value=FILL):
        one = area(NR_PAGES)
        assert merging(one) == 0
        one.call(crew.fill_with, 0, NR_PAGES, value)
        merge(ksmd)
        if value:
            assert merging(one) == NR_PAGES
        return one

    return start


def space_of(state):
    return state.start


def in_a_fork(state, function):
    """Return function(state) of a forked child, which has ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, json.dumps(function(state)).encode())
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        told = json.load(pipe)
    assert os.waitpid(pid, 0)[1] == 0
    return told


def look_in_a_child(state):
    """Return ksm_merging_pages of this process before a scan and after, and whether it has its memory."""
    with ksmemu.connect() as ksmd:
        file = ksmd.directory / "proc" / str(os.getpid()) / "ksm_merging_pages"
        wait_until(file.exists, what="the figures of the child")
        before = int(file.read_text())
        ksmd.write("run", 1)
        ksmd.wait_full_scans(2)
        return before, int(file.read_text()), crew.is_filled_with(state, 0, NR_PAGES, FILL)


def merge_and_unmerge_zeros(state):
    """In a child: merge zeros of its own and unmerge them; return ksm_zero_pages between and after."""
    with ksmemu.connect() as ksmd:
        crew.open_space(state, NR_PAGES)
        crew.fill_with(state, 0, NR_PAGES, 0)
        books.wait_at_rest(ksmd)
        between = ksmd.read("ksm_zero_pages")
        crew.advise(state, 0, NR_PAGES, MADV_UNMERGEABLE)
        ksmd.wait_full_scans(2)
        after = ksmd.read("ksm_zero_pages")
        state.space.close()
    return between, after


def set_memory_merge(state, on):
    ksmemu.set_memory_merge(on)
    return ksmemu.get_memory_merge()


def assert_no_frame_is_shared(one):
    """Every page of the area is the worker's own: then no frame is mapped twice."""
    start = one.call(space_of)
    found = procmaps.recount([(one.pid, start, start + NR_PAGES * procmaps.PAGE)])
    assert (found.merged, found.zero, found.own) == (0, 0, NR_PAGES)


def test_unmerge(merged_area):
    one = merged_area()
    one.call(crew.advise, 0, NR_PAGES, MADV_UNMERGEABLE)
    assert_no_frame_is_shared(one)
    assert one.call(crew.is_filled_with, 0, NR_PAGES, FILL)


def test_unmerge_zero_pages(ksmd, merged_area, merging):
    ksmd.write("use_zero_pages", 1)
    one = merged_area(0)
    assert merging(one, "ksm_zero_pages") == NR_PAGES
    one.call(crew.advise, 0, HALF, MADV_UNMERGEABLE)
    assert merging(one, "ksm_zero_pages") == HALF
    one.call(crew.number_pages, HALF, range(HALF, NR_PAGES))
    ksmd.wait_full_scans(2)
    assert merging(one, "ksm_zero_pages") == 0
    assert_no_frame_is_shared(one)


def test_unmerge_discarded(merged_area):
    one = merged_area()
    one.call(crew.discard, 0, HALF)
    one.call(crew.advise, 0, NR_PAGES, MADV_UNMERGEABLE)
    assert_no_frame_is_shared(one)


def protect(state, first, nr, prot):
    state.space.mprotect(state.start + first * procmaps.PAGE, nr * procmaps.PAGE, prot)


def write_by_force(state, first, nr, value):
    """Write through /proc/self/mem, which does not ask what the area allows."""
    with open("/proc/self/mem", "r+b", buffering=0) as mem:
        mem.seek(state.start + first * procmaps.PAGE)
        assert mem.write(bytes([value]) * nr * procmaps.PAGE) == nr * procmaps.PAGE


def protections(state):
    """Return perms and pages of what is mapped."""
    end = state.start + NR_PAGES * procmaps.PAGE
    return Counter(m.perms for m in procmaps.mappings("self", state.start, end) for _ in range(m.pages))


def test_prot_none(ksmd, area, merging):
    """PROT_NONE merges; half is written by force, half advised: both unmerged, PROT_NONE all the time."""
    one = area(NR_PAGES)
    one.call(crew.fill_with, 0, NR_PAGES, FILL)
    one.call(protect, 0, NR_PAGES, PROT_NONE)
    merge(ksmd)
    assert merging(one) == NR_PAGES
    assert one.call(protections) == {"---p": NR_PAGES}
    one.call(write_by_force, 0, HALF, OTHER_FILL)
    one.call(crew.advise, HALF, HALF, MADV_UNMERGEABLE)
    ksmd.wait_full_scans(2)
    ksmd.write("run", 2)
    assert one.call(protections) == {"---s": NR_PAGES}
    one.call(protect, 0, NR_PAGES, mmap.PROT_READ | mmap.PROT_WRITE)
    assert_no_frame_is_shared(one)
    assert one.call(crew.is_filled_with, 0, HALF, OTHER_FILL)
    assert one.call(crew.is_filled_with, HALF, HALF, FILL)


def watch(state):
    """Write-protect the area with a userfaultfd of the program's own."""
    state.uffd = Userfaultfd()
    state.uffd.register(state.start, NR_PAGES * procmaps.PAGE)
    state.uffd.write_protect(state.start, NR_PAGES * procmaps.PAGE)


def nr_watched(state):
    return procmaps.nr_write_protected("self", state.start, state.start + NR_PAGES * procmaps.PAGE)


def try_to_watch(state):
    """Return 0 or the errno of the program's attempt; nothing is watched afterwards."""
    try:
        watch(state)
        watch_no_more(state)
    except OSError as error:
        state.uffd.close()
        return error.errno
    return 0


def watch_no_more(state):
    state.uffd.unregister(state.start, NR_PAGES * procmaps.PAGE)
    state.uffd.close()


def advise_all(state, advice):
    """Return 0 or the errno."""
    try:
        return state.space.madvise(state.start, NR_PAGES * procmaps.PAGE, advice)
    except OSError as error:
        return error.errno


def start_writer(state, value):
    """Fill the area in a thread, without the GIL; return when it sleeps on the program's protection."""
    fill = ctypes.CDLL(None).memset
    size = ctypes.c_size_t(NR_PAGES * procmaps.PAGE)
    state.writer = threading.Thread(target=fill, args=(ctypes.c_void_p(state.start), value, size))
    state.writer.start()
    assert select.select([state.uffd.fd], [], [], 20.0)[0], "nobody writes"


def end_writer(state):
    state.writer.join()


def test_unmerge_uffd_wp(ksmd, merged_area):
    """A range has one userfaultfd: while the program's own watches it, EAGAIN, and all is as it was.

    Older kernels let one userfaultfd unregister what another watches: there it is unmerged at once.
    """
    one = merged_area()
    one.call(watch)
    one.call(start_writer, OTHER_FILL)
    refused = one.call(advise_all, MADV_UNMERGEABLE)
    assert refused in (errno.EAGAIN, 0)
    merge(ksmd)
    assert (
        not refused or one.call(nr_watched) == NR_PAGES
    )  # a freeze that fails ends no protection but its own
    assert one.call(crew.is_filled_with, 0, NR_PAGES, FILL)
    one.call(watch_no_more)
    one.call(end_writer)
    assert one.call(advise_all, MADV_UNMERGEABLE) == 0
    assert_no_frame_is_shared(one)
    assert one.call(crew.is_filled_with, 0, NR_PAGES, OTHER_FILL)


def test_a_program_cannot_watch_what_ksmemu_watches(area):
    """Where writes are recorded (Linux 6.7), advised memory is watched already until it is merged."""
    one = area(NR_PAGES)
    one.call(crew.fill_with, 0, NR_PAGES, FILL)
    assert one.call(try_to_watch) == (errno.EBUSY if features.tracker() == "written" else 0)
    assert one.call(crew.is_filled_with, 0, NR_PAGES, FILL)


def test_fork_ksm_merging_page_count(ksmd, merged_area, merging):
    """What a child inherits merged counts from the first scan on that sees it: ksmd stops before the fork."""
    one = merged_area()
    ksmd.write("run", 0)
    assert one.call(in_a_fork, look_in_a_child) == [0, NR_PAGES, True]
    assert merging(one) == NR_PAGES
    assert one.call(crew.is_filled_with, 0, NR_PAGES, FILL)


def test_fork_global_ksm_zero_pages(ksmd, merged_area):
    """The test that the kernel dropped: a child that merges zeros and unmerges them changes nothing.

    What it inherits it lets go for a space of its own.
    """
    ksmd.write("use_zero_pages", 1)
    one = merged_area(0)
    before = ksmd.read("ksm_zero_pages")
    assert before == NR_PAGES
    assert one.call(in_a_fork, merge_and_unmerge_zeros) == [2 * NR_PAGES, NR_PAGES]
    wait_until(lambda: ksmd.read("ksm_zero_pages") == before, what="the end of the child")


def test_prctl(child):
    one = child()
    for setting in (True, False):
        assert one.call(set_memory_merge, setting) is setting


def test_prctl_unmerge(ksmd, area, merging):
    one = area(NR_PAGES, advised=False)
    one.call(set_memory_merge, True)
    one.call(crew.fill_with, 0, NR_PAGES, FILL)
    merge(ksmd)
    assert merging(one) == NR_PAGES
    one.call(set_memory_merge, False)
    assert_no_frame_is_shared(one)
