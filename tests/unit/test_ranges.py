"""Arrays of ranges against sets of numbers."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ksmemu.ksmd.ranges import contains, expand, from_core, union
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
