"""Masks of a stretch, by slice and by array, against sets of numbers."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ksmemu.ksmd.stretch import Stretch
from tests.support.examples import quick

START, END = 1009, 1103

pages = st.sets(st.integers(START, END - 1))
gaps = st.integers(0, 13)


def column(numbers):
    return np.array(sorted(numbers), dtype=np.int64)


both = pytest.mark.parametrize(
    "stretch",
    [Stretch(slice(START, END)), Stretch(np.arange(START, END))],
    ids=["slice", "scattered"],
)


def mask(numbers):
    return np.isin(np.arange(START, END), column(numbers))


@both
@quick
@given(numbers=pages)
def test_pages_are_those_of_the_mask(stretch, numbers):
    assert stretch.pages(mask(numbers)).tolist() == sorted(numbers)


@both
@quick
@given(numbers=pages, gap=gaps)
def test_ranges_leave_out_every_hole_of_more_than_the_gap_and_no_other(stretch, numbers, gap):
    expected = []
    for number in sorted(numbers):
        if expected and number - expected[-1][1] <= gap:
            expected[-1][1] = number + 1
        else:
            expected.append([number, number + 1])
    assert stretch.ranges(mask(numbers), gap).tolist() == expected


@both
@quick
@given(bounds=st.sets(st.integers(START, END)), touching=st.booleans())
def test_within_names_what_the_ranges_hold(stretch, bounds, touching):
    ends = sorted(bounds)
    ranges = list(itertools.pairwise(ends))[:: 1 if touching else 2]
    expected = [any(low <= page < high for low, high in ranges) for page in range(START, END)]
    assert stretch.within(np.array(ranges, dtype=np.int64).reshape(-1, 2)).tolist() == expected


@both
@quick
@given(numbers=pages)
def test_put_changes_what_the_mask_names_and_nothing_else(stretch, numbers):
    books = np.zeros(END + 7, dtype=np.uint8)
    stretch.put(books, mask(numbers), 5)
    assert np.flatnonzero(books == 5).tolist() == sorted(numbers)
    assert np.count_nonzero(books) == len(numbers)
