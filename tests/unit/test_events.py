"""Lines of JSON for what the books tell, against a dict from page to frame, read back by the replay."""

import errno
import json

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ksmemu.ksmd.events import Events, Trace
from ksmemu.ksmd.mm_slot import MmSlot
from tests.support.examples import few
from tests.support.replay import NO_FRAME, replay

NR_PAGES, NR_FRAMES, PID, START = 13, 5, 1009, 0x7F0000003000

frames = st.one_of(st.integers(0, NR_FRAMES - 1), st.just(NO_FRAME))
errors = st.sampled_from([0, 0, 0, errno.EAGAIN, errno.ENOMEM])
orders = st.dictionaries(st.integers(0, NR_PAGES - 1), st.tuples(frames, errors), min_size=1)
departures = st.sets(st.integers(0, NR_PAGES - 1))


def columns(order):
    pages = sorted(order)
    of_pages = [order[page] for page in pages]
    return (
        np.array(pages, dtype=np.int64),
        np.array([frame for frame, _ in of_pages], dtype=np.int64),
        np.array([error for _, error in of_pages], dtype=np.int32),
    )


def started(folder, shown=(), number=0):
    trace = Trace(folder / "trace")
    trace.start()
    events = Events(trace, number, NR_FRAMES)
    events.start(np.array(shown, dtype=np.int64))
    return trace, events, MmSlot(1, START, NR_PAGES, -1, -1)


def written(folder):
    return [json.loads(line) for line in (folder / "trace").read_text().splitlines()]


@few
@given(st.lists(st.tuples(orders, departures), max_size=7))
def test_a_replay_of_any_orders_and_departures_is_what_they_were(tmp_path_factory, acts):
    folder = tmp_path_factory.mktemp("events")
    trace, events, slot = started(folder)
    events.enter(slot, PID)
    trace.start_scan(0, 0)
    model = {}
    for wanted, leaving in acts:
        order = {page: what for page, what in wanted.items() if page not in model}
        events.merge(slot, *columns(order))
        model |= {page: frame for page, (frame, error) in order.items() if not error}
        left = {page: (model.pop(page), 0) for page in sorted(leaving & model.keys())}
        events.remove(slot, *columns(left)[:2])
    trace.stop()
    told = replay(written(folder))
    assert told.shows == {(slot.id, page): frame for page, frame in model.items()}
    assert set(told.sharers) == set(model.values()) - {NO_FRAME}


def test_the_first_page_that_is_not_refused_makes_a_ksm_page(tmp_path):
    trace, events, slot = started(tmp_path)
    events.merge(slot, *columns({2: (3, errno.EAGAIN), 5: (3, 0), 7: (3, errno.ENOMEM), 11: (3, 0)}))
    trace.stop()
    told = [(e["rmap_item"], e["ksm_page"], e["err"]) for e in written(tmp_path)]
    assert told == [
        (2, False, -errno.EAGAIN),
        (5, False, 0),
        (7, True, -errno.ENOMEM),
        (11, True, 0),
    ]


def test_what_is_shown_already_is_a_ksm_page(tmp_path):
    trace, events, slot = started(tmp_path, shown=[3, 3, NO_FRAME])
    events.merge(slot, *columns({2: (3, 0)}))
    for page in (2, 5, 7):
        events.remove(slot, *columns({page: (3, 0)})[:2])
    trace.stop()
    names = [event["event"] for event in written(tmp_path)]
    assert written(tmp_path)[0]["ksm_page"] is True
    assert names[1:] == ["ksm_remove_rmap_item"] * 3 + ["ksm_remove_ksm_page"]
