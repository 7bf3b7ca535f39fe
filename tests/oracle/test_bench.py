"""`ksmemu bench` with the kernel's own KSM, which is as it was afterwards."""

import signal
from pathlib import Path

import pytest

from ksmemu.bench.kernel_ksm import KernelKsm, tunables
from tests.support.bench import figures, in_the_midst, processes_of, run
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root
MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")


def settings():
    return {**tunables(), "max_map_count": MAX_MAP_COUNT.read_text()}


def test_both_run_side_by_side_and_are_compared():
    before = settings()
    found = figures("--rounds=1", "unique", "churn", "break", "unmerge") | figures("--rounds=2", "twins")
    assert settings() == before
    for name, figure, nr in (
        ("twins", "wall_s", 2),
        ("unique", "rescan_cpu_page_ns", 1),
        ("churn", "cpu_per_s", 1),
    ):
        both = found[name][figure]
        assert both["ratio"] > 0
        assert len(both["kernel"]["rounds"]) == len(both["ksmemu"]["rounds"]) == nr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_everything_is_put_back_when_it_is_stopped(tmp_path, number):
    before = settings()
    with in_the_midst(tmp_path, "--size=scattered=256", "scattered") as bench:
        wait_until(lambda: settings() != before, what="a tunable that was changed")
        bench.send_signal(number)
        bench.communicate(timeout=60)
        wait_until(lambda: settings() == before, what="every tunable as before")
        wait_until(lambda: not processes_of(tmp_path), what="the end of all processes")


def test_who_finds_the_kernels_ksm_taken_is_told():
    with KernelKsm():
        ran = run("--rounds=1", "twins")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert "another benchmark or test has the kernel's KSM" in ran.stderr
