"""Pages are read while others are matched: their space may go meanwhile."""

import errno
import os
import resource

import numpy as np
import pytest

from ksmemu.ksmd.checksum import Checksum, new_threads
from ksmemu.ksmd.mm_slot import MmSlot
from tests.support.procmaps import PAGE

NR_PAGES = 10_007
"""Enough for more than one thread."""


@pytest.fixture
def checksum():
    with new_threads() as threads:
        yield Checksum(threads)


@pytest.fixture
def own():
    """An own object of pages that are all different; whoever closes a slot of it closes a duplicate."""
    fd = os.memfd_create("own")
    os.pwrite(fd, np.random.default_rng(23).bytes(NR_PAGES * PAGE), 0)
    yield fd
    os.close(fd)


def slot_of(own):
    return MmSlot(7, 0, NR_PAGES, os.dup(own), -1)


def test_pages_are_read_although_their_space_goes_meanwhile(checksum, own):
    slot, pages = slot_of(own), np.arange(NR_PAGES)
    expected = checksum.pages(slot, pages)
    assert len(set(expected.tolist())) == NR_PAGES
    reading = checksum.begin(slot, pages)
    slot.close()
    assert (reading.result() == expected).all()


def test_without_a_descriptor_left_pages_are_read_at_once(checksum, own):
    slot, pages = slot_of(own), np.arange(NR_PAGES)
    expected = checksum.pages(slot, pages)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        reading = checksum.begin(slot, pages)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    slot.close()
    assert (reading.result() == expected).all()


def test_an_object_that_shrinks_spoils_the_result_and_leaves_no_descriptor(checksum, own):
    slot, pages = slot_of(own), np.arange(NR_PAGES)
    os.truncate(own, (NR_PAGES - 1) * PAGE)
    for end in ("result", "drop"):
        before = set(os.listdir("/proc/self/fd"))
        reading = checksum.begin(slot, pages)
        if end == "drop":
            reading.drop()
        else:
            with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
                reading.result()
        assert set(os.listdir("/proc/self/fd")) == before
    slot.close()
