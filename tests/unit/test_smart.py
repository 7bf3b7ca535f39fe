"""Smart scan: which visits are skipped."""

import numpy as np
import pytest

from ksmemu.ksmd import smart
from ksmemu.ksmd.rmap import Rmap, State

PAGES = np.array([3, 5, 600])


@pytest.fixture
def rmap():
    books = Rmap(1009)
    books.track(PAGES, State.UNSTABLE)
    return books


def test_a_page_that_never_merges_is_looked_at_in_the_kernels_scans(rmap):
    looked_at = [scan for scan in range(1, 70) if not smart.skip(rmap, PAGES).any()]
    assert looked_at == [1, 2, 3, 4, 6, 9, 14, 23, 32, 41, 50, 59, 68]


def test_at_most_eight_visits_are_skipped_in_a_row_however_old_a_page_is(rmap):
    visits = [not smart.skip(rmap, PAGES).any() for _ in range(1000)]
    assert visits[500:].count(True) == pytest.approx(500 / 9, abs=1)
    assert rmap.age[PAGES].tolist() == [255] * 3


def test_a_merged_page_is_always_looked_at_and_does_not_age(rmap):
    rmap.move(PAGES[:1], State.MERGED)
    for _ in range(50):
        assert not smart.skip(rmap, PAGES)[0]
    assert rmap.age[PAGES[0]] == 0


def test_a_page_that_was_gone_is_young_again(rmap):
    for _ in range(50):
        smart.skip(rmap, PAGES)
    rmap.move(PAGES, State.ABSENT)
    rmap.track(PAGES, State.NEW)
    assert not any(smart.skip(rmap, PAGES).any() for _ in range(4))
