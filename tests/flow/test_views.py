"""Arrays and views are of real memory: they stay what they are, whatever happens to the pages."""

import gc

import numpy as np
import pytest

from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE, AddressSpace
from tests.support.procmaps import PAGE


def test_an_array_stays_valid_through_merge_write_and_unmerge(stepped, memory):
    one, other = memory(stepped, advise=False), memory(stepped, advise=False)
    first, second = (each.space.ndarray((23, 512), "u8", each.start) for each in (one, other))
    model = np.arange(23 * 512, dtype="u8").reshape(23, 512)
    first[:] = second[:] = model
    place = first.ctypes.data
    for each in (one, other):
        each.advise()
    assert (first == model).all()
    stepped.scan(2)
    assert stepped.read("pages_sharing") == 23
    assert (first == model).all()
    first[7] += 1
    assert (second == model).all()
    stepped.scan()
    model[7] += 1
    assert (first == model).all()
    one.advise(MADV_UNMERGEABLE)
    assert (first == model).all()
    first[11, 5] = 0
    one.advise(MADV_MERGEABLE)
    stepped.scan(2)
    model[11, 5] = 0
    assert (first == model).all()
    assert first.ctypes.data == place == one.start
    del first, second


def test_a_view_writes_through(stepped, memory):
    one, other = memory(stepped), memory(stepped)
    for each in (one, other):
        each.fill(range(23))
    with one.space.view(one.at(3), 2 * PAGE) as view:
        stepped.scan(2)
        view[PAGE - 2 : PAGE + 2] = b"over"
        assert one.read(4, 2) == b"er"
        stepped.scan()
        assert bytes(view[PAGE - 2 : PAGE + 2]) == b"over"


@pytest.mark.parametrize("advised", [False, True])
def test_a_space_with_a_live_view_is_not_closed(ksmd, memory, advised):
    one = memory(ksmd, advise=advised)
    view = one.space.view(one.at(3), PAGE)
    with pytest.raises(BufferError):
        one.space.close()
    view[:4] = b"fine"
    assert one.read(3, 4) == b"fine"
    view.release()
    one.space.close()


def test_an_array_keeps_its_space_alive():
    array = AddressSpace(7 * PAGE).ndarray(1009, "u4")
    gc.collect()
    array[:] = 3
    assert array.sum() == 3027


def test_a_range_with_a_live_view_is_not_unmapped(ksmd, memory):
    one = memory(ksmd)
    view = one.space.view(one.at(3), 2 * PAGE)
    with pytest.raises(BufferError):
        one.space.munmap(one.at(4), 5 * PAGE)
    one.space.munmap(one.at(5), 3 * PAGE)
    view[:] = bytes(2 * PAGE)
    view.release()
    one.space.munmap(one.at(4), PAGE)
