"""What ksm01 to ksm04 of LTP have in common: three children filled alike and unlike, phase by phase.

The children wait for their next order where LTP's stop: a stopped worker cannot carry out what ksmd wants.
"""

import ksmemu
from tests.support import books, crew
from tests.support.procmaps import PAGE
from tests.support.scanning import settled

MIB = 1 << 20


def map_in_units(state, size, unit, node=0):
    """In a child: map so many bytes and advise them unit by unit."""
    state.space = ksmemu.AddressSpace(size, node=node)
    state.start = state.space.mmap(size)
    for at in range(state.start, state.start + size, unit):
        state.space.madvise(at, unit, ksmemu.MADV_MERGEABLE)


class Phases:
    """The children of one test, each with the same number of pages, all of them mapped."""

    def __init__(self, ksmd, children, each):
        self._ksmd, self._children, self._each = ksmd, children, each
        self._total = len(children) * each
        ksmd.write("max_page_sharing", self._total)
        ksmd.write("pages_to_scan", self._total)

    def play(self):
        nr = self._total
        self._fill("caa", (2, nr - 2, 0, 0))
        self._fill("cba", (3, nr - 3, 0, 0))
        self._fill("ddd", (1, nr - 1, 0, 0))
        self._change_last_byte((1, nr - 2, 0, 1))
        for run in (2, 0):
            self._ksmd.write("run", run)
            assert settled(self._ksmd) == (0, 0, 0, 0)
        self._check_contents("d d")

    def _fill(self, values, expected):
        for one, value in zip(self._children, values, strict=True):
            one.call(crew.fill_with, 0, self._each, ord(value))
        self._check_counters(expected)
        self._check_contents(values)

    def _change_last_byte(self, expected):
        changed, last = self._children[1], self._each - 1
        changed.call(crew.put_byte, last, 1, PAGE - 1, ord("e"))
        self._check_counters(expected)
        assert changed.call(crew.is_filled_with, 0, last, ord("d"))
        assert changed.call(crew.bytes_at, last, 1, PAGE - 2) == [ord("d")]
        assert changed.call(crew.bytes_at, last, 1, PAGE - 1) == [ord("e")]

    def _check_counters(self, expected):
        self._ksmd.write("run", 1)
        books.wait_at_rest(self._ksmd)  # a scan does not wait for a worker that is late
        assert self._ksmd.read("run") == 1
        assert settled(self._ksmd) == expected
        assert self._ksmd.read("sleep_millisecs") == 0
        assert self._ksmd.read("pages_to_scan") == self._total

    def _check_contents(self, values):
        for one, value in zip(self._children, values, strict=True):
            assert value == " " or one.call(crew.is_filled_with, 0, self._each, ord(value))
