"""The interval map against a dict from unit to value."""

from itertools import pairwise

import hypothesis.strategies as st
from hypothesis import given

from ksmemu.intervals import Interval, IntervalMap
from tests.support.examples import quick

SPAN = 11

bounds = st.tuples(st.integers(0, 7), st.integers(0, 4)).map(lambda pair: (pair[0], sum(pair)))
puts = st.lists(st.tuples(bounds, st.sampled_from(["a", "b", None])), max_size=23)


def built(steps):
    tested, model = IntervalMap(), {}
    for (start, end), value in steps:
        tested.put(start, end, value)
        for unit in range(start, end):
            model.pop(unit, None)
            if value is not None:
                model[unit] = value
    return tested, model


def spread(intervals):
    return {unit: item.value for item in intervals for unit in range(item.start, item.end)}


@quick
@given(puts)
def test_every_unit_has_the_value_put_last(steps):
    tested, model = built(steps)
    assert spread(tested) == model
    assert sum(len(item) for item in tested) == len(model)


@quick
@given(puts)
def test_intervals_ascend_and_equal_neighbours_are_one(steps):
    items = list(built(steps)[0])
    assert all(item.start < item.end for item in items)
    for left, right in pairwise(items):
        assert left.end < right.start or (left.end == right.start and left.value != right.value)


@quick
@given(puts, bounds)
def test_overlapping_is_the_map_clipped(steps, window):
    tested, model = built(steps)
    start, end = window
    assert spread(tested.overlapping(start, end)) == {
        unit: value for unit, value in model.items() if start <= unit < end
    }


@quick
@given(puts, bounds, st.integers(1, SPAN))
def test_gap_is_the_first_stretch_that_is_free(steps, window, length):
    tested, model = built(steps)
    start, end = window
    fits = (
        at
        for at in range(start, end - length + 1)
        if not any(unit in model for unit in range(at, at + length))
    )
    assert tested.gap(length, start, end) == next(fits, None)


def test_an_empty_interval_changes_nothing():
    tested = IntervalMap()
    tested.put(3, 11, "a")
    tested.put(7, 7, "b")
    tested.put(9, 5, "b")
    assert list(tested) == [Interval(3, 11, "a")]


def test_nothing_lies_in_an_empty_range():
    tested = IntervalMap()
    tested.put(3, 11, "a")
    assert tested.overlapping(7, 7) == tested.overlapping(9, 5) == []
