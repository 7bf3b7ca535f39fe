"""The pool against a dict from frame to references; its memory as the kernel counts it."""

import contextlib
import os
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ksmemu.ksmd.pool import Pool
from ksmemu.ksmd.rmap import NO_FRAME
from tests.support.examples import few

PAGE = 4096


@contextlib.contextmanager
def pool_of(nr_frames):
    pool = Pool()
    pool.nr_frames = nr_frames
    try:
        yield pool
    finally:
        pool.close()


@contextlib.contextmanager
def source(pages):
    fd = os.memfd_create("own")
    os.pwrite(fd, b"".join(pages), 0)
    try:
        yield fd
    finally:
        os.close(fd)


def frames_of(refs):
    return np.array(sorted(refs.elements()), dtype=np.int64)


@few
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(1, 11), st.integers(1, 5)),
            st.tuples(st.just("give"), st.integers(0, 30), st.integers(1, 7)),
        ),
        max_size=23,
    )
)
def test_references_are_those_of_a_recount(steps):
    refs = Counter()
    with pool_of(47) as pool:
        for step, number, times in steps:
            if step == "take":
                frames = pool.allocate(number)
                assert not any(refs[frame] for frame in frames.tolist())
                assert len(set(frames.tolist())) == len(frames)
                assert len(frames) == min(number, 47 - len(+refs))
                entries = np.repeat(frames, times)
                pool.acquire(entries)
                pool.settle(entries)
                refs.update(entries.tolist())
            else:
                entries = frames_of(refs)[number : number + times]
                pool.release(entries, entries)
                refs.subtract(entries.tolist())
            assert {f: int(pool.refs[f]) for f in range(47) if pool.refs[f]} == +refs
            assert (pool.nr_used, pool.nr_refs) == (len(+refs), refs.total())
        assert not pool.pending[:47].any()


def test_frames_hold_what_was_filled_and_are_given_back():
    contents = [os.urandom(PAGE) for _ in range(23)]
    with pool_of(101) as pool, source(contents) as own:
        frames = pool.allocate(23)
        pages = np.arange(23)
        prints = pool.fill(own, pages, frames, seed=7)
        pool.acquire(np.repeat(frames, 2))
        assert len(set(prints.tolist())) == 23
        assert pool.blocks_bytes() == 23 * PAGE
        shown = [os.pread(pool.read_only(), PAGE, int(frame) * PAGE) for frame in frames]
        assert shown == contents
        pool.release(frames, frames)
        assert pool.blocks_bytes() == 23 * PAGE
        pool.release(frames, frames)
        assert pool.blocks_bytes() == 0


def test_frames_allocated_together_lie_side_by_side():
    with pool_of(1009) as pool:
        first = pool.allocate(97)
        pool.acquire(first)
        second = pool.allocate(89)
        assert np.diff(first).tolist() == [1] * 96
        assert np.diff(second).tolist() == [1] * 88


def test_the_zero_page_is_no_frame_to_release():
    with pool_of(7) as pool:
        frames = pool.allocate(3)
        pool.acquire(frames)
        pool.release(np.array([NO_FRAME, frames[0], NO_FRAME]), np.arange(3))
        assert (pool.nr_used, pool.nr_refs) == (2, 2)


def test_what_workers_get_cannot_write_and_cannot_be_opened_again_to_write():
    with pool_of(7) as pool:
        with pytest.raises(OSError, match="descriptor"):
            os.pwrite(pool.read_only(), b"x", 0)
        assert os.fstat(pool.read_only()).st_mode & 0o777 == 0
