"""LTP ksm01: three children of 128 MiB, at full size, filled alike and unlike; advised whole or by MiB.

The children wait for their next order where LTP's stop: a stopped worker cannot carry out what ksmd wants.
"""

import pytest

from ksmemu import MADV_MERGEABLE
from tests.support import crew
from tests.support.procmaps import PAGE
from tests.support.scanning import merge, settled

MIB = 1 << 20
SIZE = 128 * MIB
EACH = SIZE // PAGE
N = 3 * EACH


def map_in_units(state, unit, node=0):
    crew.open_ordinary_space(state, EACH)
    for first in range(0, EACH, unit // PAGE):
        crew.advise(state, first, unit // PAGE, MADV_MERGEABLE)


def check_phase(ksmd, children, fills, expected):
    for one, value in zip(children, fills, strict=True):
        one.call(crew.fill_with, 0, EACH, ord(value))
    check_settled(ksmd, expected)
    for one, value in zip(children, fills, strict=True):
        assert one.call(crew.is_filled_with, 0, EACH, ord(value))


def check_settled(ksmd, expected):
    merge(ksmd, scans=3)
    assert ksmd.read("run") == 1
    assert settled(ksmd) == expected
    assert (ksmd.read("sleep_millisecs"), ksmd.read("pages_to_scan")) == (0, N)


@pytest.mark.parametrize("unit", [MIB, SIZE])
def test_ksm01(ksmd, child, unit):
    ksmd.write("max_page_sharing", N)
    ksmd.write("pages_to_scan", N)
    children = [child() for _ in range(3)]
    for one in children:
        one.call(map_in_units, unit)
    check_phase(ksmd, children, "caa", (2, N - 2, 0, 0))
    check_phase(ksmd, children, "cba", (3, N - 3, 0, 0))
    check_phase(ksmd, children, "ddd", (1, N - 1, 0, 0))
    children[1].call(crew.put_byte, EACH - 1, 1, PAGE - 1, ord("e"))
    check_settled(ksmd, (1, N - 2, 0, 1))
    assert children[1].call(crew.is_filled_with, 0, EACH - 1, ord("d"))
    for run in (2, 0):
        ksmd.write("run", run)
        assert settled(ksmd) == (0, 0, 0, 0)
    assert children[2].call(crew.is_filled_with, 0, EACH, ord("d"))
