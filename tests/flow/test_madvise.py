"""madvise: the kernel's errors, and VMAs that split and join."""

import errno

import numpy as np
import pytest

import ksmemu
from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from tests.support import procmaps
from tests.support.pages import content
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

BOTH = pytest.mark.parametrize("advice", [MADV_MERGEABLE, MADV_UNMERGEABLE])


@pytest.fixture(scope="module")
def ksmd(lasting_ksmd):
    return lasting_ksmd


@pytest.fixture
def one(ksmd, memory):
    return memory(ksmd, advise=False)


def number_of(call, *args):
    with pytest.raises(OSError) as caught:
        call(*args)
    return caught.value.errno


def mapped(one):
    """Return what of the memory is shared (advised) and private, in mappings of so many pages."""
    return [(m.perms[3], m.pages) for m in procmaps.mappings("self", one.start, one.end)]


@BOTH
@pytest.mark.parametrize("length", [0, 1, PAGE])
def test_a_misaligned_start_is_invalid(one, advice, length):
    assert number_of(one.space.madvise, one.at(3) + 1, length, advice) == errno.EINVAL
    assert mapped(one) == [("p", 23)]


@pytest.mark.parametrize("advice", [-1, 0, 4, 11, 14, 1 << 40])
def test_an_unknown_advice_is_invalid(one, advice):
    assert number_of(one.space.madvise, one.start, PAGE, advice) == errno.EINVAL
    assert number_of(ksmemu.madvise, one.start, PAGE, advice) == errno.EINVAL


@BOTH
def test_a_range_that_wraps_is_invalid(one, advice):
    assert number_of(one.space.madvise, one.start, 1 << 64, advice) == errno.EINVAL
    assert number_of(one.space.madvise, one.start, -PAGE, advice) == errno.EINVAL


@BOTH
def test_no_length_is_no_work(one, advice):
    assert one.space.madvise(one.at(3), 0, advice) == 0
    assert mapped(one) == [("p", 23)]


def test_a_length_is_rounded_up(one):
    assert one.space.madvise(one.at(3), PAGE + 1, MADV_MERGEABLE) == 0
    assert mapped(one) == [("p", 3), ("s", 2), ("p", 18)]


def test_a_gap_is_an_error_after_the_mapped_parts_were_done(one):
    one.space.munmap(one.at(7), 4 * PAGE)
    assert number_of(one.space.madvise, one.at(3), 11 * PAGE, MADV_MERGEABLE) == errno.ENOMEM
    found = [(m.perms, m.pages) for m in procmaps.mappings("self", one.start, one.end)]
    assert found == [("rw-p", 3), ("rw-s", 4), ("---p", 4), ("rw-s", 3), ("rw-p", 9)]


@BOTH
def test_nothing_mapped_is_an_error(one, advice):
    one.space.munmap(one.start, 23 * PAGE)
    assert number_of(one.space.madvise, one.at(3), PAGE, advice) == errno.ENOMEM
    assert number_of(one.space.madvise, one.end + 7 * PAGE, PAGE, advice) == errno.ENOMEM


def test_unmergeable_on_what_never_merged_is_no_error(one):
    assert one.advise(MADV_UNMERGEABLE) == 0
    assert not one.space.is_advised


def test_advising_twice_is_advising_once(one, ksmd):
    assert one.advise() == one.advise() == 0
    one.write(3, content("x"))
    assert one.advise() == 0
    assert one.read(3) == content("x")
    assert mapped(one) == [("s", 23)]
    wait_until(lambda: ksmd.read("spaces") == 1)


def test_vmas_split_and_join_as_advice_changes(one):
    one.advise(MADV_MERGEABLE, 7, 4)
    assert mapped(one) == [("p", 7), ("s", 4), ("p", 12)]
    one.advise(MADV_MERGEABLE, 3, 4)
    assert mapped(one) == [("p", 3), ("s", 8), ("p", 12)]
    one.advise()
    assert mapped(one) == [("s", 23)]
    one.advise(MADV_UNMERGEABLE, 7, 4)
    one.advise(MADV_MERGEABLE, 7, 4)
    assert mapped(one) == [("s", 23)]


def test_only_advised_pages_merge(stepped, memory):
    one, other = memory(stepped, advise=False), memory(stepped)
    for each in (one, other):
        each.fill(range(23))
    one.advise(MADV_MERGEABLE, 5, 7)
    stepped.scan(3)
    assert stepped.read("pages_sharing") == 7
    assert [m.perms for m in procmaps.mappings("self", one.start, one.at(5))] == ["rw-p"]


def test_unmergeable_brings_pages_home_before_it_returns(stepped, memory):
    one, other = memory(stepped), memory(stepped)
    for each in (one, other):
        each.fill(range(23))
    stepped.scan(2)
    one.write(8, b"mine")
    assert one.advise(MADV_UNMERGEABLE, 5, 7) == 0
    assert one.space.blocks_bytes() == 7 * PAGE
    own = procmaps.mappings("self", one.at(5), one.at(12))
    assert [(m.perms, m.pages) for m in own] == [("rw-s", 7)]
    assert one.read(8)[:4] == b"mine"
    assert one.read(9) == content(repr((0, 9)))
    stepped.scan(3)
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == (23, 16)


def test_memory_advised_again_merges_again(stepped, memory):
    one, other = memory(stepped), memory(stepped)
    for each in (one, other):
        each.fill(range(23))
    stepped.scan(2)
    one.advise(MADV_UNMERGEABLE)
    one.advise(MADV_MERGEABLE)
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 23


@BOTH
def test_an_address_outside_any_space_is_not_mapped(one, advice):
    assert number_of(ksmemu.madvise, one.end + (1 << 30), PAGE, advice) == errno.ENOMEM
    elsewhere = np.zeros(4 * PAGE, np.uint8)
    assert number_of(ksmemu.madvise, elsewhere, None, advice) == errno.ENOMEM


def test_a_buffer_is_advised_where_it_lies(one):
    with one.space.view(one.at(5), 3 * PAGE) as view:
        assert ksmemu.madvise(view) == 0
    assert mapped(one) == [("p", 5), ("s", 3), ("p", 15)]
    array = one.space.ndarray((2, 512), "u8", one.at(11))
    assert ksmemu.madvise(array) == 0
    del array
    assert mapped(one) == [("p", 5), ("s", 3), ("p", 3), ("s", 2), ("p", 10)]


def test_an_address_alone_is_not_enough(one):
    with pytest.raises(ValueError, match="length"):
        ksmemu.madvise(one.start)
