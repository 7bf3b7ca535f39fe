"""What a harvest makes of a page: every state, written or not, skipped or not."""

import itertools

import numpy as np
import pytest

from ksmemu.ksmd.harvest import harvest
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.rmap import CHUNK, State
from ksmemu.ksmd.stretch import Stretch
from ksmemu.policy import Policy

STATES = [state for state in State if state is not State.ABSENT]
CASES = list(itertools.product(STATES, [False, True], [False, True]))
FIRST = 7
LOOKED_AT_ANEW = {State.SETTLED, State.SKIPPED, State.UNSTABLE}


class Told:
    """A tracker that knows which pages were written."""

    def __init__(self, written):
        self._written = written

    def written(self, slot, stretch):
        return np.isin(stretch.pages(~stretch.none()), self._written)


def after(state, written, skipped):
    """Return what becomes of a page, page by page as the kernel's scan goes."""
    if state in {State.NEW, State.UNSEEN}:
        return state if skipped else State.WRITTEN
    if written and (state in LOOKED_AT_ANEW or state is State.WRITTEN):
        return State.UNSEEN if skipped else State.WRITTEN
    if skipped:
        return State.SKIPPED if state is State.UNSTABLE else state
    return State.UNSTABLE if state is State.SKIPPED else state


@pytest.fixture
def slot():
    """A space with a page for each case, and holes around them."""
    slot = MmSlot(3, 0, CHUNK, -1, -1)
    pages = np.arange(len(CASES)) + FIRST
    slot.rmap.track(pages, State.NEW)
    for state in STATES:
        slot.rmap.move(pages[[case[0] is state for case in CASES]], state)
    return slot


@pytest.mark.parametrize(
    "index",
    [slice(0, CHUNK), np.arange(len(CASES)) + FIRST],
    ids=["slice", "scattered"],
)
def test_a_page_goes_where_its_state_and_its_visit_say(slot, index):
    stretch = Stretch(index)
    pages = np.arange(len(CASES)) + FIRST
    written = pages[[case[1] for case in CASES]]
    skipped = np.isin(stretch.pages(~stretch.none()), pages[[case[2] for case in CASES]])
    settled = harvest(Told(written), slot, stretch, skipped, Policy())
    expected = [after(*case) for case in CASES]
    assert slot.rmap.state[pages].tolist() == expected
    assert np.count_nonzero(slot.rmap.state) == len(CASES)
    assert slot.rmap.counts[1:].tolist() == [expected.count(state) for state in STATES]
    assert settled.tolist() == [CASES.index((State.WRITTEN, False, False)) + FIRST]
