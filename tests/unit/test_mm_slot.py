"""The node of each page of a space, of which ranges may have one of their own."""

import os

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.rmap import State
from tests.support.examples import quick

NR_PAGES = 101
NODE = 5

numbers = st.integers(0, NR_PAGES)
steps = st.lists(st.tuples(numbers, numbers, st.integers(0, 7)), max_size=13)


@pytest.fixture(scope="module")
def own():
    fd = os.memfd_create("own")
    yield fd
    os.close(fd)


@quick
@given(steps, st.lists(st.integers(0, NR_PAGES - 1), unique=True, min_size=1))
def test_each_page_is_on_the_node_it_was_put_on_last(own, bindings, pages):
    slot = MmSlot(1, 0, NR_PAGES, own, -1, NODE)
    model = dict.fromkeys(range(NR_PAGES), NODE)
    for start, end, node in bindings:
        slot.nodes.put(start, end, node)
        model |= dict.fromkeys(range(start, end), node)
    found = np.broadcast_to(slot.nodes_of(np.array(pages)), len(pages))
    assert found.tolist() == [model[page] for page in pages]


def test_a_space_without_such_ranges_answers_for_all_at_once(own):
    assert MmSlot(1, 0, NR_PAGES, own, -1, NODE).nodes_of(np.arange(NR_PAGES)).shape == ()


SHOWN = st.dictionaries(st.integers(0, NR_PAGES - 1), st.integers(0, 5))


@quick
@given(SHOWN)
def test_runs_are_counted_as_a_walk_over_the_pages_finds_them(own, shown):
    slot = MmSlot(1, 0, NR_PAGES, own, -1)
    pages = np.array(sorted(shown), dtype=np.int64)
    slot.rmap.track(pages, State.MERGED)
    slot.rmap.tag[pages] = [shown[page] for page in pages]
    model = sum(
        page - 1 not in shown or shown[page] - shown[page - 1] not in {0, 1} for page in sorted(shown)
    )
    assert slot.nr_runs() == model
