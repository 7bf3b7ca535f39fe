"""ksmtuned, which watches the free memory of the host, and ksmctl: both through `ksmemu exec`."""

import os
import re
import signal
import subprocess
from contextlib import contextmanager

import pytest

from ksmemu.features import KSM
from tests.support.in_place import DEADLINE, EXEC, run
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def ksmtuned(debian, ksmd, tmp_path):
    """Run ksmtuned with its settings: ksmtuned(KSM_THRES_COEF=120) is a context that yields its log."""

    @contextmanager
    def start(**settings):
        pid, log = tmp_path / "pid", tmp_path / "log"
        env = {"KSM_MONITOR_INTERVAL": "0.1", "DEBUG": "1", "PIDFILE": str(pid), "LOGFILE": str(log)}
        env |= {name: str(value) for name, value in settings.items()}
        command = [*EXEC, "--dir", str(ksmd.directory), "--", "bash", str(debian / "usr/sbin/ksmtuned")]
        # It leaves its loop behind and returns: whatever goes on holds the pipe.
        process = subprocess.Popen(
            command,
            env=os.environ | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            wait_until(lambda: log.exists() and "committed" in log.read_text(), what="ksmtuned")
            yield log
            os.kill(int(wait_until(pid.read_text)), signal.SIGTERM)
            said, _ = process.communicate(timeout=DEADLINE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        assert (said, process.returncode) == ("", 0)

    return start


def _started_with(log):
    """Return the pages_to_scan and sleep_millisecs that it last said it has stored."""
    said = re.findall(r"KSMCTL start (\d+) (\d+)", log.read_text())
    return [tuple(map(int, numbers)) for numbers in said[-1:]]


def test_ksmtuned_starts_ksmd_when_memory_is_short_and_stops_it_when_it_is_not(ksmd, twins, ksmtuned):
    """How much is short is a share of all memory in per cent: of 120, any is; of 0, none."""
    with ksmtuned(KSM_THRES_COEF=120) as log:
        wait_until(lambda: ksmd.read("run") == 1, what="run=1")
        wait_until(lambda: ksmd.read("pages_sharing") == twins.nr_pages, what="merged pages")
        wait_until(lambda: [(ksmd.read("pages_to_scan"), ksmd.read("sleep_millisecs"))] == _started_with(log))
    assert "start ksm" in log.read_text()
    with ksmtuned(KSM_THRES_COEF=0) as log:
        wait_until(lambda: ksmd.read("run") == 0, what="run=0")
        wait_until(lambda: "stop ksm" in log.read_text(), what="its log")
    assert ksmd.read("pages_sharing") == twins.nr_pages


def test_ksmctl_starts_and_stops(ksmd, twins, debian):
    for verb, value in (("start", 1), ("stop", 0), ("start", 1)):
        ran = run(ksmd.directory, str(debian / "usr/sbin/ksmctl"), verb)
        assert (ran.returncode, ran.stderr) == (0, "")
        wait_until(lambda value=value: ksmd.read("run") == value, what=f"run={value}")
    wait_until(lambda: ksmd.read("pages_sharing") == twins.nr_pages, what="merged pages")


def test_without_exec_it_is_the_kernels_own_that_ksmctl_starts(start_ksmd, debian):
    """The negative control: a store that missed the instance would show."""
    ksmd = start_ksmd()
    subprocess.run([debian / "usr/sbin/ksmctl", "start"], check=True)
    try:
        assert (KSM / "run").read_text() == "1\n"
        assert ksmd.read("run") == 0
    finally:
        (KSM / "run").write_text("2\n")
