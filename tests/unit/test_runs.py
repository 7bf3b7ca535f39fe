"""Laying claims out: no page is lost, named twice or moved."""

from itertools import pairwise

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ksmemu import wire
from ksmemu.ksmd import runs
from ksmemu.ksmd.rmap import Rmap, State
from tests.support.examples import quick

stretches = st.lists(
    st.tuples(
        st.integers(0, 7),  # pages between this stretch and the one before
        st.one_of(st.integers(1, 5), st.sampled_from([2047, 2048, 2049, 4096, 4097, 6151])),
        st.one_of(st.none(), st.integers(0, 50)),  # first frame; None: zeros
    ),
    min_size=1,
    max_size=13,
)


def columns(model):
    """Return pages and frames, page by page."""
    at, pages, frames = 0, [], []
    for gap, length, frame in model:
        at += gap
        pages += range(at, at + length)
        frames += [wire.FRAME_ZERO] * length if frame is None else range(frame, frame + length)
        at += length
    return np.array(pages, dtype=np.int64), np.array(frames, dtype=np.uint64)


def spread(laid):
    pages, frames = [], []
    for page, frame, nr, _ in laid.tolist():
        pages += range(page, page + nr)
        frames += [frame] * nr if frame == wire.FRAME_ZERO else range(frame, frame + nr)
    return pages, frames


@quick
@given(stretches)
def test_laying_out_keeps_every_page_its_frame_and_their_order(model):
    pages, frames = columns(model)
    assert spread(runs.lay_out(pages, frames)) == (pages.tolist(), frames.tolist())


def test_frame_0_does_not_continue_a_run_of_zeros():
    laid = runs.lay_out(*columns([(0, 3, None), (0, 2, 0)]))
    assert laid[["page", "frame", "nr_pages"]].tolist() == [(0, wire.FRAME_ZERO, 3), (3, 0, 2)]


@quick
@given(stretches)
def test_orders_hold_every_run_once_in_order_and_not_too_much(model):
    laid = runs.lay_out(*columns(model))
    parts = list(runs.orders(laid))
    assert (np.concatenate(parts) == laid).all()
    assert all(0 < part["nr_pages"].sum() <= wire.ORDER_MAX_PAGES for part in parts)


@quick
@given(stretches)
def test_neighbours_with_neighbouring_frames_are_one_run(model):
    laid = runs.lay_out(*columns(model))
    assert laid["nr_pages"].max() <= wire.ORDER_MAX_PAGES // 2
    for left, right in pairwise(laid.tolist()):
        end = left[0] + left[2]
        is_zero = left[1] == wire.FRAME_ZERO
        next_frame = left[1] if is_zero else left[1] + left[2]
        could_be_one = right[0] == end and right[1] == next_frame
        assert not could_be_one or left[2] == wire.ORDER_MAX_PAGES // 2


@quick
@given(stretches, st.sets(st.integers(0, 200)))
def test_a_run_is_joined_only_over_pages_that_are_own(model, merged):
    pages, frames = columns(model)
    laid = runs.lay_out(pages, frames)
    rmap = Rmap(int(pages[-1]) + 1)
    rmap.track(np.arange(rmap.nr_pages), State.WRITTEN)
    rmap.move(np.array([page for page in sorted(merged) if page < rmap.nr_pages], int), State.MERGED)
    rmap.move(pages, State.ORDERED)
    runs.join(laid, rmap)
    assert laid["join"][0] == 0
    for left, right in pairwise(laid.tolist()):
        between = rmap.state[left[0] + left[2] : right[0]]
        short = max(left[2], right[2]) <= runs._SHORT_PAGES
        near = short and len(between) <= runs._JOIN_PAGES
        assert right[3] == (near and (between == State.WRITTEN).all())


@quick
@given(stretches, st.integers(-1, 17))
def test_the_longest_runs_are_chosen(model, nr):
    laid = runs.lay_out(*columns(model))
    chosen = runs.longest(laid, nr)
    assert chosen.sum() == min(max(nr, 0), len(laid))
    if chosen.any() and not chosen.all():
        assert laid["nr_pages"][chosen].min() >= laid["nr_pages"][~chosen].max()
