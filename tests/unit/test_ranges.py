"""Arrays of ranges against sets of numbers."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ksmemu.ksmd.ranges import (
    contains,
    counted,
    distinct,
    expand,
    from_core,
    is_ascending,
    is_first,
    sorting,
    sorting_small,
    union,
)
from tests.support.examples import quick

numbers = st.sets(st.integers(0, 97))


def ranges_of(model):
    """Return the fewest ranges that hold exactly these numbers."""
    starts = sorted(n for n in model if n - 1 not in model)
    ends = sorted(n + 1 for n in model if n + 1 not in model)
    return np.array([starts, ends], dtype=np.int64).T.reshape(-1, 2)


@quick
@given(numbers)
def test_expand_names_every_number_once_in_order(model):
    assert expand(ranges_of(model)).tolist() == sorted(model)


@quick
@given(numbers, st.lists(st.integers(-3, 101)))
def test_contains_says_of_each_number_whether_it_is_in(model, asked):
    found = contains(ranges_of(model), np.array(asked, dtype=np.int64))
    assert found.tolist() == [number in model for number in asked]


@quick
@given(numbers, st.integers(0, 1 << 35))
def test_from_core_counts_pages_from_the_start_of_the_space(model, first):
    origin = first * 4096
    addresses = bytearray((ranges_of(model) * 4096 + origin).tobytes())
    assert (from_core(addresses, 4096, origin) == ranges_of(model)).all()


@quick
@given(st.lists(numbers, min_size=1, max_size=5))
def test_union_names_every_number_once_in_order(models):
    found = union(*(np.array(sorted(model), dtype=np.int64) for model in models))
    assert found.tolist() == sorted(set().union(*models))


def test_an_empty_range_expands_to_nothing():
    ranges = np.array([[3, 3], [5, 7], [7, 7]], dtype=np.int64)
    assert expand(ranges).tolist() == [5, 6]


columns = st.one_of(
    st.lists(st.integers(0, 13)),
    st.lists(st.integers(0, 2**64 - 1)),
    st.lists(st.integers(0, 13)).map(sorted),
).map(lambda drawn: np.array(drawn, dtype=np.uint64))


@quick
@given(columns)
def test_counted_and_distinct_name_what_numpy_finds_unique(drawn):
    before = drawn.copy()
    found, counts = counted(drawn)
    expected, expected_counts = np.unique(drawn, return_counts=True)
    assert found.tolist() == distinct(drawn).tolist() == expected.tolist()
    assert counts.tolist() == expected_counts.tolist()
    assert (drawn == before).all()


@quick
@given(columns)
def test_is_ascending_if_sorting_changes_nothing(drawn):
    assert is_ascending(drawn) == (np.sort(drawn) == drawn).all()


@quick
@given(columns)
def test_is_first_names_the_first_of_its_like(drawn):
    ordered = np.sort(drawn)
    assert np.flatnonzero(is_first(ordered)).tolist() == np.unique(ordered, return_index=True)[1].tolist()


@quick
@given(columns)
def test_sorting_is_the_stable_order(drawn):
    assert sorting(drawn).tolist() == np.argsort(drawn, kind="stable").tolist()


@quick
@given(st.lists(st.one_of(st.integers(0, 13), st.integers(0, 1 << 17)) | st.just((1 << 16) - 1)))
def test_sorting_small_is_the_stable_order_also_of_larger_numbers(drawn):
    numbers = np.array(drawn, dtype=np.int64)
    assert sorting_small(numbers).tolist() == np.argsort(numbers, kind="stable").tolist()
