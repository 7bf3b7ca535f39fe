"""Smart scan: which visits are skipped."""

import numpy as np
import pytest

from ksmemu.ksmd import smart
from ksmemu.ksmd.rmap import Rmap, State
from ksmemu.ksmd.stretch import Stretch

PAGES = np.array([3, 5, 600])


@pytest.fixture(params=[PAGES, slice(2, 611)], ids=["scattered", "slice"])
def stretch(request):
    return Stretch(request.param)


@pytest.fixture
def rmap():
    books = Rmap(1009)
    books.track(PAGES, State.UNSTABLE)
    return books


def skipped(rmap, stretch):
    """Return the pages that a visit passes over."""
    return stretch.pages(smart.skip(rmap, stretch)).tolist()


def test_a_page_that_never_merges_is_looked_at_in_the_kernels_scans(rmap, stretch):
    visits = [skipped(rmap, stretch) for _ in range(1, 70)]
    assert {*map(tuple, visits)} == {(), tuple(PAGES)}
    looked_at = [scan for scan, passed_over in enumerate(visits, 1) if not passed_over]
    assert looked_at == [1, 2, 3, 4, 6, 9, 14, 23, 32, 41, 50, 59, 68]


def test_at_most_eight_visits_are_skipped_in_a_row_however_old_a_page_is(rmap, stretch):
    visits = [not skipped(rmap, stretch) for _ in range(1000)]
    assert visits[500:].count(True) == pytest.approx(500 / 9, abs=1)
    assert rmap.age[PAGES].tolist() == [255] * 3


def test_a_merged_page_is_always_looked_at_and_does_not_age(rmap, stretch):
    rmap.move(PAGES[:1], State.MERGED)
    for _ in range(50):
        assert PAGES[0] not in skipped(rmap, stretch)
    assert rmap.age[PAGES].tolist() == [0, 50, 50]


def test_where_there_is_no_page_nothing_grows_old(rmap, stretch):
    for _ in range(50):
        skipped(rmap, stretch)
    assert np.flatnonzero(rmap.age).tolist() == np.flatnonzero(rmap.skips).tolist() == PAGES.tolist()


def test_a_page_that_was_gone_is_young_again(rmap, stretch):
    for _ in range(50):
        skipped(rmap, stretch)
    rmap.move(PAGES, State.ABSENT)
    rmap.track(PAGES, State.NEW)
    assert not any(skipped(rmap, stretch) for _ in range(4))
