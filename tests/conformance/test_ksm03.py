"""LTP ksm03: as ksm01, the children in a memory cgroup of their own, ksmd outside; 16 MiB each."""

import contextlib
import os

import pytest

from tests.support.cgroups import memory_group, times_at_limit
from tests.support.ltp import MIB, Phases, map_in_units
from tests.support.procmaps import PAGE

SIZE = 16 * MIB
LIMIT = 512 * MIB
"""Above what three children with their interpreters need."""


@pytest.mark.root
def test_ksm03(ksmd, child):
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_group(f"ksmemu-ksm03-{os.getpid()}", LIMIT))
        children = [stack.enter_context(child()) for _ in range(3)]
        for one in children:
            group.add(one.pid)
            one.call(map_in_units, SIZE, MIB)
        assert group.members() == {one.pid for one in children}
        Phases(ksmd, children, SIZE // PAGE).play()
        assert times_at_limit(group) == 0
