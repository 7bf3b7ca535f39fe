"""Few pages, one step at a time: merged, changed, changed back, discarded, gone."""

import pytest

pytestmark = pytest.mark.root
NR_PAGES = 13
TWINS = [1, 2, 3, 4, 5]


def test_twins(agree):
    def workload(engine):
        one, other = engine.member(NR_PAGES), engine.member(NR_PAGES)
        one.put(0, TWINS)
        other.put(3, TWINS)
        other.put(0, [7])
        engine.rest()
        assert other.differing(3, TWINS) == []

    agree(workload)
