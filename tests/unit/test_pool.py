"""The pool against a dict from frame to references; its memory as the kernel counts it."""

import contextlib
import os
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ksmemu import _core
from ksmemu.ksmd import holders
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
            assert pool.nr_single == list(refs.values()).count(1)
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
        given, _ = pool.give()
        shown = [os.pread(given, PAGE, int(frame) * PAGE) for frame in frames]
        os.close(given)
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
        given, _ = pool.give()
        with pytest.raises(OSError, match="descriptor"):
            os.pwrite(given, b"x", 0)
        assert os.fstat(given).st_mode & 0o777 == 0o444
        os.close(given)


# ---- of a ksmd that died -----------------------------------------------------------------------------


@contextlib.contextmanager
def adopted(contents):
    """A pool with the frames of another one that is gone: contents at 0, 2, 4 and so on."""
    with pool_of(101) as former, source(contents) as own:
        given, holder = former.give()
        frames = np.arange(len(contents)) * 2
        former.fill(own, np.arange(len(contents)), frames, seed=1)
    with pool_of(101) as pool:
        pool.adopt(given, seed=7)
        assert pool.is_same(given)
        pool.known.add(holder)
        yield pool
    assert os.fstat(given).st_mode & 0o777 == 0o444
    os.close(given)


def test_frames_of_a_pool_that_is_adopted_are_known_by_what_they_hold():
    contents = [os.urandom(PAGE) for _ in range(11)]
    with adopted(contents) as pool, source(contents) as own:
        frames = np.arange(11) * 2
        prints = np.empty(11, dtype=np.uint64)
        _core.checksum_pages(own, np.arange(11, dtype=np.uint64), 7, prints)
        assert pool.fingerprint[frames].tolist() == prints.tolist()
        assert pool.holds_data(frames)
        assert not pool.holds_data(frames + 1)


def test_an_orphan_is_in_nobodys_way_and_goes_in_the_end():
    with adopted([os.urandom(PAGE) for _ in range(11)]) as pool:
        pool.recognise(np.array([4, 4, 6]))
        assert (pool.nr_used, pool.nr_refs, pool.nr_orphans) == (2, 3, 9)
        assert not set(pool.allocate(60).tolist()) & set(range(0, 22, 2))
        assert pool.blocks_bytes() == 11 * PAGE
        pool.sweep()
        assert (pool.nr_orphans, pool.blocks_bytes()) == (0, 2 * PAGE)


def test_nothing_is_given_back_while_there_are_strangers():
    with adopted([os.urandom(PAGE) for _ in range(11)]) as pool:
        stranger, _ = pool.give()
        pool.recognise(np.array([4]))
        pool.sweep()
        pool.release(np.array([4]), np.array([0], dtype=np.uint64))
        assert (pool.nr_used, pool.nr_orphans, pool.blocks_bytes()) == (0, 11, 11 * PAGE)
        os.close(stranger)
        pool.sweep()
        assert (pool.nr_orphans, pool.blocks_bytes()) == (0, 0)


def test_the_kernel_knows_who_holds_a_pool():
    """A descriptor and its copies are one holder, as long as one of them is left."""
    with pool_of(101) as pool:
        given = [pool.give() for _ in range(7)]
        files, names = zip(*given, strict=True)
        assert holders.living(files[3]) == {*names} - {names[3]}
        assert [holders.is_anothers(files[0], name) for name in names] == [False] + 6 * [True]
        pool.known.update(names[1:])
        assert pool.has_strangers()
        copy = os.dup(files[0])
        os.close(files[0])
        assert pool.has_strangers()
        os.close(copy)
        assert not pool.has_strangers()
        for file in files[1:]:
            os.close(file)
