"""LTP ksm04: as ksm03, and each child on its own node and in a cpuset of one processor; 16 MiB each.

The nodes are simulated. merge_across_nodes is 1, so they make no difference.
"""

import contextlib
import os

import pytest

from tests.support.cgroups import cpuset_group, memory_group, times_at_limit
from tests.support.ltp import MIB, Phases, map_in_units
from tests.support.procmaps import PAGE

SIZE = 16 * MIB
LIMIT = 512 * MIB


@pytest.mark.root
def test_ksm04(ksmd, child):
    usable = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        memory = stack.enter_context(memory_group(f"ksmemu-ksm04-{os.getpid()}", LIMIT))
        children = []
        for number in range(3):
            cpu = usable[number % len(usable)]
            cpuset = stack.enter_context(cpuset_group(f"ksmemu-ksm04-{number}", cpu, memory))
            one = stack.enter_context(child())
            cpuset.add(one.pid)
            assert one.pid in cpuset.members()
            one.call(map_in_units, SIZE, MIB, number)
            assert os.sched_getaffinity(one.pid) == {cpu}
            children.append(one)
        Phases(ksmd, children, SIZE // PAGE).play()
        assert times_at_limit(memory) == 0
