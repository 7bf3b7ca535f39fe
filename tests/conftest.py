"""Fixtures for real processes, and the check that nothing is left behind (I5), after every test."""

import gc
import os
import threading

import pytest

from ksmemu import Ksmd
from ksmemu.control import launch
from ksmemu.mm import flags
from tests.support import machine, procmaps
from tests.support.processes import Worker
from tests.support.waiting import wait_until

AT_ONCE = {"run": 1, "pages_to_scan": 1_000_003, "sleep_millisecs": 1}


def pytest_report_header():
    return f"kernel {os.uname().release}, uid {os.geteuid()}, {os.cpu_count()} cores"


def pytest_collection_finish():
    """What pytest and the tests are made of is no garbage: the collections around each test pass it over."""
    gc.freeze()


@pytest.fixture(autouse=True)
def the_prctl_is_put_back():
    """What set_memory_merge() leaves in this process, and in the environment of what it starts, is undone."""
    yield
    flags.set_merge_any(False)
    flags.refuses = False
    del os.environ[flags.VARIABLE]


@pytest.fixture
def the_machine_may_be_changed():
    """For tests that steer the kernel's own KSM, or change vm.max_map_count."""
    with machine.changed():
        yield


@pytest.fixture
def the_machine_stays_as_it_is():
    """For tests that rely on either."""
    with machine.unchanged():
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """Shared memory, descriptors, processes, threads and mappings of ours are as before the test."""
    gc.collect()
    wait_until(lambda: not procmaps.has_ending_threads("self"), 5.0, "the end of threads of the test before")
    before = _inventory()
    yield
    gc.collect()
    after = _inventory()
    left = {name: after[name] - before[name] for name in after if after[name] - before[name]}
    assert not left, f"left behind: {left}"


def _inventory():
    pid = os.getpid()
    fds = procmaps.descriptors(pid)
    return {
        "shared memory": procmaps.shm_names(),
        "descriptors": {(fd, what) for fd, what in fds.items() if "/proc/" not in what},
        "children": procmaps.children(pid),
        "threads": {thread.name for thread in threading.enumerate()},
        "mappings": {
            (m.start, m.end)
            for m in procmaps.mappings(pid)
            if "/dev/shm/" in m.path or "memfd:ksmemu" in m.path
        },
    }


@pytest.fixture
def start_ksmd(tmp_path, monkeypatch):
    """Start a ksmd in a directory of the test: start_ksmd(run=1, …); `broken` takes a step out of it."""
    started = []

    def start(broken=None, module=None, **tunables):
        if broken:
            monkeypatch.setenv("KSMEMU_BREAK", broken)
        if module:
            monkeypatch.setattr(launch, "MODULE", module)
        # Otherwise what waits is counted as volatile for most of the time, as in the kernel.
        if not tunables.get("rfc2009"):
            tunables.setdefault("smart_scan", 0)
        ksmd = Ksmd(tmp_path / f"ksmd{len(started)}", **tunables)
        monkeypatch.delenv("KSMEMU_BREAK", raising=False)
        started.append(ksmd)
        return ksmd

    yield start
    for ksmd in started:
        ksmd.close()


@pytest.fixture
def ksmd(start_ksmd):
    """A ksmd that scans everything at once, as fast as it can."""
    return start_ksmd(**AT_ONCE)


@pytest.fixture(scope="module")
def lasting_ksmd(tmp_path_factory):
    """The same for all tests of a module, which names it `ksmd`: for those that ask nothing of its past."""
    with Ksmd(tmp_path_factory.mktemp("lasting") / "ksmd", smart_scan=0, **AT_ONCE) as ksmd:
        yield ksmd


@pytest.fixture
def start_worker(ksmd):
    """Start a worker that finds the test's ksmd by itself."""
    started = []

    def start(break_step=None):
        worker = Worker(ksmd.directory, break_step)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.close()


@pytest.fixture
def crew_of():
    """Start workers for any ksmd: crew_of(ksmd), crew_of(ksmd, break_step)."""
    started = []

    def start(ksmd, break_step=None):
        started.append(Worker(ksmd.directory, break_step))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()
        worker.close()


@pytest.fixture
def show(capsys):
    """Print a line of figures, whatever pytest captures."""

    def show(text):
        with capsys.disabled():
            print(f"\n    {text}", end="")  # noqa: T201 - the figures are the point

    return show
