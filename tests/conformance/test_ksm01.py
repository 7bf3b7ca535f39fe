"""LTP ksm01: three children of 128 MiB, at full size, filled alike and unlike; advised whole or by MiB."""

import pytest

from tests.support.ltp import MIB, Phases, map_in_units
from tests.support.procmaps import PAGE

SIZE = 128 * MIB


@pytest.mark.parametrize("unit", [MIB, SIZE])
def test_ksm01(ksmd, child, unit):
    children = [child() for _ in range(3)]
    for one in children:
        one.call(map_in_units, SIZE, unit)
    Phases(ksmd, children, SIZE // PAGE).play()
