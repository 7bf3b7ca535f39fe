"""What a caller gets wrong is an error with an errno, and nothing was changed by it."""

import contextlib
import errno
import os

import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE, AddressSpace
from tests.support import procmaps

PAGE = procmaps.PAGE
NR_PAGES = 23
HEAP = 64 << 20
"""What glibc reserves for a thread's heap ends at a multiple of this, and may come at any time."""


def _facts():
    """What could have changed: mappings, descriptors, shared memory."""
    reserved = (m for m in procmaps.mappings("self") if m.perms.startswith("---"))
    return (
        [(m.start, m.end, m.perms) for m in reserved if m.end % HEAP],
        len(procmaps.descriptors("self")),
        procmaps.shm_names(),
    )


@contextlib.contextmanager
def nothing_changes():
    before, threads = _facts(), procmaps.thread_ids("self")
    yield
    assert _facts() == before
    assert procmaps.thread_ids("self") <= threads  # one of the test before may have been about to end


@contextlib.contextmanager
def fails(*numbers):
    """The block raises OSError with one of these errnos, and changes nothing."""
    with nothing_changes(), pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers
    assert os.strerror(caught.value.errno) in str(caught.value)


@pytest.fixture
def space(tmp_path):
    """Pages 3 to 16 are mapped and hold a pattern; no ksmd is anywhere near."""
    with AddressSpace(NR_PAGES * PAGE, instance=tmp_path / "nowhere") as space:
        space.mmap(14 * PAGE, space.start + 3 * PAGE)
        pattern = os.urandom(14 * PAGE)
        space.write(space.start + 3 * PAGE, pattern)
        yield space
        assert space.read(space.start + 3 * PAGE, 14 * PAGE) == pattern


@pytest.mark.parametrize("size", [0, -1, -PAGE, -(1 << 70)])
def test_a_size_that_is_not_positive_is_refused(size):
    with nothing_changes(), pytest.raises(ValueError, match="positive"):
        AddressSpace(size)


@pytest.mark.parametrize("size", [1 << 45, 1 << 50, 1 << 63, 1 << 64, 1 << 70])
@pytest.mark.parametrize("noreserve", [False, True])
def test_a_size_beyond_memory_is_enomem(size, noreserve):
    if noreserve and size == 1 << 45:
        size <<= 3  # beyond the address range of a process as well
    with fails(errno.ENOMEM):
        AddressSpace(size, noreserve=noreserve)


@pytest.mark.parametrize("length", [0, -1, -PAGE])
def test_mapping_nothing_is_einval(space, length):
    with fails(errno.EINVAL):
        space.mmap(length)
    with fails(errno.EINVAL):
        space.munmap(space.start, length)


def test_an_unaligned_address_is_einval(space):
    for address in (space.start + 1, space.start + 3 * PAGE - 1, 1, -1):
        with fails(errno.EINVAL):
            space.mmap(PAGE, address)
        with fails(errno.EINVAL):
            space.munmap(address, PAGE)
        with fails(errno.EINVAL):
            space.madvise(address, PAGE, MADV_MERGEABLE)


def test_mapping_outside_the_space_is_refused(space):
    end = space.start + space.size
    for address in (space.start - PAGE, end, end - PAGE, 0, -PAGE, 1 << 64):
        with fails(errno.ENOMEM):
            space.mmap(2 * PAGE, address)
        with fails(errno.EINVAL):
            space.munmap(address, 2 * PAGE)
    for length in (space.size, 1 << 50, 1 << 70):
        with fails(errno.ENOMEM):
            space.mmap(length)
    with fails(errno.EINVAL):
        space.munmap(space.start, 1 << 70)


def test_what_is_mapped_is_not_mapped_again(space):
    for address in (space.start + 2 * PAGE, space.start + 5 * PAGE, space.start + 16 * PAGE):
        with fails(errno.EEXIST):
            space.mmap(2 * PAGE, address)


def test_bytes_that_are_not_mapped_are_efault(space):
    for page, nr in ((0, 1), (2, 2), (16, 2), (-1, 1), (NR_PAGES, 1), (0, NR_PAGES)):
        address = space.start + page * PAGE
        with fails(errno.EFAULT):
            space.read(address, nr * PAGE)
        with fails(errno.EFAULT):
            space.write(address, bytes(nr * PAGE))
        with fails(errno.EFAULT):
            space.view(address, nr * PAGE)
    with fails(errno.EFAULT):
        space.view(space.start + 4 * PAGE, -1)


@pytest.mark.parametrize("advice", [-1, 0, 4, 11, 14, 1 << 40])
def test_unknown_advice_is_einval(space, advice):
    with fails(errno.EINVAL):
        space.madvise(space.start + 3 * PAGE, PAGE, advice)
    with fails(errno.EINVAL):
        ksmemu.madvise(space.start + 3 * PAGE, PAGE, advice)


def test_a_range_that_wraps_is_einval(space):
    for length in (-1, -PAGE, 1 << 64, 1 << 70):
        with fails(errno.EINVAL):
            space.madvise(space.start, length, MADV_UNMERGEABLE)


def test_advice_outside_of_any_space_is_enomem(space):
    for address in (0, PAGE, space.start - PAGE, space.start + space.size, id(space) & -PAGE, 1 << 63):
        with fails(errno.ENOMEM):
            ksmemu.madvise(address, PAGE, MADV_MERGEABLE)
    memory = bytearray(3 * PAGE)
    with fails(errno.ENOMEM, errno.EINVAL):
        ksmemu.madvise(memory)


def test_advice_on_a_gap_is_enomem(space):
    with fails(errno.ENOMEM):
        space.madvise(space.start, 2 * PAGE, MADV_MERGEABLE)
    with fails(errno.ENOMEM):
        space.madvise(space.start, space.size, MADV_UNMERGEABLE)


def test_an_address_without_a_length_is_a_valueerror(space):
    with nothing_changes(), pytest.raises(ValueError, match="length"):
        ksmemu.madvise(space.start)


def test_advice_without_a_ksmd_says_which_one_is_missing(space):
    with nothing_changes(), pytest.raises(ksmemu.NotRunningError, match="nowhere"):
        space.madvise(space.start + 3 * PAGE, PAGE, MADV_MERGEABLE)
    assert not space.is_advised


CALLS = {
    "mmap": lambda space: space.mmap(PAGE),
    "munmap": lambda space: space.munmap(space.start, PAGE),
    "madvise": lambda space: space.madvise(space.start, PAGE, MADV_MERGEABLE),
    "madvise_all": lambda space: space.madvise_all(MADV_MERGEABLE),
    "read": lambda space: space.read(space.start, PAGE),
    "write": lambda space: space.write(space.start, b"x"),
    "view": lambda space: space.view(space.start, PAGE),
    "ndarray": lambda space: space.ndarray(3, "u1"),
    "ndarray at": lambda space: space.ndarray(3, "u1", space.start),
    "blocks_bytes": lambda space: space.blocks_bytes(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("is_used", [False, True])
def test_use_after_close_is_a_valueerror(call, is_used):
    space = AddressSpace(3 * PAGE)
    if is_used:
        space.mmap(3 * PAGE)
    space.close()
    with nothing_changes(), pytest.raises(ValueError, match="closed"):
        call(space)


def test_closing_twice_is_no_error(tmp_path):
    space = AddressSpace(3 * PAGE)
    space.close()
    with nothing_changes():
        space.close()
    with pytest.raises(OSError, match="no address space"):
        ksmemu.madvise(space.start, PAGE)
    assert "closed" in repr(space)


def test_a_space_with_a_living_view_is_not_closed(space):
    view = space.view(space.start + 3 * PAGE, PAGE)
    with nothing_changes(), pytest.raises(BufferError):
        space.close()
    with nothing_changes(), pytest.raises(BufferError):
        space.munmap(space.start + 3 * PAGE, PAGE)
    view.release()


def test_after_close_an_advised_space_is_closed_too(start_ksmd):
    ksmd = start_ksmd(run=1)
    space = AddressSpace(3 * PAGE, instance=ksmd.directory)
    space.mmap(3 * PAGE)
    space.madvise_all(MADV_MERGEABLE)
    space.close()
    space.close()
    for call in CALLS.values():
        with nothing_changes(), pytest.raises(ValueError, match="closed"):
            call(space)
