"""Ladders on a real pool: which frames are shown, and that nothing of them stays."""

import contextlib
import os

import numpy as np

from ksmemu.ksmd.ladder import RUNGS
from ksmemu.ksmd.pool import Pool
from ksmemu.ksmd.runs import lay_out
from ksmemu.ksmd.stable import Stable
from ksmemu.units import PAGE_SIZE


@contextlib.contextmanager
def a_pool_with_one_content(nr_dups, content=b"x"):
    """Yield (pool, dups): frames of one content, one reference each."""
    pool = Pool()
    own = os.memfd_create("own")
    try:
        os.write(own, content * PAGE_SIZE)
        dups = pool.allocate(nr_dups)
        pages = np.zeros(nr_dups, dtype=np.int64)
        pool.fingerprint[dups] = pool.fill(own, pages, dups, seed=7)
        pool.acquire(dups)
        yield pool, dups
    finally:
        os.close(own)
        pool.close()


def shown(pool, pages, frames):
    pool.ladders.raise_for(pages, frames)
    return pool.ladders.shown(pages, frames)


def test_neighbours_show_one_rung_after_the_other_whatever_their_dup():
    with a_pool_with_one_content(3) as (pool, dups):
        pages = np.arange(1001, 1001 + 997)
        frames = dups[np.arange(997) % 3]
        found = shown(pool, pages, frames)
        assert len(lay_out(pages, found.astype(np.uint64))) <= 997 // RUNGS + 2
        assert pool.ladders.nr_frames == RUNGS


def test_a_second_piece_shows_the_same_ladder():
    with a_pool_with_one_content(2) as (pool, dups):
        first = shown(pool, np.arange(0, 500), np.full(500, dups[0]))
        second = shown(pool, np.arange(500, 1000), np.full(500, dups[1]))
        assert set(first.tolist()) == set(second.tolist())
        assert (np.diff(np.concatenate([first, second])) == 1).mean() > 0.98
        assert pool.ladders.nr_frames == RUNGS


def test_a_few_equal_neighbours_are_not_worth_a_ladder():
    with a_pool_with_one_content(1) as (pool, dups):
        assert shown(pool, np.arange(31), np.full(31, dups[0])).tolist() == dups.tolist() * 31
        assert pool.ladders.nr_frames == 0


def test_equal_pages_apart_from_each_other_need_no_ladder():
    with a_pool_with_one_content(1) as (pool, dups):
        shown(pool, np.arange(0, 2000, 2), np.full(1000, dups[0]))
        assert pool.ladders.nr_frames == 0


def test_rungs_are_no_frames_that_were_allocated_and_wait_to_be_used():
    with a_pool_with_one_content(1) as (pool, dups):
        waiting = pool.allocate(23)
        found = shown(pool, np.arange(499), np.full(499, dups[0]))
        assert not set(found.tolist()) & {*waiting.tolist(), *dups.tolist()}
        later = pool.allocate(499)
        assert not set(found.tolist()) & set(later.tolist())
        pool.discard(np.sort(np.concatenate([waiting, later])))


def test_a_ladder_goes_with_the_last_dup_of_its_content():
    with a_pool_with_one_content(2) as (pool, dups):
        shown(pool, np.arange(1000), dups[np.arange(1000) % 2])
        pool.settle(dups)
        pool.release(dups[:1], dups[:1])
        assert pool.ladders.nr_frames == RUNGS
        assert pool.blocks_bytes() == (RUNGS + 1) * PAGE_SIZE
        pool.release(dups[1:], dups[1:])
        assert (pool.ladders.nr_frames, pool.blocks_bytes(), pool.nr_used) == (0, 0, 0)


def test_a_rung_is_not_found_by_what_its_frame_held_before():
    """Pages that matched it would be ordered there, and refused, for ever."""
    with a_pool_with_one_content(RUNGS + 1) as (pool, dups):
        stable, former = Stable(pool), dups[:RUNGS]
        stable.add(pool.fingerprint[former], former)
        pool.release(former, np.zeros(RUNGS, np.uint64))
        pool.fingerprint[dups[RUNGS:]] += np.uint64(1)  # what is left is another content
        shown(pool, np.arange(RUNGS), np.full(RUNGS, dups[RUNGS]))
        assert pool.refs[former].all(), "rungs where the former frames were"
        assert not stable.holds(pool.fingerprint[dups[RUNGS:]] - np.uint64(1)).any()
