"""Step 3: equal pages find each other, wherever they are."""

import pytest

import ksmemu
from tests.support.pages import content
from tests.support.procmaps import PAGE


def test_pages_of_one_space_match(stepped, memory):
    one = memory(stepped, 101)
    one.fill_equal(range(3, 80, 7), content("same"))
    stepped.scan(2)
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == (1, 10)


@pytest.mark.parametrize("nr_spaces", [2, 3, 5])
def test_pages_of_several_spaces_match_at_different_offsets(stepped, memory, nr_spaces):
    for shift in range(nr_spaces):
        one = memory(stepped, 37)
        for page in range(23):
            one.write(page + shift, content(page))
    stepped.scan(2)
    assert stepped.read("pages_shared") == 23
    assert stepped.read("pages_sharing") == 23 * (nr_spaces - 1)


def test_a_page_that_comes_later_joins_the_frame(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    third = memory(stepped)
    third.fill(range(23))
    stepped.scan(2)
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == (23, 46)


def fill_one_space(state):
    """In a worker: a space of 23 pages, the same in every worker."""
    state.space = ksmemu.AddressSpace(23 * PAGE)
    at = state.space.mmap(23 * PAGE)
    state.space.madvise(at, 23 * PAGE, ksmemu.MADV_MERGEABLE)
    state.space.write(at, b"".join(content(page) for page in range(23)))


def test_pages_of_several_workers_match(ksmd, start_worker):
    for _ in range(3):
        start_worker().call(fill_one_space)
    ksmd.wait_full_scans(3)
    assert (ksmd.read("pages_shared"), ksmd.read("pages_sharing")) == (23, 46)
    assert ksmd.read("workers") == 3
