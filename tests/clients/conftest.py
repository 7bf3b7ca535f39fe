"""Programs written for the kernel's KSM, unmodified from Debian, on a ksmd that really merges.

Meanwhile the kernel's own control files have values that no client stores: each store that reached
them would show.
"""

import subprocess
from pathlib import Path

import pytest

from ksmemu.bench.kernel_ksm import KernelKsm
from tests.support import crew
from tests.support.in_place import kernels_files
from tests.support.processes import Worker

NR_PAGES = 211


@pytest.fixture(scope="session")
def debian(tmp_path_factory):
    """The folder in which the packages are unpacked."""
    folder = tmp_path_factory.mktemp("debian")
    got = subprocess.run(
        [Path(__file__).with_name("get.sh"), folder], capture_output=True, text=True, check=False
    )
    assert got.returncode == 0, got.stderr
    return folder


@pytest.fixture(autouse=True)
def the_kernels_own_ksm_is_untouched(the_machine_may_be_changed):
    with KernelKsm(run=2, pages_to_scan=10_007, sleep_millisecs=1_000_003, merge_across_nodes=1):
        before = kernels_files()
        yield
        assert kernels_files() == before


@pytest.fixture(params=["plain files", "FUSE"])
def ksmd(start_ksmd, request):
    """A ksmd that nobody has told to run."""
    return start_ksmd(fuse=request.param == "FUSE", pages_to_scan=10_009, sleep_millisecs=1)


class Twins:
    """Two workers with the same pages, and one page each that only it has."""

    nr_pages = NR_PAGES

    def __init__(self, ksmd, workers):
        self._ksmd, self._workers = ksmd, workers
        for rank, worker in enumerate(workers):
            worker.call(crew.open_space, NR_PAGES + 1)
            worker.call(crew.put, 0, [*range(1, NR_PAGES + 1), 1_000 + rank])

    def part(self, nr_pages):
        """Write into the first pages of one of them."""
        self._workers[0].call(crew.put_byte, 0, nr_pages, 23, 7)

    def settle(self):
        """Scan until everything is where it belongs, and stop."""
        self._ksmd.write("run", 1)
        self._ksmd.wait_full_scans(4)
        self._ksmd.write("run", 0)


@pytest.fixture
def twins(ksmd):
    with Worker(ksmd.directory) as one, Worker(ksmd.directory) as other:
        yield Twins(ksmd, [one, other])
