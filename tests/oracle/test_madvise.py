"""madvise and prctl: what the kernel answers, AddressSpace.madvise() and ksmemu.prctl() must answer."""

import itertools

import pytest

import ksmemu
from tests.support import anonymous, crew, procmaps
from tests.support.procmaps import PAGE

pytestmark = pytest.mark.root
ON, OFF = ksmemu.MADV_MERGEABLE, ksmemu.MADV_UNMERGEABLE
NR_PAGES = 23
GAPS = [(5, 2), (13, 1)]

# (offset, length) in bytes; pages 5, 6 and 13 are not mapped.
RANGES = [
    (0, 2 * PAGE),
    (0, NR_PAGES * PAGE),
    (3 * PAGE, 0),
    (5 * PAGE, 0),
    (PAGE, 1),
    (PAGE, PAGE + 1),
    (0, 2 * PAGE - 1),
    (1, PAGE),
    (1, 0),
    (PAGE - 1, 1),
    (5 * PAGE + 8, PAGE),
    (3 * PAGE, 3 * PAGE),
    (3 * PAGE, 11 * PAGE),
    (5 * PAGE, PAGE),
    (5 * PAGE, 2 * PAGE),
    (6 * PAGE, 2 * PAGE),
]
ENDS = [(1 << 64) + end for end in (-2 * PAGE, -PAGE, -1, 0, PAGE)]
"""Where ranges end that begin at the first page: the last pages that there could be, and beyond."""
ADVICE = [ON, OFF, -1, 0x7FFF, 1 << 30]


def answers(state, opener):
    """Return of each call its errno, or 0, and which pages are mergeable after it."""
    opener(state, NR_PAGES)
    space, start = state.space, state.start
    for first, nr in GAPS:
        space.munmap(start + first * PAGE, nr * PAGE)
    ranges = [*RANGES, *((0, end - start) for end in ENDS)]
    found = []
    for (offset, length), advice, before in itertools.product(ranges, ADVICE, (ON, OFF)):
        error_of(space.madvise, start, NR_PAGES * PAGE, before)
        error = error_of(space.madvise, start + offset, length, advice)
        found.append(((offset, length % PAGE, advice, before), error, mergeable(space)))
    return found


def error_of(call, *args):
    """Return the errno of a call, or 0 as its result."""
    try:
        assert call(*args) in {0, None}
    except OSError as error:
        return error.errno
    return 0


def mergeable(space):
    """Return the mergeable pages, as numbers."""
    if isinstance(space, ksmemu.AddressSpace):
        ranges = [(vma.start, vma.end) for vma in space._vmas if vma.value.mergeable]
    else:
        ranges = procmaps.mergeable("self", space.start, space.start + space.size)
    return [(at - space.start) // PAGE for low, high in ranges for at in range(low, high, PAGE)]


def prctls(_, call):
    """Return what each call answers; they change only the process that makes them."""
    few = [0, 1, 2]
    found = []
    for option in (ksmemu.PR_SET_MEMORY_MERGE, ksmemu.PR_GET_MEMORY_MERGE):
        for args in itertools.product([*few, 1 << 63], few[:2], few[:2], few[:2]):
            try:
                answer = call(option, *args)
            except OSError as error:
                answer = -error.errno
            found.append((option, args, answer, call(ksmemu.PR_GET_MEMORY_MERGE, 0, 0, 0, 0)))
    return found


def test_madvise_answers_as_the_kernel(start_worker):
    kernel = start_worker().call(answers, anonymous.open_space)
    own = start_worker().call(answers, crew.open_space)
    assert {error for _, error, _ in kernel} == {0, 12, 22}
    assert own == kernel


def test_prctl_answers_as_the_kernel(start_worker):
    kernel = start_worker().call(prctls, anonymous.prctl)
    own = start_worker().call(prctls, ksmemu.prctl)
    assert {answer for _, _, answer, _ in kernel} == {0, 1, -22}
    assert own == kernel
