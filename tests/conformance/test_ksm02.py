"""LTP ksm02: as ksm01, the children bound to processors and nodes; 16 MiB each instead of 128.

The nodes are simulated. merge_across_nodes is 1, so they make no difference.
"""

import os

from tests.support.ltp import MIB, Phases, map_in_units
from tests.support.procmaps import PAGE

SIZE = 16 * MIB


def bind(state, number):
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {usable[number % len(usable)]})


def test_ksm02(ksmd, child):
    children = [child() for _ in range(3)]
    for number, one in enumerate(children):
        one.call(bind, number)
        one.call(map_in_units, SIZE, MIB, number)
    Phases(ksmd, children, SIZE // PAGE).play()
