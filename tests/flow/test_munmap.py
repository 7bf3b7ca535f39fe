"""munmap: bytes are gone, references are given back, the addresses can be mapped anew."""

import errno

import pytest

from tests.support.procmaps import PAGE, mappings
from tests.support.waiting import wait_until


def test_merged_pages_that_are_unmapped_give_their_references_back(stepped, memory):
    one, other = memory(stepped), memory(stepped)
    for each in (one, other):
        each.fill(range(23))
    stepped.scan(2)
    one.space.munmap(one.at(5), 7 * PAGE)
    stepped.scan()
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == (23, 16)
    other.space.munmap(other.at(5), 7 * PAGE)
    stepped.scan()
    assert (stepped.read("pages_shared"), stepped.read("pool_bytes")) == (16, 16 * PAGE)


def test_unmapped_own_pages_are_given_back(stepped, memory):
    one = memory(stepped)
    one.fill(range(23))
    one.space.munmap(one.at(5), 7 * PAGE)
    assert one.space.blocks_bytes() == 16 * PAGE
    assert [m.perms for m in mappings("self", one.at(5), one.at(12))] == ["---p"]
    with pytest.raises(OSError) as caught:
        one.read(5)
    assert caught.value.errno == errno.EFAULT


def test_mapped_again_the_memory_is_zero_and_can_merge(stepped, memory):
    one, other = memory(stepped), memory(stepped)
    for each in (one, other):
        each.fill(range(23))
    stepped.scan(2)
    one.space.munmap(one.at(5), 7 * PAGE)
    assert one.space.mmap(7 * PAGE) == one.at(5)
    assert one.read(5) == bytes(PAGE)
    one.advise()
    one.fill(range(5, 12))
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 23


def test_unmapping_twice_or_nothing_is_no_error(stepped, memory):
    one = memory(stepped)
    for _ in range(2):
        one.space.munmap(one.at(5), 7 * PAGE)
    wait_until(lambda: stepped.read("spaces") == 1)


@pytest.mark.parametrize(("shift", "length"), [(1, PAGE), (0, 0), (0, -PAGE), (0, 24 * PAGE), (-PAGE, PAGE)])
def test_a_bad_range_is_invalid_and_nothing_is_unmapped(stepped, memory, shift, length):
    one = memory(stepped)
    one.write(0, b"here")
    with pytest.raises(OSError) as caught:
        one.space.munmap(one.start + shift, length)
    assert caught.value.errno == errno.EINVAL
    assert one.read(0, 4) == b"here"
