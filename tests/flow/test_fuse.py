"""The control directory as FUSE serves it: every file, every errno, and what a held descriptor sees."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

import ksmemu
from ksmemu.control.counters import COUNTERS
from ksmemu.control.tunables import ACTIONS
from tests.support import crew
from tests.support.processes import Worker
from tests.support.stores import mounts, shown, store
from tests.support.waiting import wait_until

root = pytest.mark.root

TABLE = {
    # default, what can be stored and what is shown then, what is refused
    "run": ("0", {"1": "1", "0\n": "0", "2": "2", "+1": "1"}, {"3": "EINVAL", "-1": "EINVAL", "": 0}),
    "pages_to_scan": ("100", {"0": "0", "4294967295": "4294967295"}, {"4294967296": "EINVAL", "x": "EINVAL"}),
    "sleep_millisecs": (
        "20",
        {"0": "0", "4294967295": "4294967295"},
        {"4294967296": "EINVAL", " 1": "EINVAL"},
    ),
    "merge_across_nodes": ("1", {"0": "0", "1": "1"}, {"2": "EINVAL", "18446744073709551616": "ERANGE"}),
    "max_page_sharing": (
        "256",
        {"2": "2", "2147483647": "2147483647"},
        {"1": "EINVAL", "2147483648": "ERANGE"},
    ),
    "stable_node_chains_prune_millisecs": ("2000", {"0": "0", "7\n": "7"}, {"4294967296": "EINVAL"}),
    "use_zero_pages": ("0", {"1": "1", "off": "0", "Yes\n": "1"}, {"2": "EINVAL", "o": "EINVAL"}),
    "smart_scan": ("1", {"f": "0", "ON": "1", "none": "0"}, {"-1": "EINVAL", "+1": "EINVAL"}),
    "advisor_mode": (
        "[none] scan-time",
        {"scan-time\n": "none [scan-time]", "none": "[none] scan-time"},
        {"0": "EINVAL", "scan": "EINVAL", "[none] scan-time": "EINVAL"},
    ),
    "advisor_max_cpu": (
        "70",
        {"0": "0", "101": "101", "4294967297": "1"},
        {"18446744073709551616": "EINVAL"},
    ),
    "advisor_min_pages_to_scan": (
        "500",
        {"0": "0", "18446744073709551615": "18446744073709551615"},
        {"-1": "EINVAL"},
    ),
    "advisor_max_pages_to_scan": ("30000", {"0": "0"}, {"18446744073709551616": "EINVAL"}),
    "advisor_target_scan_time": ("200", {"1": "1"}, {"0": "EINVAL", "1 ": "EINVAL"}),
}


def folder_of(ksmd):
    return ksmd.directory / "sys/kernel/mm/ksm"


@pytest.fixture
def served(start_ksmd):
    return start_ksmd(fuse=True, smart_scan=1)


@root
def test_every_file_has_its_default_its_range_and_its_errors(served):
    folder = folder_of(served)
    assert set(os.listdir(folder)) == {*TABLE, *COUNTERS, *ACTIONS}
    for name, (default, good, bad) in TABLE.items():
        assert shown(folder, name) == f"{default}\n"
        for text, value in good.items():
            assert store(folder, name, text.encode()) == len(text), (name, text)
            assert shown(folder, name) == f"{value}\n"
        for text, answer in bad.items():
            assert store(folder, name, text.encode()) == answer, (name, text)
            assert shown(folder, name) == f"{value}\n"
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o644
    for name in COUNTERS:
        assert shown(folder, name) == "0\n"
        found = (folder / name).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_size) == (0o444, 4096)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(PermissionError):
                os.open(folder / name, flags)


@root
def test_each_write_on_one_descriptor_is_one_store(served, memory):
    memory(served, 23).fill(range(23))
    folder = folder_of(served)
    served.write("sleep_millisecs", 1_000_003)
    served.write("pages_to_scan", 1_000_003)
    run = os.open(folder / "run", os.O_RDWR)
    for value in (b"1", b"1", b"2", b"1"):
        assert os.write(run, value) == 1
        assert os.pread(run, 9, 0) == value + b"\n"
    os.close(run)
    sleep = os.open(folder / "sleep_millisecs", os.O_WRONLY)
    for _ in range(5):
        scans = served.read("full_scans")
        assert os.write(sleep, b"1000003") == 7  # the same value, and yet it wakes ksmd
        wait_until(lambda before=scans: served.read("full_scans") > before, what="a full scan")
    os.close(sleep)


@root
def test_a_held_descriptor_reads_fresh_values_also_nine_bytes_at_a_time(served, memory):
    folder = folder_of(served)
    held = {name: os.open(folder / name, os.O_RDONLY) for name in ("full_scans", "pages_sharing", "run")}
    served.write("sleep_millisecs", 1)
    served.write("run", 1)
    twins = [memory(served, 23) for _ in range(2)]
    for twin in twins:
        twin.fill(range(23))
    wait_until(lambda: os.pread(held["pages_sharing"], 9, 0) == b"23\n", what="23 pages saved")
    before = int(os.pread(held["full_scans"], 9, 0))
    wait_until(lambda: int(os.pread(held["full_scans"], 9, 0)) > before, what="another full scan")
    assert os.pread(held["run"], 9, 0) == b"1\n"
    assert (os.pread(held["run"], 9, 1), os.pread(held["run"], 9, 2)) == (b"\n", b"")
    served.write("run", 2)
    assert os.pread(held["pages_sharing"], 9, 0) == b"0\n"
    for fd in held.values():
        os.close(fd)


@root
def test_what_may_not_change_while_pages_are_shared(served, memory):
    folder = folder_of(served)
    twins = [memory(served, 7) for _ in range(2)]
    for twin in twins:
        twin.fill(range(7))
    served.write("sleep_millisecs", 1)
    served.write("run", 1)
    wait_until(lambda: shown(folder, "pages_sharing") == "7\n", what="7 pages saved")
    served.write("run", 0)
    for name, same, other in (("max_page_sharing", b"256", b"17"), ("merge_across_nodes", b"1", b"0")):
        assert store(folder, name, other) == "EBUSY"
        assert store(folder, name, same) == len(same)
        assert shown(folder, name) == same.decode() + "\n"
        with pytest.raises(
            ksmemu.KsmError, match=f"{name}={int(other)} refused, it is {int(same)}"
        ) as refused:
            served.write(name, int(other))
        assert refused.value.errno == errno.EBUSY
    assert store(folder, "run", b"2") == 1
    assert (shown(folder, "pages_shared"), shown(folder, "full_scans")) == ("0\n", "0\n")
    for name, other in (("max_page_sharing", b"17"), ("merge_across_nodes", b"0")):
        assert store(folder, name, other) == len(other)


@root
def test_run_says_2_before_everything_is_unmerged(served):
    """A worker that is stopped makes it take a while: the times of ksmd's writing tell the order."""
    served.write("sleep_millisecs", 1)
    served.write("run", 1)
    with Worker(served.directory) as one:
        one.call(crew.open_space, 7)
        one.call(crew.put, 0, [1] * 7)
        wait_until(lambda: served.read("pages_sharing") == 6, what="6 pages saved")
        one.kill(signal.SIGSTOP)
        try:
            served.write("run", 2)
        finally:
            one.kill(signal.SIGCONT)
        values = served.directory / "values"
        assert served.read("full_scans") == 0
        assert (values / "run").stat().st_mtime_ns < (values / "full_scans").stat().st_mtime_ns


@root
def test_merge_pid_answers_the_writer(served):
    folder = folder_of(served)
    assert store(folder, "merge_pid", b"junk") == "EINVAL"
    assert store(folder, "merge_pid", b"4194304") == "ESRCH"
    with Worker(served.directory) as one:
        one.call(crew.open_space, 7)
        pid = str(one.pid)
        assert store(folder, "merge_pid", pid.encode()) == len(pid)
        assert shown(folder, "merge_pid") == f"{pid}\n"
        assert served.merged_pids() == [one.pid]
        served.write("unmerge_pid", one.pid)
        assert shown(folder, "merge_pid") == "\n"


@root
def test_reads_go_on_while_ksmd_is_busy_and_a_store_waits_for_it(served):
    folder = folder_of(served)
    answers = []
    os.kill(served.pid, signal.SIGSTOP)
    try:
        threads = [
            threading.Thread(target=lambda: answers.append(store(folder, "run", b"1"))) for _ in range(13)
        ]
        for thread in threads:
            thread.start()
        for _ in range(101):
            assert shown(folder, "run") == "0\n"
        assert answers == []
    finally:
        os.kill(served.pid, signal.SIGCONT)
    for thread in threads:
        thread.join(20)
    assert answers == [1] * 13
    assert shown(folder, "run") == "1\n"


def ksmemu_command(directory, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "ksmemu", *arguments, "--dir", str(directory)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@root
def test_the_command_line_shows_a_refusal_as_one_line_and_stop_unmounts(tmp_path):
    directory = tmp_path / "instance"
    assert ksmemu_command(directory, "start", "--fuse", "advisor_mode=scan-time").returncode == 0
    assert mounts(directory)
    with ksmemu.connect(directory) as ksmd:
        assert (ksmd.read("advisor_mode"), ksmd.read("pages_to_scan")) == (1, 500)
    refused = ksmemu_command(directory, "set", "pages_to_scan=7")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "pages_to_scan=7 refused, it is 500" in refused.stderr
    assert "advisor" in refused.stderr
    assert ksmemu_command(directory, "stop").returncode == 0
    assert mounts(directory) == []
    assert not directory.exists()


def test_where_there_is_no_fuse_one_line_says_so(tmp_path):
    """Everybody has it or is told why not: in a container, say, or without a setuid fusermount3."""
    directory = tmp_path / "instance"
    started = ksmemu_command(directory, "start", "--fuse")
    if started.returncode == 0:
        assert mounts(directory)
        assert ksmemu_command(directory, "stop").returncode == 0
    else:
        assert started.returncode == 3
        assert started.stderr.startswith("ksmemu: no  FUSE: ")
        assert started.stderr.count("\n") == 1
        assert os.geteuid() != 0, started.stderr
    assert mounts(directory) == []
    assert not directory.exists()
