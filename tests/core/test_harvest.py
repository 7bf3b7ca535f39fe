"""Step 1 on real memory: what was written, by whom ever, is named once."""

import os
import socket
import tempfile

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ksmemu import _core
from tests.support.children import in_child
from tests.support.examples import few
from tests.support.joined import ZERO, joined
from tests.support.pages import content
from tests.support.procmaps import PAGE


@in_child
def test_written_pages_are_named_once():
    with joined() as space:
        space.harvest()
        for page in (3, 7, 8, 22):
            space.write(page, b"x")
        assert space.harvest() == [3, 7, 8, 22]
        assert space.harvest() == []


@in_child
def test_a_harvest_arms_what_it_names_again():
    with joined() as space:
        for turn in range(5):
            space.write(11, b"%d" % turn)
            assert 11 in space.harvest()
            assert space.harvest() == []


@in_child
def test_adopted_pages_are_quiet_until_they_are_written():
    with joined(advised=False) as space:
        space.map()
        for page in (2, 3, 19):
            space.write(page, content(page))
        space.advise()
        space.harvest()
        assert space.harvest() == []
        space.write(19, b"x")
        assert space.harvest() == [19]


@in_child
def test_a_page_that_is_read_is_not_named():
    with joined() as space:
        space.write(5, content(5))
        space.harvest()
        assert space.read(5) == content(5)
        assert space.harvest() == []


def by_readinto(view):
    with tempfile.TemporaryFile() as file:
        file.write(b"y" * 1001)
        file.seek(0)
        assert file.raw.readinto(view) == 1001


def by_recv_into(view):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"y" * 997)
        assert ours.recv_into(view) == 997


def by_preadv(view):
    fd = os.memfd_create("source")
    os.write(fd, b"y" * 13)
    assert os.preadv(fd, [view], 0) == 13
    os.close(fd)


@pytest.mark.parametrize("write", [by_readinto, by_recv_into, by_preadv])
@in_child
def test_a_write_by_a_system_call_is_named(write):
    with joined() as space:
        space.write(13, content(13))
        space.harvest()
        write(space.view(13))
        assert space.harvest() == [13]
        assert space.read(13)[:3] == b"yyy"


@in_child
def test_harvesting_holes_allocates_nothing():
    with joined(nr_pages=10_007) as space:
        for _ in range(3):
            space.harvest()
        assert space.blocks_bytes() == 0
        space.write(5003, b"x")
        assert 5003 in space.harvest()
        assert space.blocks_bytes() == PAGE


@in_child
def test_many_ranges_are_named_one_by_one():
    with joined(nr_pages=10_007) as space:
        space.harvest()
        for page in range(0, 10_007, 2):
            space.write(page, b"x")
        assert space.harvest() == list(range(0, 10_007, 2))
        assert space.harvest() == []


@in_child
def test_merged_pages_are_passed_over():
    with joined() as space:
        space.write(7, content(1))
        space.fill_frame(3, content(1))
        assert space.merge((7, 3, 1)) == {7: 0}
        space.harvest()
        space.write(7, b"x")
        assert space.harvest() == []
        assert space.broken(7, 8) == [7]


@in_child
def test_private_pages_are_copies_and_not_the_zero_page():
    with joined() as space:
        for page in (3, 4, 5):
            space.write(page, content(page))
            space.fill_frame(page, content(page))
        space.write(11, bytes(PAGE))
        space.write(12, bytes(PAGE))
        assert set(space.merge((3, 3, 3), (11, ZERO, 2)).values()) == {0}
        for page in (3, 4, 5, 11, 12):
            space.read(page)
        assert space.broken(3, 6) == space.broken(11, 13) == []
        space.write(4, b"x")
        space.write(12, b"x")
        assert space.broken(3, 6) == [4]
        assert space.broken(11, 13) == [12]


@in_child
def test_a_pagemap_of_a_process_that_is_gone_says_so():
    said, to_say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(said, 1)
        os._exit(0)
    pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    os.write(to_say, b"x")
    os.waitpid(pid, 0)
    for fd in (said, to_say):
        os.close(fd)
    with pytest.raises(ProcessLookupError):
        _core.harvest(pagemap, 1 << 20, 1 << 21)
    os.close(pagemap)


@few
@given(st.sets(st.integers(0, 96)), st.integers(0, 97), st.integers(0, 97))
def test_data_extents_are_the_pages_that_were_written(model, first, last):
    fd = os.memfd_create("data")
    os.truncate(fd, 97 * PAGE)
    for page in model:
        os.pwrite(fd, b"x", page * PAGE + 17)
    found = _core.data_extents(fd, first * PAGE, last * PAGE)
    os.close(fd)
    bounds = np.frombuffer(found, np.int64).reshape(-1, 2) // PAGE
    named = [page for low, high in bounds.tolist() for page in range(low, high)]
    assert named == sorted(page for page in model if first <= page < last)
    assert all(high < low for high, low in zip(bounds[:-1, 1], bounds[1:, 0], strict=True))


def test_a_bad_descriptor_is_an_error_with_the_name_of_the_call():
    with pytest.raises(OSError, match="lseek"):
        _core.data_extents(-1, 0, PAGE)
    with pytest.raises(OSError, match="PAGEMAP_SCAN"):
        _core.harvest(-1, 0, PAGE)
