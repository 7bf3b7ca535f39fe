"""mbind: ranges on simulated nodes, and merge_across_nodes; the errors are the kernel's."""

import ctypes
import errno
import mmap

import pytest

from ksmemu import MADV_UNMERGEABLE, AddressSpace, set_memory_merge, wire
from tests.support import procmaps
from tests.support.errnos import number_of
from tests.support.pages import content
from tests.support.procmaps import PAGE
from tests.support.scanning import settled

NR_PAGES = 23
_SYS_MBIND, _MPOL_BIND = 237, 2
"""Source: <asm/unistd_64.h>, <linux/mempolicy.h>."""


@pytest.fixture
def apart(start_stepped):
    """A ksmd that merges within a node only."""
    return start_stepped(merge_across_nodes=0, max_page_sharing=1009)


def bind(one, first, nr, node):
    one.space.mbind(one.at(first), nr * PAGE, node)


def frames_of(one, first, nr):
    """Return the frames that pages show."""
    return set(procmaps.recount([("self", one.at(first), one.at(first + nr))]).frames)


@pytest.mark.parametrize("across", [1, 0])
@pytest.mark.parametrize("is_late", [False, True], ids=["bound before advice", "bound after advice"])
def test_two_ranges_of_a_space_on_two_nodes(start_stepped, memory, across, is_late):
    ksmd = start_stepped(merge_across_nodes=across)
    one = memory(ksmd, NR_PAGES, advise=is_late)
    bind(one, 11, NR_PAGES - 11, 1)
    one.advise()
    one.fill_equal(range(NR_PAGES), content("same"))
    ksmd.scan(3)
    assert settled(ksmd) == ((1, NR_PAGES - 1, 0, 0) if across else (2, NR_PAGES - 2, 0, 0))
    assert bool(frames_of(one, 0, 11) & frames_of(one, 11, NR_PAGES - 11)) == bool(across)


def frames_on(spaces, node, nr_nodes):
    """Return the frames that pages of one node show."""
    pages = range(node, 2 * NR_PAGES, nr_nodes)
    return set().union(*(frames_of(one, page, 1) for one in spaces for page in pages))


@pytest.mark.parametrize("nr_nodes", [1, 2, 7])
def test_k_nodes_share_k_pages(apart, memory, nr_nodes):
    """Two spaces; page n of both is on node n % k: neighbours are never on one node."""
    both = [memory(apart, 2 * NR_PAGES) for _ in range(2)]
    for one in both:
        for page in range(2 * NR_PAGES):
            bind(one, page, 1, page % nr_nodes)
        one.fill_equal(range(2 * NR_PAGES), content("same"))
    apart.scan(3)
    assert settled(apart) == (nr_nodes, 4 * NR_PAGES - nr_nodes, 0, 0)
    per_node = [frames_on(both, node, nr_nodes) for node in range(nr_nodes)]
    assert sum(len(frames) for frames in per_node) == len(set().union(*per_node)), "a frame is on two nodes"


@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_zeros_are_zeros_on_every_node(start_stepped, memory, use_zero_pages):
    ksmd = start_stepped(merge_across_nodes=0, use_zero_pages=use_zero_pages)
    one = memory(ksmd)
    bind(one, 0, 7, 1)
    bind(one, 7, 7, wire.MAX_NODES - 1)
    one.fill_equal(range(NR_PAGES), bytes(PAGE))
    ksmd.scan(3)
    assert ksmd.read("ksm_zero_pages") == (NR_PAGES if use_zero_pages else 0)
    assert settled(ksmd) == ((0, 0, 0, 0) if use_zero_pages else (3, NR_PAGES - 3, 0, 0))
    assert ksmd.read("pool_bytes") == 0


def test_what_waits_alone_on_its_node_merges_where_it_is_moved_to(apart, memory):
    one = memory(apart, 2)
    bind(one, 1, 1, 1)
    one.fill_equal(range(2), content("same"))
    apart.scan(3)
    assert settled(apart) == (0, 0, 0, 2)
    bind(one, 1, 1, 0)
    apart.scan(2)
    assert settled(apart) == (1, 1, 0, 0)


def test_what_waits_together_is_parted_by_a_move(apart, memory):
    """A page that waits as unique must not be found by its old node after it has moved."""
    one, other = memory(apart, 1), memory(apart, 1)
    one.fill([0])
    apart.scan(3)
    bind(one, 0, 1, 1)
    other.fill([0])
    apart.scan(3)
    assert settled(apart) == (0, 0, 0, 2)


def test_a_merged_page_stays_until_it_is_written(apart, memory):
    one = memory(apart, 3)
    one.fill_equal(range(3), content("same"))
    apart.scan(3)
    bind(one, 2, 1, 1)
    apart.scan(3)
    assert settled(apart) == (1, 2, 0, 0)
    one.write(2, b"x")
    one.write(2, content("same"))
    apart.scan(3)
    assert settled(apart) == (1, 1, 0, 1)
    bind(one, 2, 1, 0)
    apart.scan(2)
    assert settled(apart) == (1, 2, 0, 0)


def test_what_is_mapped_anew_is_on_the_node_of_the_space(apart, memory):
    one = memory(apart, 7, node=3)
    bind(one, 2, 5, 1)
    one.space.munmap(one.at(2), 5 * PAGE)
    one.space.mmap(5 * PAGE, one.at(2))
    one.advise()
    one.fill_equal(range(7), content("same"))
    apart.scan(3)
    assert settled(apart) == (1, 6, 0, 0)


def test_unmerged_memory_keeps_its_node(apart, memory):
    one = memory(apart, 4)
    bind(one, 2, 2, 1)
    one.fill_equal(range(4), content("same"))
    for _ in range(2):
        apart.scan(3)
        assert settled(apart) == (2, 2, 0, 0)
        one.advise(MADV_UNMERGEABLE)
        assert not frames_of(one, 0, 4)
        one.advise()


def test_what_the_prctl_advises_keeps_its_node(apart, memory):
    one = memory(apart, 4, advise=False)
    bind(one, 1, 3, 1)
    set_memory_merge(True)
    try:
        one.fill_equal(range(4), content("same"))
        apart.scan(3)
        assert settled(apart) == (1, 2, 0, 1)
    finally:
        set_memory_merge(False)


def test_with_merge_across_nodes_a_move_costs_nothing(stepped, memory):
    one = memory(stepped)
    one.fill(range(NR_PAGES))
    stepped.scan(3)
    bind(one, 0, NR_PAGES, 5)
    assert settled(stepped) == (0, 0, 0, NR_PAGES)


# ---- errors ------------------------------------------------------------------------------------------

CASES = {
    "all that is mapped": (0, 7 * PAGE, 0, 0),
    "nothing": (0, 0, 0, 0),
    "nothing, where nothing is mapped": (7 * PAGE, 0, 0, 0),
    "less than a page": (0, 1, 0, 0),
    "into a hole": (0, 7 * PAGE + 1, 0, errno.EFAULT),
    "across a hole": (0, 9 * PAGE, 0, errno.EFAULT),
    "from a hole": (7 * PAGE, 2 * PAGE, 0, errno.EFAULT),
    "misaligned": (1, PAGE, 0, errno.EINVAL),
    "misaligned and nothing": (1, 0, 0, errno.EINVAL),
    "wraps": (0, (1 << 64) - PAGE, 0, errno.EINVAL),
    "a node that is not there": (0, PAGE, 63, errno.EINVAL),
}


@pytest.fixture
def holey():
    """Seven pages, a hole of one, fifteen pages: ordinary memory, which needs no ksmd."""
    with AddressSpace(NR_PAGES * PAGE) as space:
        space.mmap(NR_PAGES * PAGE)
        space.munmap(space.start + 7 * PAGE, PAGE)
        yield space


def kernels_mbind(address, length, node):
    libc = ctypes.CDLL(None, use_errno=True)
    mask = ctypes.c_ulong(1 << node)
    args = ctypes.c_ulong(address), ctypes.c_ulong(length), ctypes.c_long(_MPOL_BIND), ctypes.byref(mask)
    done = libc.syscall(ctypes.c_long(_SYS_MBIND), *args, ctypes.c_ulong(65), ctypes.c_long(0))
    return ctypes.get_errno() if done else 0


@pytest.mark.parametrize(("offset", "length", "node", "expected"), CASES.values(), ids=CASES)
def test_errors_are_those_of_the_kernels_mbind(holey, offset, length, node, expected):
    """The kernel has one node, or a few; here there are MAX_NODES of them."""
    with mmap.mmap(-1, NR_PAGES * PAGE) as same:
        start = ctypes.addressof(ctypes.c_char.from_buffer(same))
        unmap_the_hole = ctypes.CDLL(None).munmap(ctypes.c_void_p(start + 7 * PAGE), ctypes.c_size_t(PAGE))
        assert unmap_the_hole == 0
        assert kernels_mbind(start + offset, length, node) in (expected, errno.ENOSYS)  # without NUMA
    assert number_of(holey.mbind, holey.start + offset, length, wire.MAX_NODES if node else 0) == expected


def test_a_refused_mbind_changes_nothing(apart, memory):
    one = memory(apart, 4)
    one.space.munmap(one.at(3), PAGE)
    assert number_of(bind, one, 1, 3, 1) == errno.EFAULT
    one.fill_equal(range(3), content("same"))
    apart.scan(3)
    assert settled(apart) == (1, 2, 0, 0)


@pytest.mark.parametrize("node", [-1, wire.MAX_NODES])
def test_a_space_is_on_no_node_that_is_not_there(node):
    with pytest.raises(ValueError, match="node"):
        AddressSpace(PAGE, node=node)
