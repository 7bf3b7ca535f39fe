"""An instance that behaves as Izik Eidus's patches of May 2009 had it."""

import pytest

from tests.support import crew
from tests.support.processes import Worker

NR_PAGES = 23
FILLED = list(range(1, NR_PAGES + 1))


class Ksm2009:
    """A ksmd of 2009 that scans everything at once when it is told to."""

    def __init__(self, ksmd):
        self._ksmd = ksmd

    def scan(self, times=3):
        self._ksmd.write("run", 1)
        self._ksmd.wait_full_scans(times)

    def counters(self):
        """Return kernel_pages_allocated and pages_shared."""
        return self._ksmd.read("kernel_pages_allocated"), self._ksmd.read("pages_shared")

    def __getattr__(self, name):
        return getattr(self._ksmd, name)


@pytest.fixture
def ksm(start_ksmd):
    return Ksm2009(start_ksmd(rfc2009=True, pages_to_scan=1_000_003, sleep=1000))


@pytest.fixture
def mm(ksm):
    """Start a process with 23 pages of its own: mm() advises them, mm(advised=False) does not."""
    started = []

    def start(*, advised=True):
        one = Worker(ksm.directory)
        started.append(one)
        one.call(crew.open_space if advised else crew.open_ordinary_space, NR_PAGES)
        one.call(crew.put, 0, FILLED)
        return one

    yield start
    for one in started:
        one.close()
