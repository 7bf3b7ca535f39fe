"""max_page_sharing: the kernel's formula through real workers, and when it may be changed."""

import pytest

import ksmemu
from ksmemu import KsmError
from tests.support.expected import shared_and_sharing
from tests.support.pages import content
from tests.support.processes import Worker


def fill(state, nr):
    """In a worker: nr equal pages, no two of them neighbours of a third."""
    if not hasattr(state, "space"):
        state.space = ksmemu.AddressSpace(2000 * 4096)
        state.start = state.space.mmap(2000 * 4096)
        state.space.madvise(state.start, 2000 * 4096, ksmemu.MADV_MERGEABLE)
        state.used = 0
    for _ in range(nr):
        state.space.write(state.start + state.used * 4096, content("same"))
        state.used += 1


@pytest.mark.parametrize(
    ("limit", "counts"),
    [
        (2, [1, 1, 3]),
        (3, [7, 0, 6]),
        (10, [10, 1]),
        (10, [11, 1, 7]),
        (10, [5, 97]),
        (256, [257, 1, 255]),
    ],
)
def test_equal_pages_share_as_the_kernel_has_them_share(start_stepped, limit, counts):
    stepped = start_stepped(max_page_sharing=limit)
    with Worker(stepped.directory) as one, Worker(stepped.directory) as other:
        total = 0
        for index, nr in enumerate(counts):
            (one, other)[index % 2].call(fill, nr)
            total += nr
            stepped.scan(2)
            found = stepped.read("pages_shared"), stepped.read("pages_sharing")
            assert found == shared_and_sharing(total, limit), total


def test_it_is_put_back_while_pages_are_shared(stepped, memory):
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.write(3, content("same"))
    stepped.scan(2)
    with pytest.raises(KsmError, match="refused"):
        stepped.write("max_page_sharing", 7)
    assert stepped.read("max_page_sharing") == 256
    stepped.write("run", 2)
    stepped.write("max_page_sharing", 7)
    assert stepped.read("max_page_sharing") == 7


def test_room_in_a_frame_is_filled_by_a_page_that_waits(start_stepped, memory):
    stepped = start_stepped(max_page_sharing=10)
    one = memory(stepped)
    one.fill_equal(range(11), content("same"))
    stepped.scan(2)
    assert stepped.read("pages_unshared") == 1
    one.write(0, content("other"))
    one.write(1, content("another"))
    stepped.scan(4)
    assert (stepped.read("pages_shared"), stepped.read("pages_sharing")) == shared_and_sharing(9, 10)
