"""Address spaces of the test's own process, and a ksmd that scans one full scan at a time."""

import faulthandler

import pytest

from ksmemu import MADV_MERGEABLE, AddressSpace
from tests.support.pages import content
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

_SECONDS = 90


@pytest.fixture(autouse=True)
def a_frozen_test_ends():
    """A test whose thread sleeps on a frozen page keeps the GIL: only C can end it."""
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


class Stepped:
    """A ksmd that scans when it is told to: everything once, then it stops and keeps what is merged."""

    def __init__(self, ksmd):
        self.ksmd = ksmd

    def scan(self, times=1):
        """Return when that many full scans are over."""
        for _ in range(times):
            before = self.ksmd.read("full_scans")
            self.ksmd.write("run", 1)  # scans at once; then it would sleep for ever
            wait_until(lambda n=before: self.ksmd.read("full_scans") > n, what="a full scan")
            self.ksmd.write("run", 0)

    def __getattr__(self, name):
        return getattr(self.ksmd, name)


@pytest.fixture
def start_stepped(start_ksmd):
    def start(**tunables):
        how = {"pages_to_scan": 1_000_003, "sleep_millisecs": 1_000_003, **tunables}
        return Stepped(start_ksmd(**how))

    return start


@pytest.fixture
def stepped(start_stepped):
    """A ksmd that scans everything once at each scan()."""
    return start_stepped()


class Memory:
    """An address space that is mapped and advised in full; pages by number."""

    def __init__(self, directory, nr_pages, advise, **how):
        self.space = AddressSpace(nr_pages * PAGE, instance=directory, **how)
        self.nr_pages = nr_pages
        self.start = self.space.mmap(nr_pages * PAGE)
        if advise:
            self.advise()

    @property
    def end(self):
        return self.start + self.nr_pages * PAGE

    def at(self, page):
        return self.start + page * PAGE

    def advise(self, advice=MADV_MERGEABLE, first=0, nr=None):
        nr = self.nr_pages - first if nr is None else nr
        return self.space.madvise(self.at(first), nr * PAGE, advice)

    def write(self, page, data):
        self.space.write(self.at(page), data)

    def read(self, page, length=PAGE):
        return self.space.read(self.at(page), length)

    def fill(self, pages, seed=0):
        """Give each page a content of its own; the same seed, the same contents."""
        for page in pages:
            self.write(page, content(repr((seed, page))))

    def fill_equal(self, pages, data):
        """Give all of them the same content."""
        for page in pages:
            self.write(page, data)


@pytest.fixture
def memory():
    """Make an address space: memory(ksmd, 23)."""
    made = []

    def make(ksmd, nr_pages=23, *, advise=True, **how):
        one = Memory(ksmd.directory, nr_pages, advise, **how)
        made.append(one)
        return one

    yield make
    for one in made:
        one.space.close()
