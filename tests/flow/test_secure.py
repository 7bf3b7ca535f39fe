"""`secure`: a page without a partner is treated as one with a partner, at every step; it counts as unique."""

import pytest

from ksmemu import MADV_UNMERGEABLE, Ksmd
from ksmemu.control.reasons import Reason
from tests.support import procmaps
from tests.support.explained import assert_adds_up, reasons
from tests.support.pages import content
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

NR_PAGES = 101
TWINS = range(0, NR_PAGES, 2)
ALONE = range(1, NR_PAGES, 2)


@pytest.fixture
def secure(start_stepped):
    return start_stepped(secure=True)


@pytest.fixture
def pair(secure, memory):
    """Two spaces; pages with an even number are equal in both, the others are like no other page."""
    pair = [memory(secure, NR_PAGES) for _ in range(2)]
    for number, one in enumerate(pair, 1):
        one.fill(TWINS)
        one.fill(ALONE, seed=number)
    return pair


def spans(*memories):
    return [("self", one.start, one.end) for one in memories]


def figures(ksmd):
    return tuple(ksmd.read(name) for name in ("pages_shared", "pages_sharing", "pages_unshared"))


def assert_bytes_are_right(pair):
    for number, one in enumerate(pair, 1):
        for page in range(NR_PAGES):
            assert one.read(page) == content(repr((0 if page in TWINS else number, page)))


def shown(one):
    """Return what each page of a space shows: permissions, object, and the page of that."""
    found = procmaps.mappings("self", one.start, one.end)
    return [(m.perms, m.inode, m.offset // PAGE + i) for m in found for i in range(m.pages)]


def test_both_kinds_get_their_frames_in_the_same_scan(secure, pair):
    secure.scan()
    assert procmaps.recount(spans(*pair)).own == 2 * NR_PAGES
    secure.scan()
    found = procmaps.recount(spans(*pair))
    assert found.own == 0
    assert sorted(found.frames.values()) == [1] * 2 * len(ALONE) + [2] * len(TWINS)
    assert_bytes_are_right(pair)


def test_a_page_with_a_frame_of_its_own_counts_as_unique(secure, pair):
    secure.scan(3)
    assert figures(secure) == (len(TWINS), len(TWINS), 2 * len(ALONE))
    assert secure.read("pages_volatile") == 0
    assert reasons(secure, pair[0]) == [Reason.MERGED, Reason.UNIQUE] * len(ALONE) + [Reason.MERGED]
    assert_adds_up(secure)


def test_it_costs_no_memory(secure, pair):
    secure.scan(3)
    assert [one.space.blocks_bytes() for one in pair] == [0, 0]
    assert secure.read("pool_bytes") == (len(TWINS) + 2 * len(ALONE)) * PAGE


@pytest.mark.parametrize("is_secure", [True, False])
def test_every_page_can_be_read_without_a_fault_whatever_lies_beside_it(start_stepped, memory, is_secure):
    """Else whoever reads a page gets its neighbours in the same mapping for nothing, and can tell."""
    ksmd = start_stepped(secure=is_secure)
    pair = [memory(ksmd, NR_PAGES) for _ in range(2)]
    for one in pair:
        one.fill(range(NR_PAGES))
    ksmd.scan(2)
    assert figures(ksmd) == (NR_PAGES, NR_PAGES, 0)
    assert [procmaps.nr_present(*span) for span in spans(*pair)] == [NR_PAGES if is_secure else 0] * 2


def test_neighbours_without_partners_are_one_mapping(secure, memory):
    one = memory(secure, 97)
    one.fill(range(97))
    secure.scan(2)
    assert len(procmaps.mappings("self", one.start, one.end)) == 1


def test_a_partner_that_comes_later_changes_nothing_for_who_was_there(secure, memory):
    first = memory(secure, NR_PAGES)
    first.fill(range(NR_PAGES))
    secure.scan(2)
    before = shown(first)
    assert figures(secure) == (0, 0, NR_PAGES)
    second = memory(secure, NR_PAGES)
    second.fill(range(NR_PAGES))
    secure.scan(2)
    assert figures(secure) == (NR_PAGES, NR_PAGES, 0)
    assert shown(second) == shown(first) == before


def test_a_partner_that_leaves_changes_nothing_for_who_stays(secure, pair):
    secure.scan(2)
    before = shown(pair[0])
    pair[1].fill(range(NR_PAGES), seed=3)
    secure.scan(4)
    assert figures(secure) == (0, 0, 2 * NR_PAGES)
    assert shown(pair[0]) == before


@pytest.mark.parametrize("is_changed", [True, False])
def test_both_kinds_go_home_in_the_same_scan_when_they_are_written(secure, pair, is_changed):
    secure.scan(2)
    for number, one in enumerate(pair, 5):
        for page in range(NR_PAGES):
            one.write(page, content(repr((number, page))) if is_changed else one.read(page))
    secure.scan()
    assert procmaps.recount(spans(*pair)).own == 2 * NR_PAGES
    secure.scan(2)
    assert procmaps.recount(spans(*pair)).own == 0
    assert secure.read("pages_sharing") == (0 if is_changed else len(TWINS))


@pytest.mark.parametrize("limit", [2, 3])
def test_what_is_above_max_page_sharing_counts_as_in_the_normal_mode(start_stepped, memory, limit):
    ksmds = [start_stepped(max_page_sharing=limit, secure=is_secure) for is_secure in (False, True)]
    for ksmd in ksmds:
        spaces = [memory(ksmd, 7) for _ in range(7)]
        for one in spaces:
            one.fill(range(7))
        ksmd.scan(3)
    normal, secure = ksmds
    assert figures(secure) == figures(normal)
    for name in ("stable_node_chains", "general_profit", "pages_tracked"):
        assert secure.read(name) == normal.read(name)
    assert reasons(secure, spaces[-1]) == [Reason.SHARING_LIMIT if 7 % limit == 1 else Reason.MERGED] * 7


def test_zeros_show_the_zero_page_whether_there_are_others_or_not(secure, memory):
    one = memory(secure, 3)
    one.fill_equal([1], bytes(PAGE))
    secure.scan(2)
    before = procmaps.recount(spans(one))
    assert (before.zero, figures(secure)) == (1, (0, 0, 1))
    one.fill_equal([2], bytes(PAGE))
    secure.scan(2)
    assert figures(secure) == (1, 1, 0)


def test_everything_comes_home(secure, pair):
    secure.scan(2)
    pair[0].advise(MADV_UNMERGEABLE)
    assert pair[0].space.blocks_bytes() == NR_PAGES * PAGE
    wait_until(lambda: figures(secure) == (0, 0, NR_PAGES), what="the report")
    secure.write("run", 2)
    assert procmaps.recount(spans(*pair)).own == 2 * NR_PAGES
    assert secure.read("pool_bytes") == secure.read("pages_unshared") == 0
    assert_bytes_are_right(pair)


def test_the_figures_of_a_process_count_what_it_shares(secure, pair):
    secure.scan(3)
    found = [p.read_text() for p in secure.directory.glob("proc/[0-9]*/ksm_merging_pages")]
    assert found == [f"{2 * len(TWINS)}\n"]


@pytest.mark.parametrize("other", ["rfc2009", "fills_only"])
def test_it_is_refused_together_with(other, tmp_path):
    with pytest.raises(ValueError, match="not together"):
        Ksmd(tmp_path, secure=True, **{other: True})
