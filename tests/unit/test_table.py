"""The table from fingerprints to values against a set of pairs."""

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ksmemu.ksmd import table
from ksmemu.ksmd.table import FingerprintTable
from tests.support.examples import quick

pairs = st.tuples(st.integers(0, 11), st.integers(0, 13))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(pairs, min_size=1, max_size=17, unique=True)),
        st.tuples(st.just("kill"), st.lists(pairs, max_size=7)),
        st.tuples(st.just("clear"), st.just([])),
    ),
    max_size=17,
)


class Model:
    """What should be found: the pairs that were added and not killed since."""

    def __init__(self):
        self.living = set()
        self.table = FingerprintTable(self._is_alive)

    def _is_alive(self, fingerprints, values):
        both = zip(fingerprints.tolist(), values.tolist(), strict=True)
        return np.array([pair in self.living for pair in both], dtype=np.bool_)

    def obey(self, step, entries):
        if step == "kill":
            self.living -= set(entries)
        elif step == "clear":
            self.living.clear()
            self.table.clear()
        else:
            self.living |= set(entries)
            columns = np.array(entries, dtype=np.uint64).reshape(-1, 2)
            self.table.add(columns[:, 0], columns[:, 1])


@pytest.mark.parametrize("recent_min", [3, 4096])
@quick
@given(steps=steps, wanted=st.lists(st.integers(0, 12), max_size=9))
def test_find_returns_the_living_values_of_each_fingerprint_once(recent_min, steps, wanted):
    model = Model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_RECENT_MIN", recent_min)
        for step, entries in steps:
            model.obey(step, entries)
        index, values = model.table.find(np.array(wanted, dtype=np.uint64))
    assert list(zip(index.tolist(), values.tolist(), strict=True)) == sorted(
        (i, value)
        for i, fingerprint in enumerate(wanted)
        for living, value in model.living
        if living == fingerprint
    )


@pytest.mark.parametrize("recent_min", [3, 4096])
@quick
@given(steps=steps)
def test_repeated_returns_all_entries_of_fingerprints_that_have_several(recent_min, steps):
    """Dead entries may be among them, but none that was never added since the table was cleared."""
    model, added = Model(), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_RECENT_MIN", recent_min)
        for step, entries in steps:
            model.obey(step, entries)
            added = set() if step == "clear" else added | set(entries if step == "add" else [])
        found = list(zip(*(column.tolist() for column in model.table.repeated()), strict=True))
    living = Counter(fingerprint for fingerprint, _ in model.living)
    assert found == sorted(set(found))
    assert {pair for pair in model.living if living[pair[0]] > 1} <= set(found) <= added
    assert 1 not in Counter(fingerprint for fingerprint, _ in found).values()


def test_the_dead_are_dropped_in_bulk():
    model = Model()
    for start in range(0, 30_011, 977):
        model.obey("add", [(n, n) for n in range(start, start + 977)])
        model.living.clear()
    assert len(model.table._base[0]) + len(model.table._recent[0]) < 3 * table._RECENT_MIN
