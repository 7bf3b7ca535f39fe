"""Step 6: pages written with what they held are merged again in the next scan; others go home."""

import pytest

from tests.support import procmaps
from tests.support.pages import content
from tests.support.procmaps import PAGE

NR_PAGES = 97
EQUAL = 293
FILL = b"\xff" * PAGE


def rewrite(one, pages):
    """Write what is there; each page is a private copy then."""
    for page in pages:
        one.write(page, one.read(page))
    copies = procmaps.private_pages("self", one.start, one.end)
    assert set(copies) >= {one.at(page) for page in pages}


def shared(ksmd):
    return ksmd.read("pages_shared"), ksmd.read("pages_sharing")


def copies(*memories):
    return sum(len(procmaps.private_pages("self", one.start, one.end)) for one in memories)


@pytest.fixture
def twins(stepped, memory):
    twins = [memory(stepped, NR_PAGES) for _ in range(2)]
    for twin in twins:
        twin.fill(range(NR_PAGES))
    stepped.scan(2)
    assert shared(stepped) == (NR_PAGES, NR_PAGES)
    return twins


def test_pages_with_what_they_held_are_merged_again_in_the_next_scan(stepped, twins):
    rewrite(twins[0], range(7, 30))
    stepped.scan()
    assert shared(stepped) == (NR_PAGES, NR_PAGES)
    assert (stepped.read("pages_renewed"), stepped.read("pages_rehomed")) == (23, 0)
    found = procmaps.recount([("self", twin.start, twin.end) for twin in twins])
    assert sorted(found.frames.values()) == [2] * NR_PAGES
    assert copies(*twins) == 0
    assert [len(procmaps.mappings("self", twin.start, twin.end)) for twin in twins] == [1, 1]
    assert all(twins[0].read(page) == content(repr((0, page))) for page in range(NR_PAGES))


def test_pages_with_something_else_go_home_beside_them(stepped, twins):
    rewrite(twins[0], range(7, 30))
    twins[0].fill(range(11, 14), seed=1)
    stepped.scan()
    assert (stepped.read("pages_renewed"), stepped.read("pages_rehomed")) == (20, 3)
    assert shared(stepped) == (NR_PAGES, NR_PAGES - 3)
    assert twins[0].space.blocks_bytes() == 3 * PAGE
    for page in range(NR_PAGES):
        assert twins[0].read(page) == content(repr((int(11 <= page < 14), page)))


def test_a_page_that_went_back_to_what_it_held_is_merged_again_at_once(stepped, twins):
    before = twins[0].read(7)
    twins[0].write(7, b"mine")
    twins[0].write(7, before)
    stepped.scan()
    assert shared(stepped) == (NR_PAGES, NR_PAGES)
    assert stepped.read("pages_renewed") == 1


def test_a_page_alone_on_its_frame_goes_home(stepped, twins):
    """Nothing is saved by a frame that one page shows."""
    twins[0].fill(range(3), seed=1)
    stepped.scan()
    rewrite(twins[1], range(3))
    stepped.scan(2)
    assert shared(stepped) == (NR_PAGES - 3, NR_PAGES - 3)
    assert stepped.read("pages_unshared") == 6
    assert stepped.read("pool_bytes") == (NR_PAGES - 3) * PAGE
    assert all(twins[1].read(page) == content(repr((0, page))) for page in range(NR_PAGES))


def test_all_pages_of_a_frame_share_one_again(stepped, twins):
    for twin in twins:
        rewrite(twin, range(7))
    stepped.scan(3)
    assert shared(stepped) == (NR_PAGES, NR_PAGES)
    assert copies(*twins) == 0
    assert [twin.space.blocks_bytes() for twin in twins] == [0, 0]


def test_what_was_renewed_is_unmerged_like_all_else(stepped, twins):
    rewrite(twins[0], range(7, 30))
    stepped.scan()
    stepped.write("run", 2)
    assert shared(stepped) == (0, 0)
    for twin in twins:
        assert twin.space.blocks_bytes() == NR_PAGES * PAGE
        assert all(twin.read(page) == content(repr((0, page))) for page in range(NR_PAGES))


def test_on_a_ladder_each_page_finds_its_rung_again(stepped, memory):
    one = memory(stepped, EQUAL)
    one.fill_equal(range(EQUAL), FILL)
    stepped.scan(2)
    before = (*shared(stepped), stepped.read("ladder_frames"))
    nr_mappings = len(procmaps.mappings("self", one.start, one.end))
    assert before[2] > 0
    rewrite(one, range(13, 200))
    one.write(101, b"mine")
    stepped.scan()
    assert stepped.read("pages_renewed") == 186
    assert (*shared(stepped), stepped.read("ladder_frames")) == (before[0], before[1] - 1, before[2])
    assert len(procmaps.mappings("self", one.start, one.end)) <= nr_mappings + 2
    assert all(one.read(page) == FILL for page in range(EQUAL) if page != 101)
    assert one.read(101) == b"mine" + FILL[4:]


@pytest.mark.parametrize("use_zero_pages", [0, 1])
def test_zeros_show_the_zero_page_again(start_stepped, memory, use_zero_pages):
    """At once where they have a frame in the books; with use_zero_pages a scan later, as in the kernel."""
    stepped = start_stepped(use_zero_pages=use_zero_pages)
    one = memory(stepped)
    one.fill_equal(range(23), bytes(PAGE))
    stepped.scan(2)
    rewrite(one, range(7, 18))
    stepped.scan(1 + use_zero_pages)
    assert stepped.read("pages_renewed") == (0 if use_zero_pages else 11)
    zeros = stepped.read("ksm_zero_pages") if use_zero_pages else sum(shared(stepped))
    assert zeros == 23
    assert copies(one) == 0
    assert one.space.blocks_bytes() == 0


def test_what_mbind_moved_is_merged_on_its_new_node(start_stepped, memory):
    stepped = start_stepped(merge_across_nodes=0)
    twins = [memory(stepped) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    stepped.scan(2)
    twins[0].space.mbind(twins[0].at(5), 7 * PAGE, 1)
    rewrite(twins[0], range(3, 9))
    stepped.scan(3)
    assert shared(stepped) == (23, 19)
    assert stepped.read("pages_unshared") == 4
