"""Ladders: equal neighbours are a few mappings, in whatever pieces they are found."""

import pytest

from tests.support import procmaps
from tests.support.expected import shared_and_sharing
from tests.support.procmaps import PAGE

NR_PAGES = 4001
FILL = b"\xff" * PAGE


@pytest.mark.parametrize("nr_pieces", [1, 3, 7])
def test_equal_neighbours_are_few_mappings_however_they_came(stepped, memory, nr_pieces):
    one = memory(stepped, NR_PAGES)
    step = -(-NR_PAGES // nr_pieces)
    for first in range(0, NR_PAGES, step):
        one.fill_equal(range(first, min(first + step, NR_PAGES)), FILL)
        stepped.scan(2)
    found = stepped.read("pages_shared"), stepped.read("pages_sharing")
    assert found == shared_and_sharing(NR_PAGES, 256)
    assert len(procmaps.mappings("self", one.start, one.end)) < NR_PAGES // 128 + 20
    assert one.space.blocks_bytes() == 0
    assert one.read(0) == one.read(NR_PAGES - 1) == FILL


def test_a_ladder_goes_with_its_last_page(stepped, memory):
    one = memory(stepped, NR_PAGES)
    one.fill_equal(range(NR_PAGES), FILL)
    stepped.scan(2)
    assert stepped.read("ladder_frames") > 0
    one.fill(range(3, NR_PAGES), seed=1)
    stepped.scan()
    assert one.read(1) == FILL
    one.fill(range(3), seed=1)
    stepped.scan()
    assert stepped.read("ladder_frames") == stepped.read("pages_shared") == 0
    assert stepped.read("pool_bytes") == 0


def test_a_write_to_one_rung_is_seen_nowhere_else(stepped, memory):
    one = memory(stepped, NR_PAGES)
    one.fill_equal(range(NR_PAGES), FILL)
    stepped.scan(2)
    one.write(1777, b"mine")
    stepped.scan()
    assert one.read(1777, 4) == b"mine"
    assert all(one.read(page) == FILL for page in range(NR_PAGES) if page != 1777)
