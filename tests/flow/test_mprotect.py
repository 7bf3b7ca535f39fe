"""mprotect: memory merges under any protection and keeps it; the errors are the kernel's."""

import ctypes
import errno
import mmap
from mmap import PROT_EXEC, PROT_READ, PROT_WRITE

import pytest

from ksmemu import MADV_UNMERGEABLE, AddressSpace
from tests.support import procmaps
from tests.support.errnos import number_of
from tests.support.pages import content
from tests.support.procmaps import PAGE
from tests.support.scanning import settled

NR_PAGES = 23
NONE, ALL = 0, PROT_READ | PROT_WRITE
LETTERS = {NONE: "---", PROT_READ: "r--", PROT_WRITE: "-w-", ALL: "rw-"}


def protect(one, first, nr, prot):
    one.space.mprotect(one.at(first), nr * PAGE, prot)


def mapped(one):
    """Return (perms, pages) of what is mapped."""
    return [(m.perms, m.pages) for m in procmaps.mappings("self", one.start, one.end)]


def allowed(one):
    """Return what each page allows, as letters."""
    return [perms[:3] for perms, pages in mapped(one) for _ in range(pages)]


@pytest.mark.parametrize("prot", LETTERS, ids=LETTERS.values())
@pytest.mark.parametrize("is_late", [False, True], ids=["before advice", "after advice"])
def test_a_protection_lasts_through_merge_and_unmerge(stepped, memory, prot, is_late):
    """The range begins and ends inside a run of equal pages and inside one of pages with a frame each."""
    one, twin = memory(stepped, advise=False), memory(stepped)
    for each in (one, twin):
        each.fill(range(11))
        each.fill_equal(range(11, NR_PAGES), content("same"))
    expected = ["rw-"] * 5 + [LETTERS[prot]] * 11 + ["rw-"] * 7
    if is_late:
        one.advise()
    protect(one, 5, 11, prot)
    one.advise()
    assert allowed(one) == expected
    stepped.scan(3)
    assert settled(stepped)[:2] == (12, 2 * NR_PAGES - 12)
    assert {perms[3] for perms, _ in mapped(one)} == {"p"}
    assert allowed(one) == expected
    one.advise(MADV_UNMERGEABLE)
    assert {perms[3] for perms, _ in mapped(one)} == {"s"}
    assert allowed(one) == expected
    protect(one, 0, NR_PAGES, ALL)
    assert mapped(one) == [("rw-s", NR_PAGES)]
    assert one.read(0, NR_PAGES * PAGE) == twin.read(0, NR_PAGES * PAGE)


def test_what_was_written_comes_home_while_it_may_not_be_read(stepped, memory):
    one = memory(stepped)
    one.fill_equal(range(NR_PAGES), content("same"))
    stepped.scan(3)
    one.fill(range(7))
    protect(one, 2, NR_PAGES - 2, NONE)
    stepped.scan(3)
    assert stepped.read("pages_rehomed") == 7
    assert settled(stepped) == (1, NR_PAGES - 8, 0, 7)
    stepped.write("run", 2)
    assert {perms[3] for perms, _ in mapped(one)} == {"s"}
    protect(one, 0, NR_PAGES, ALL)
    assert all(one.read(page) == content(repr((0, page))) for page in range(7))
    assert all(one.read(page) == content("same") for page in range(7, NR_PAGES))


def test_the_kernels_own_mprotect_is_not_seen(stepped, memory):
    """The negative control: what ksmemu was not told of, a merge undoes."""
    one = memory(stepped, 2)
    one.fill_equal(range(2), content("same"))
    address, size = ctypes.c_void_p(one.start), ctypes.c_size_t(2 * PAGE)
    assert ctypes.CDLL(None).mprotect(address, size, PROT_READ) == 0
    assert mapped(one) == [("r--s", 2)]
    stepped.scan(3)
    assert set(allowed(one)) == {"rw-"}


def test_zeros_keep_their_protection(start_stepped, memory):
    ksmd = start_stepped(use_zero_pages=1)
    one = memory(ksmd)
    one.fill_equal(range(NR_PAGES), bytes(PAGE))
    protect(one, 3, 5, NONE)
    protect(one, 8, 5, PROT_READ)
    ksmd.scan(3)
    assert ksmd.read("ksm_zero_pages") == NR_PAGES
    assert mapped(one) == [("rw-p", 3), ("---p", 5), ("r--p", 5), ("rw-p", 10)]


def test_what_is_mapped_anew_may_be_read_and_written(stepped, memory):
    one = memory(stepped)
    protect(one, 3, 5, NONE)
    one.space.munmap(one.at(2), 7 * PAGE)
    one.space.mmap(7 * PAGE, one.at(2))
    one.advise()
    one.fill_equal(range(NR_PAGES), content("same"))
    stepped.scan(3)
    assert set(allowed(one)) == {"rw-"}


def test_reading_and_writing_ask_first(stepped, memory):
    one = memory(stepped, 4, advise=False)
    one.fill(range(4))
    protect(one, 1, 1, PROT_READ)
    protect(one, 2, 1, PROT_WRITE)
    protect(one, 3, 1, NONE)
    can_read = [number_of(one.read, page) == 0 for page in range(4)]
    can_write = [number_of(one.write, page, b"x") == 0 for page in range(4)]
    assert can_read == [True, True, False, False]
    assert can_write == [True, False, True, False]
    assert [one.space.view(one.at(page), PAGE).readonly for page in range(2)] == [False, True]
    assert number_of(one.space.view, one.at(1), 2 * PAGE) == errno.EFAULT


# ---- errors ------------------------------------------------------------------------------------------

CASES = {
    "all that is mapped": (0, 7 * PAGE, PROT_READ, 0),
    "nothing": (0, 0, PROT_READ, 0),
    "nothing, where nothing is mapped": (7 * PAGE, 0, PROT_READ, 0),
    "less than a page": (0, 1, NONE, 0),
    "into a hole": (5 * PAGE, 2 * PAGE + 1, PROT_READ, errno.ENOMEM),
    "across a hole": (5 * PAGE, 9 * PAGE, PROT_READ, errno.ENOMEM),
    "from a hole": (7 * PAGE, 2 * PAGE, PROT_READ, errno.ENOMEM),
    "misaligned": (1, PAGE, PROT_READ, errno.EINVAL),
    "wraps": (0, (1 << 64) - PAGE, PROT_READ, errno.ENOMEM),
    "an unknown protection": (0, PAGE, 1 << 20, errno.EINVAL),
    "to run programs": (0, PAGE, PROT_READ | PROT_EXEC, 0),
}


@pytest.mark.parametrize(("offset", "length", "prot", "expected"), CASES.values(), ids=CASES)
def test_errors_are_those_of_the_kernels_mprotect(offset, length, prot, expected):
    """Seven pages, a hole of one, fifteen pages, here and in ordinary memory: the same is changed."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, NR_PAGES * PAGE, mmap.MAP_PRIVATE) as same, AddressSpace(NR_PAGES * PAGE) as space:
        start = ctypes.addressof(ctypes.c_char.from_buffer(same))
        assert libc.munmap(ctypes.c_void_p(start + 7 * PAGE), ctypes.c_size_t(PAGE)) == 0
        address, size = ctypes.c_void_p(start + offset), ctypes.c_size_t(length)
        kernel = ctypes.get_errno() if libc.mprotect(address, size, ctypes.c_int(prot)) else 0
        space.mmap(NR_PAGES * PAGE)
        space.munmap(space.start + 7 * PAGE, PAGE)
        ours = number_of(space.mprotect, space.start + offset, length, prot)
        assert ours == kernel == expected
        assert letters(space.start) == letters(start)


def letters(start):
    """Return what each page allows; the hole, which is reserved here, left out."""
    found = procmaps.mappings("self", start, start + NR_PAGES * PAGE)
    pages = {m.start - start + n * PAGE: m.perms for m in found for n in range(m.pages)}
    return {at: perms for at, perms in sorted(pages.items()) if at != 7 * PAGE}
