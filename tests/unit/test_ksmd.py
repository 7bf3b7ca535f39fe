"""A ksmd from outside: start, steer, lose."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time

import pytest

from ksmemu.control.counters import COUNTERS, STATS
from ksmemu.control.ksmd import Ksmd, connect
from ksmemu.errors import AlreadyServedError, ForeignInstanceError, KsmError, NotRunningError
from ksmemu.mm.address_space import MADV_MERGEABLE, AddressSpace
from tests.support import fakes, procmaps
from tests.support.waiting import over_and_over

START_AND_WAIT = """
import sys
from ksmemu.control.ksmd import Ksmd
ksmd = Ksmd(sys.argv[1])
print(ksmd.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def ksmd(instance):
    with Ksmd(instance.directory) as ksmd:
        yield ksmd


def test_it_serves_until_the_context_ends(instance):
    with Ksmd(instance.directory, pages_to_scan=23) as ksmd:
        assert ksmd.directory == instance.directory
        assert instance.pid() == ksmd.pid
        assert ksmd.read("pages_to_scan") == 23
        assert ksmd.read("run") == 0
    assert instance.pid() is None
    assert not instance.directory.exists()


def test_counters_and_stats_are_all_there(ksmd):
    assert ksmd.counters().keys() == COUNTERS.keys()
    assert ksmd.stats().keys() == STATS.keys()


@pytest.mark.parametrize(("name", "value"), [("run", 3), ("run", -1), ("walk", 1), ("full_scans", 1)])
def test_a_bad_value_is_refused_before_anything_is_done(ksmd, instance, name, value):
    with pytest.raises(ValueError, match=name):
        ksmd.write(name, value)
    with pytest.raises(ValueError, match=name):
        Ksmd(instance.directory / "another", **{name: value})
    assert not (instance.directory / "another").exists()


def test_a_write_is_in_force_when_it_returns(ksmd):
    for value in (7, 7, 4_000_000_000, 0):
        ksmd.write("sleep_millisecs", value)
        assert ksmd.read("sleep_millisecs") == value


def test_connect_does_not_stop_it(ksmd, instance):
    with connect(instance.directory) as other:
        other.write("run", 1)
        assert other.pid == ksmd.pid
    assert ksmd.read("run") == 1


def test_nobody_to_connect_to(instance):
    with pytest.raises(NotRunningError):
        connect(instance.directory)


def test_a_second_one_is_refused(ksmd, instance):
    with pytest.raises(AlreadyServedError, match=f"pid {ksmd.pid}"):
        Ksmd(instance.directory)
    assert instance.pid() == ksmd.pid
    assert ksmd.read("run") == 0


def test_a_foreign_directory_is_refused(foreign):
    with pytest.raises(ForeignInstanceError):
        Ksmd(foreign.directory)


def test_a_missing_parent_is_an_error_of_one_line(tmp_path):
    with pytest.raises(KsmError, match="No such file"):
        Ksmd(tmp_path / "missing" / "instance")


def test_waiting_for_scans_ends_with_the_counters(ksmd):
    """run is 0: there will be none."""
    with pytest.raises(TimeoutError, match=r"run=0.*pages_shared"):
        ksmd.wait_full_scans(2, timeout=0.1)


def test_a_killed_ksmd_is_noticed(ksmd):
    os.kill(ksmd.pid, signal.SIGKILL)
    with pytest.raises(KsmError, match="has gone"):
        ksmd.wait_full_scans(1)
    with pytest.raises(KsmError, match="has gone"):
        ksmd.write("run", 1)


def test_a_stopped_one_can_be_stopped_again(instance):
    ksmd = Ksmd(instance.directory)
    ksmd.stop()
    ksmd.stop()
    with pytest.raises(KsmError, match="has gone"):
        ksmd.read("run")


def test_it_ends_with_its_parent(instance):
    parent = subprocess.Popen(
        [sys.executable, "-c", START_AND_WAIT, instance.directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert select.select([pidfd], [], [], 10)[0]
    os.close(pidfd)
    assert not instance.directory.exists()


def test_it_is_ready_in_less_than_a_second_or_two(instance):
    start = time.monotonic()
    with Ksmd(instance.directory):
        assert time.monotonic() - start < 2


def test_it_has_one_thread_while_there_is_nothing_to_do(ksmd):
    assert procmaps.threads(ksmd.pid) == 1


def test_it_leaves_no_descriptor_behind(instance):
    with Ksmd(instance.directory):
        pass
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with Ksmd(instance.directory), connect(instance.directory):
            pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_refused_store_says_so(ksmd, instance):
    """max_page_sharing is fixed while pages are shared."""
    with AddressSpace(23 * 4096, instance=instance.directory) as space:
        start = space.mmap(space.size)
        space.madvise(start, space.size, MADV_MERGEABLE)
        space.write(start, b"x" * space.size)
        ksmd.write("run", 1)
        ksmd.wait_full_scans(3)
        assert ksmd.read("pages_shared") > 0
        with over_and_over(lambda: talk_nonsense(instance)):  # whatever else is logged at that time
            for _ in range(101):
                with pytest.raises(KsmError, match=r"max_page_sharing=17 refused, it is 256: .*shared"):
                    ksmd.write("max_page_sharing", 17)
        assert ksmd.read("max_page_sharing") == 256


def talk_nonsense(instance):
    """An unwelcome client is worth a line of the log."""
    with fakes.connect(instance.directory) as control:
        control.send(b"nonsense")
        assert fakes.is_refused(control)
