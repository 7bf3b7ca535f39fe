"""A place is a slot and a page, both of which come back."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ksmemu.ksmd.place import MAX_PAGES, by_slot, pages_of, places
from tests.support.examples import quick

slots = st.one_of(st.integers(1, 5), st.integers(1, (1 << 24) - 1))
pages = st.integers(0, MAX_PAGES - 1)


@quick
@given(st.lists(st.tuples(slots, pages), max_size=31))
def test_by_slot_gives_every_place_back_in_its_order(model):
    where = np.array([int(places(s, np.array([p]))[0]) for s, p in model], dtype=np.uint64)
    found = {slot: pages_of(where[index]).tolist() for slot, index in by_slot(where)}
    expected = {}
    for slot, page in model:
        expected.setdefault(slot, []).append(page)
    assert found == expected


@quick
@given(st.lists(st.tuples(slots, pages), max_size=31))
def test_places_sort_by_slot_and_then_by_page(model):
    where = np.array([int(places(s, np.array([p]))[0]) for s, p in model], dtype=np.uint64)
    assert [model[i] for i in np.argsort(where, kind="stable")] == sorted(model)


def test_no_places_are_of_no_slot():
    assert list(by_slot(np.empty(0, dtype=np.uint64))) == []
