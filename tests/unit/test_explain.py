"""Explanations of made-up books against a dict from page to reason, and how they are shown."""

import contextlib
import itertools
import os
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ksmemu.cli.explain import _lines
from ksmemu.control.reasons import SILENT, STOPPED, TEXTS, Reason
from ksmemu.domain_key import Key
from ksmemu.ksmd.checksum import new_threads
from ksmemu.ksmd.domain import Domain, Rules
from ksmemu.ksmd.events import Trace
from ksmemu.ksmd.explain import explain, partners
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import places
from ksmemu.ksmd.rmap import Obstacle, State
from ksmemu.policy import Policy
from tests.support.examples import quick

NR_PAGES = 1031
NOTHING = np.empty(0, dtype=np.int64)


@contextlib.contextmanager
def books(*slots, limit=3, across_nodes=True):
    """Yield a domain with spaces of these nodes."""
    rules = Rules(max_page_sharing=limit, merge_across_nodes=across_nodes)
    threads = new_threads()
    domain = Domain(Key(0), 0, rules, Trace(Path("no trace")), threads, Policy())
    for number, node in enumerate(slots, 1):
        domain.slots[number] = MmSlot(number, 0, NR_PAGES, os.memfd_create("own"), -1, node)
        domain.slots[number].advised.put(0, NR_PAGES, True)
    yield domain
    for slot in domain.slots.values():
        slot.close()
    domain.close()
    threads.shutdown()


def let_wait(domain, slot, page, fingerprint):
    """A page waits as unique; its fingerprint is one of a content, on whatever node."""
    pages = np.array([page])
    slot.rmap.track(pages, State.SETTLED)
    prints = np.array([fingerprint], dtype=np.uint64) ^ domain.marks_of(slot, pages)
    domain.unstable.add(prints, places(slot.id, pages))


def let_merge(domain, slot, pages, fingerprint):
    """Pages share a frame of a content."""
    pages, frames = np.array(pages), domain.pool.allocate(1)
    slot.rmap.track(pages, State.MERGED)
    slot.rmap.tag[pages] = frames[0]
    domain.pool.acquire(np.repeat(frames, len(pages)))
    domain.stable.add(np.array([fingerprint], dtype=np.uint64) ^ domain.marks_of(slot, pages[:1]), frames)


def explained(domain, slot, held=NOTHING, *, refuses=False):
    rows = explain(
        domain, slot, partners(domain, ()), np.array(sorted(held), dtype=np.int64), refuses=refuses
    )
    return [(int(row["start"]), int(row["end"]), Reason(row["reason"]), int(row["pages"])) for row in rows]


def reason_of(domain, slot, page):
    return next(reason for start, end, reason, _ in explained(domain, slot) if start <= page < end)


BY_STATE = {
    State.NEW: Reason.NEW,
    State.WRITTEN: Reason.VOLATILE,
    State.SETTLED: Reason.LOOKED_AT,
    State.SKIPPED: Reason.UNIQUE,
    State.UNSTABLE: Reason.UNIQUE,
    State.ORDERED: Reason.BEING_MERGED,
    State.MERGED: Reason.MERGED,
    State.ZERO: Reason.ZERO_PAGE,
    State.REHOMING: Reason.REHOMING,
    State.LEFT: Reason.LEFT,
}
page = st.one_of(st.integers(0, NR_PAGES - 1), st.integers(507, 521))
part = st.tuples(page, st.integers(1, 97)).map(lambda pair: (pair[0], min(sum(pair), NR_PAGES)))


@quick
@given(
    st.lists(part, max_size=5),
    st.lists(part, max_size=5),
    st.lists(st.tuples(page, st.sampled_from(list(BY_STATE))), max_size=31),
    st.sets(page, max_size=31),
    st.booleans(),
)
def test_every_page_has_the_reason_of_its_books(advised, refused, states, held, refuses):
    nobody = Reason.REFUSED if refuses else Reason.NOT_ADVISED
    with books(0) as domain:
        slot, wanted = domain.slots[1], dict.fromkeys(range(NR_PAGES), nobody)
        slot.advised.put(0, NR_PAGES, None)
        for start, end in refused:
            slot.refused.put(start, end, True)
            wanted |= dict.fromkeys(range(start, end), Reason.REFUSED)
        for start, end in advised:
            slot.refused.put(start, end, None)
            slot.advised.put(start, end, True)
            wanted |= {n: Reason.NEW if n in held else Reason.NO_DATA for n in range(start, end)}
        tracked = {
            number: state for number, state in states if wanted[number] in {Reason.NEW, Reason.NO_DATA}
        }
        for number, state in tracked.items():
            slot.rmap.track(np.array([number]), state)
            wanted[number] = BY_STATE[state]
        _check(explained(domain, slot, held, refuses=refuses), wanted, held | tracked.keys())


def _check(rows, wanted, data):
    assert rows[0][0] == 0
    assert rows[-1][1] == NR_PAGES
    for before, after in itertools.pairwise(rows):
        assert before[1] == after[0]
        assert before[2] is not after[2]
    for start, end, reason, nr in rows:
        assert {wanted[number] for number in range(start, end)} == {reason}
        assert nr == len(data & set(range(start, end)))


@pytest.mark.parametrize(("sharers", "reason"), [(3, Reason.SHARING_LIMIT), (2, Reason.LOOKED_AT)])
def test_a_page_whose_content_has_frames_waits_for_their_being_full_only(sharers, reason):
    with books(0, limit=3) as domain:
        slot = domain.slots[1]
        let_wait(domain, slot, 7, 4711)
        let_wait(domain, slot, 9, 4712)
        let_merge(domain, slot, range(11, 11 + sharers), 4711)
        assert reason_of(domain, slot, 7) is reason
        assert reason_of(domain, slot, 9) is Reason.UNIQUE
        assert reason_of(domain, slot, 11) is Reason.MERGED


@pytest.mark.parametrize("across_nodes", [False, True])
def test_equal_pages_on_another_node_are_named_if_nodes_are_kept_apart(across_nodes):
    with books(0, 5, across_nodes=across_nodes) as domain:
        near, far = domain.slots.values()
        let_wait(domain, near, 7, 4711)
        let_wait(domain, far, 3, 4711)
        let_wait(domain, near, 9, 4712)
        let_merge(domain, far, [11, 12], 4712)
        let_wait(domain, near, 5, 4713)
        apart = {Reason.OTHER_NODE} if not across_nodes else {Reason.UNIQUE}
        assert {reason_of(domain, near, 7), reason_of(domain, far, 3)} == apart
        assert (reason_of(domain, near, 9) is Reason.OTHER_NODE) is not across_nodes
        assert reason_of(domain, near, 5) is Reason.UNIQUE


@pytest.mark.parametrize(
    ("why", "reason"), [(Obstacle.MAPPING_BUDGET, Reason.MAPPING_BUDGET), (Obstacle.NO_ROOM, Reason.NO_ROOM)]
)
def test_why_a_page_was_left_holds_until_it_is_written_or_matches_anew(why, reason):
    with books(0) as domain:
        slot = domain.slots[1]
        pages = np.arange(7, 11)
        slot.rmap.track(pages, State.SETTLED)
        slot.rmap.give_up(pages, why)
        assert {reason_of(domain, slot, number) for number in pages} == {reason}
        slot.rmap.move(pages, State.SETTLED)  # quiet again: it will be matched
        assert {reason_of(domain, slot, number) for number in pages} == {reason}
        slot.rmap.forget_obstacle(pages[:2])  # written
        slot.rmap.move(pages[3:], State.ORDERED)
        found = [reason_of(domain, slot, number) for number in pages]
        assert found == [Reason.LOOKED_AT] * 2 + [reason, Reason.BEING_MERGED]


def test_a_space_that_is_all_hole_is_one_row():
    with books(0) as domain:
        assert explained(domain, domain.slots[1]) == [(0, NR_PAGES, Reason.NO_DATA, 0)]


# ---- as text ---------------------------------------------------------------------------------------


def test_the_largest_figures_fit_the_screen():
    end = (1 << 47) - 4096
    rows = [[end - (1 << 46), end, reason, 1 << 34, 0] for reason in Reason]
    rows[Reason.MERGED][4] = 2**32 - 1
    worker = {
        "pid": 4_194_303,
        "domain": "65534-tenant_1234",
        "silent": "it was cut off",
        "totals": {reason.words: 1 << 34 for reason in Reason},
        "spaces": [{"start": 0, "end": end, "node": 0, "rows": rows}],
    }
    lines = list(_lines({"stopped": "run=0", "workers": [worker], "page": None}))
    assert max(map(len, lines)) <= 80
    page = {"address": end, "state": "UNSTABLE", "age": 255, "skips": 8, "sharers": 0, "compared": 0}
    page["dups"] = [2_147_483_647] * 4711
    lines = list(_lines({"stopped": None, "workers": [worker], "page": page}))
    assert max(map(len, lines)) <= 80


def test_every_reason_has_a_text_and_every_remedy_fits():
    assert TEXTS.keys() == set(Reason)
    assert all(text.meaning and text.meaning[0].islower() for text in TEXTS.values())
    assert all(len(remedy) <= 76 for remedy in (*STOPPED.values(), *SILENT.values()))
