"""selftests/mm/merge.c, its KSM part: neighbouring mappings made under the prctl join into one VMA.

The kernel sets the flags of a new mapping before it looks at the neighbours (Linux 6.17); what is really
mapped is one mapping of the own object.
"""

import ksmemu
from tests.support import crew, procmaps
from tests.support.procmaps import PAGE

HALF = 5


def map_beside(state, first):
    state.space.mmap(HALF * PAGE, state.start + first * PAGE)


def map_first_half(state, under_the_prctl):
    ksmemu.set_memory_merge(under_the_prctl)
    state.space = ksmemu.AddressSpace(2 * HALF * PAGE)
    state.start = state.space.mmap(HALF * PAGE)


def mapped(state):
    """Return what is mapped, as (perms, pages)."""
    end = state.start + 2 * HALF * PAGE
    found = procmaps.mappings("self", state.start, end)
    return [(m.perms, m.pages) for m in found if not m.perms.startswith("---")]


def test_ksm_merge(child):
    one = child()
    one.call(map_first_half, True)
    assert one.call(mapped) == [("rw-s", HALF)]
    one.call(map_beside, HALF)
    assert one.call(mapped) == [("rw-s", 2 * HALF)]


def test_ksm_merge_again_where_half_was_unmapped(child):
    one = child()
    one.call(map_first_half, True)
    one.call(map_beside, HALF)
    for first in (HALF, 0):
        one.call(crew.unmap, first, HALF)
        assert one.call(mapped) == [("rw-s", HALF)]
        one.call(map_beside, first)
        assert one.call(mapped) == [("rw-s", 2 * HALF)]


def set_memory_merge(state, on):
    ksmemu.set_memory_merge(on)


def test_nothing_joins_across_a_change_of_the_prctl(child):
    """The negative control: what is mapped before advice and what is mapped mergeable are two VMAs."""
    one = child()
    one.call(map_first_half, True)
    one.call(set_memory_merge, False)
    one.call(map_beside, HALF)
    assert one.call(mapped) == [("rw-s", HALF), ("rw-p", HALF)]
    one.call(set_memory_merge, True)
    assert one.call(mapped) == [("rw-s", 2 * HALF)]
