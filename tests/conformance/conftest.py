"""What the kernel's own tests and LTP expect of KSM, expected of ksmemu: real workers, its own ksmd."""

import pytest

from tests.support import crew
from tests.support.processes import Worker

LOADED = {"sleep_millisecs": 0, "merge_across_nodes": 1}
"""As these tests set KSM up before they begin."""


@pytest.fixture
def ksmd(start_ksmd):
    """A ksmd that is unmerging: each test starts it."""
    ksmd = start_ksmd(**LOADED)
    ksmd.write("run", 2)
    return ksmd


@pytest.fixture
def child(ksmd):
    """Start a child that finds the test's ksmd."""
    started = []

    def start():
        started.append(Worker(ksmd.directory))
        return started[-1]

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def area(child):
    """Start a child with a mapped area: area(512) is advised, area(512, advised=False) is not."""

    def start(nr_pages, *, advised=True):
        one = child()
        one.call(crew.open_space if advised else crew.open_ordinary_space, nr_pages)
        return one

    return start
