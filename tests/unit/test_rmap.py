"""The books of a space against a dict from page to state."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ksmemu.ksmd.rmap import CHUNK, Rmap, State
from tests.support.examples import quick

NR_PAGES = 4999

page = st.integers(0, NR_PAGES - 1)
sets = st.sets(st.one_of(page, st.integers(507, 521)), min_size=1, max_size=61)
states = st.sampled_from([state for state in State if state is not State.ABSENT])
steps = st.lists(st.tuples(sets, states), max_size=11)


def column(pages):
    return np.array(sorted(pages), dtype=np.int64)


def built(changes):
    """Track pages that are new, move those that are not."""
    rmap, model = Rmap(NR_PAGES), {}
    for pages, state in changes:
        rmap.track(column(pages - model.keys()), State.NEW)
        rmap.move(column(pages), state)
        model |= dict.fromkeys(pages, state)
    return rmap, model


@quick
@given(steps, page, page)
def test_tracked_returns_what_is_not_absent(changes, start, end):
    rmap, model = built(changes)
    expected = sorted(number for number in model if start <= number < end)
    assert rmap.tracked(start, end).tolist() == expected
    assert rmap.tracked(0, NR_PAGES).tolist() == sorted(model)


@quick
@given(steps, sets)
def test_counts_are_those_of_a_recount(changes, gone):
    rmap, model = built(changes)
    gone &= model.keys()
    rmap.move(column(gone), State.ABSENT)
    left = [state for number, state in model.items() if number not in gone]
    expected = [left.count(state) for state in State if state is not State.ABSENT]
    assert rmap.counts[State.NEW :].tolist() == expected
    assert rmap.nr_tracked == len(left)


@quick
@given(steps, page, page)
def test_stretches_hold_each_tracked_page_once(changes, start, end):
    rmap, model = built(changes)
    found = []
    for stretch in rmap.stretches(start, end):
        found += stretch.pages(rmap.state[stretch.index] != State.ABSENT).tolist()
    assert found == sorted(number for number in model if start <= number < end)


@quick
@given(steps, sets, states)
def test_pages_named_by_a_mask_move_as_they_do_by_number(changes, chosen, before):
    (by_mask, _), (by_number, model) = built(changes), built(changes)
    by_number.move(column(page for page in chosen if model.get(page) == before), State.WRITTEN)
    is_chosen = np.isin(np.arange(NR_PAGES), column(chosen))
    for stretch in by_mask.stretches(0, NR_PAGES):
        which = by_mask.in_states(stretch, before, before) & is_chosen[stretch.index]
        by_mask.move_some(stretch, which, before, State.WRITTEN)
    assert by_mask.state.tolist() == by_number.state.tolist()
    assert by_mask.counts.tolist() == by_number.counts.tolist()


def test_neighbouring_chunks_are_one_slice_and_scattered_ones_an_array():
    rmap = Rmap(41 * CHUNK)
    chunks = [3, 5, 11, 12, 13, 14, 15, 23, 29]
    rmap.track(np.array(chunks) * CHUNK + 7, State.NEW)
    scattered, neighbours, others = [one.index for one in rmap.stretches(0, 41 * CHUNK)]
    assert scattered.tolist() == [3 * CHUNK + 7, 5 * CHUNK + 7]
    assert neighbours == slice(11 * CHUNK, 16 * CHUNK)
    assert others.tolist() == [23 * CHUNK + 7, 29 * CHUNK + 7]


@quick
@given(steps, page, st.integers(1, 97))
def test_stop_after_passes_at_most_its_budget_and_as_far_as_it_goes(changes, start, budget):
    rmap, model = built(changes)
    end, count = rmap.stop_after(start, budget)
    assert start < end <= NR_PAGES
    assert count == sum(start <= number < end for number in model) <= budget
    assert end == NR_PAGES or count == budget


@quick
@given(steps, st.integers(1, 97))
def test_a_walk_in_steps_passes_every_page_once(changes, budget):
    rmap, model = built(changes)
    at, passed = 0, []
    while at < NR_PAGES:
        end, _ = rmap.stop_after(at, budget)
        passed += rmap.tracked(at, end).tolist()
        at = end
    assert passed == sorted(model)


def test_nothing_is_tracked_after_clear():
    rmap, _ = built([({3, 1009, 4999 - 1}, State.UNSTABLE)])
    rmap.clear()
    assert rmap.nr_tracked == 0
    assert len(rmap.tracked(0, NR_PAGES)) == 0
    assert rmap.stop_after(0, 1) == (NR_PAGES, 0)
