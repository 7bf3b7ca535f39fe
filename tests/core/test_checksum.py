"""Step 2: fingerprints against another implementation, frames against the bytes they were made of."""

import contextlib
import errno
import fcntl
import os

import hypothesis.strategies as st
import numpy as np
import pytest
import xxhash
from hypothesis import given

from ksmemu import _core
from tests.support.examples import few
from tests.support.pages import content
from tests.support.procmaps import PAGE

NR_PAGES = 89
F_SEAL_WRITE = 8


@contextlib.contextmanager
def filled(nr_pages=NR_PAGES):
    """Yield an object of which every third page is a hole."""
    fd = os.memfd_create("filled", os.MFD_ALLOW_SEALING)
    os.truncate(fd, nr_pages * PAGE)
    for page in range(nr_pages):
        if page % 3:
            os.pwrite(fd, content(page), page * PAGE)
    try:
        yield fd
    finally:
        os.close(fd)


def expected(page):
    return content(page) if page % 3 else bytes(PAGE)


def column(numbers):
    return np.array(numbers, dtype=np.uint64)


@few
@given(st.lists(st.integers(0, NR_PAGES - 1), max_size=101), st.integers(0, 2**64 - 1))
def test_fingerprints_are_seeded_xxh3(pages, seed):
    found = np.zeros(len(pages), dtype=np.uint64)
    with filled() as fd:
        _core.checksum_pages(fd, column(pages), seed, found)
    assert found.tolist() == [xxhash.xxh3_64_intdigest(expected(page), seed) for page in pages]


def test_a_long_row_is_fingerprinted_page_by_page():
    found = np.zeros(NR_PAGES, dtype=np.uint64)
    with filled() as fd:
        _core.checksum_pages(fd, column(range(NR_PAGES)), 7, found)
    assert found.tolist() == [xxhash.xxh3_64_intdigest(expected(n), 7) for n in range(NR_PAGES)]


def test_reading_allocates_no_page():
    with filled() as fd:
        before = os.fstat(fd).st_blocks
        _core.checksum_pages(fd, column(range(NR_PAGES)), 7, np.zeros(NR_PAGES, np.uint64))
        assert os.fstat(fd).st_blocks == before


def test_an_object_that_was_shrunk_is_an_error_and_no_signal():
    with filled() as fd:
        os.truncate(fd, 13 * PAGE)
        with pytest.raises(OSError, match="pread") as caught:
            _core.checksum_pages(fd, column([11, 12, 13]), 7, np.zeros(3, np.uint64))
    assert caught.value.errno == errno.ENODATA


@pytest.mark.parametrize("length", [0, 2, 4])
def test_columns_of_different_length_are_refused(length):
    other = np.zeros(length, np.uint64)
    with filled() as fd:
        for call in (
            lambda: _core.checksum_pages(fd, column([1, 2, 3]), 7, other),
            lambda: _core.fill_frames(fd, column([1, 2, 3]), fd, column([4, 5, 6]), 7, other),
            lambda: _core.fill_frames(fd, column([1, 2, 3]), fd, other, 7, column([4, 5, 6])),
        ):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EINVAL


@few
@given(st.permutations(range(NR_PAGES)), st.permutations(range(NR_PAGES)), st.integers(0, NR_PAGES))
def test_frames_hold_the_pages_and_their_fingerprints(pages, frames, nr):
    pages, frames = pages[:nr], frames[:nr]
    found = np.zeros(nr, dtype=np.uint64)
    with filled() as fd, filled(0) as pool:
        _core.fill_frames(fd, column(pages), pool, column(frames), 11, found)
        held = [os.pread(pool, PAGE, frame * PAGE) for frame in frames]
    assert held == [expected(page) for page in pages]
    assert found.tolist() == [xxhash.xxh3_64_intdigest(expected(page), 11) for page in pages]


def test_a_long_row_fills_frames_in_a_row():
    found = np.zeros(NR_PAGES, dtype=np.uint64)
    numbers = column(range(NR_PAGES))
    with filled() as fd, filled(0) as pool:
        _core.fill_frames(fd, numbers, pool, numbers + np.uint64(7), 11, found)
        assert os.pread(pool, NR_PAGES * PAGE, 7 * PAGE) == os.pread(fd, NR_PAGES * PAGE, 0)


def test_a_pool_that_cannot_be_written_is_an_error():
    with filled() as fd, filled(3) as pool:
        fcntl.fcntl(pool, fcntl.F_ADD_SEALS, F_SEAL_WRITE)
        with pytest.raises(PermissionError, match="pwrite"):
            _core.fill_frames(fd, column([1]), pool, column([1]), 7, np.zeros(1, np.uint64))


def test_punched_pages_read_as_zeros_and_cost_nothing():
    with filled() as fd:
        before = os.fstat(fd).st_blocks
        _core.punch(fd, 1 * PAGE, 2 * PAGE)
        assert os.fstat(fd).st_blocks == before - 2 * PAGE // 512
        assert os.fstat(fd).st_size == NR_PAGES * PAGE
        assert os.pread(fd, 4 * PAGE, 0) == bytes(4 * PAGE)
        assert os.pread(fd, PAGE, 4 * PAGE) == content(4)
