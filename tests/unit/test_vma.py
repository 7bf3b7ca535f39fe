"""VMAs split and join as advice changes."""

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ksmemu.mm.vma import Flags, VmaMap
from tests.support.examples import quick

PAGE = 4096
START = 0x7000_0000_0000

pages = st.integers(0, 29)
flags = st.sampled_from(
    [
        None,
        Flags(),
        Flags(own=True),
        Flags(mergeable=True, own=True),
        Flags(mergeable=True, own=True, node=1),
        Flags(mergeable=True, own=True, prot=0),
        Flags(prot=1),
    ]
)
steps = st.lists(st.tuples(pages, pages, flags), max_size=19)


def built(changes):
    vmas, model = VmaMap(), {}
    for first, last, value in changes:
        vmas.put(START + first * PAGE, START + last * PAGE, value)
        model |= dict.fromkeys(range(first, last), value)
    return vmas, model


@quick
@given(steps)
def test_mergeable_names_every_mergeable_page_once(changes):
    vmas, model = built(changes)
    ranges = np.frombuffer(vmas.mergeable(), np.uint64).reshape(-1, 2)
    named = [(at - START) // PAGE for low, high in ranges.tolist() for at in range(low, high, PAGE)]
    assert named == sorted(page for page, value in model.items() if value and value.mergeable)


@quick
@given(steps)
def test_mergeable_ranges_do_not_touch(changes):
    ranges = np.frombuffer(built(changes)[0].mergeable(), np.uint64).reshape(-1, 2)
    assert (ranges[1:, 0] > ranges[:-1, 1]).all()


@quick
@given(steps)
def test_protections_name_every_protected_page_once(changes):
    vmas, model = built(changes)
    ranges = np.frombuffer(vmas.protections(), np.uint64).reshape(-1, 3).tolist()
    named = [((at - START) // PAGE, prot) for low, high, prot in ranges for at in range(low, high, PAGE)]
    assert named == sorted((page, value.prot) for page, value in model.items() if value and value.prot != 3)


def test_advice_in_the_middle_makes_three_vmas_and_back_one():
    vmas = VmaMap()
    vmas.put(START, START + 23 * PAGE, Flags(own=True))
    vmas.put(START + 7 * PAGE, START + 11 * PAGE, Flags(mergeable=True, own=True))
    assert [len(vma) // PAGE for vma in vmas] == [7, 4, 12]
    vmas.put(START + 7 * PAGE, START + 11 * PAGE, Flags(own=True))
    assert [len(vma) // PAGE for vma in vmas] == [23]


def test_nothing_mergeable_is_an_empty_buffer():
    vmas = VmaMap()
    vmas.put(START, START + 3 * PAGE, Flags())
    assert vmas.mergeable() == b""
