"""`ksmemu watch`: a line an interval, in a pipe; its figures are those of the control files."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ksmemu.cli.output import short, size
from ksmemu.control.figures import figures
from ksmemu.control.look import Look
from ksmemu.instance import Instance
from ksmemu.view.sample import Between, Sample
from tests.support.procmaps import PAGE
from tests.support.terminal import Terminal


def watch(directory, *arguments):
    command = [sys.executable, "-m", "ksmemu", "watch", "--dir", str(directory), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_lines_in_a_pipe_are_of_80_columns_and_say_what_the_control_files_say(stepped, memory):
    for one in [memory(stepped) for _ in range(3)]:
        one.fill(range(7))
    stepped.scan(2)
    ran = watch(stepped.directory, 0.01, 25)
    lines = ran.stdout.splitlines()
    assert (ran.returncode, ran.stderr, len(lines)) == (0, "", 25 + 2)
    assert {len(line) for line in lines} == {80}
    assert lines[0] == lines[23]
    shown = dict(zip(lines[0].split(), lines[1].replace(" KiB", "KiB").split(), strict=True))
    counters = stepped.counters()
    assert (counters["pages_shared"], counters["pages_sharing"]) == (7, 14)
    assert shown["SAVED"] == size(14 * PAGE).replace(" ", "")
    for name in ("shared", "sharing", "unshared", "volatile"):
        assert shown[name.upper()] == str(counters[f"pages_{name}"])
    assert shown["SCANS"] == str(counters["full_scans"])


def test_without_an_interval_it_is_one_line_and_json_has_every_figure(stepped, memory):
    memory(stepped).fill(range(5))
    stepped.scan(1)
    assert len(watch(stepped.directory).stdout.splitlines()) == 2
    (line,) = watch(stepped.directory, "--json").stdout.splitlines()
    found = json.loads(line)
    assert found["domains"][str(os.geteuid())]["pages_scanned"] == stepped.read("pages_scanned")
    assert found["pages_scanned_per_second"] * found["seconds"] == pytest.approx(5)
    assert found["cpu_percent"] > 0


def test_figures_of_workers_are_those_of_the_books(start_stepped, memory):
    ksmd = start_stepped(use_zero_pages=1)
    one, _other = memory(ksmd), memory(ksmd).fill(range(3))
    one.fill(range(7))
    one.fill_equal([11, 12, 13, 14, 15], bytes(PAGE))
    ksmd.scan(2)
    one.fill([17, 18])
    ksmd.scan(1)
    (worker,) = figures(Instance.resolve(ksmd.directory))["workers"]
    looks = next(space["looks"] for space in worker["spaces"] if space["start"] == one.start)
    assert worker["pid"] == os.getpid()
    assert looks == [23 - 14, 4, 2, 3, 5, 0]
    assert looks[Look.MERGED] == ksmd.read("pages_sharing")


def between(before, after):
    made = []
    for at, domains in ((2.0, before), (4.0, after)):
        named = {name: {"merges": merges} for name, merges in domains.items()}
        made.append(
            Sample(
                at, {"full_scans": 0, "seconds": at, "cpu_seconds": at / 2, "domains": named, "workers": []}
            )
        )
    return Between(*made)


def test_a_domain_that_goes_or_comes_does_not_spoil_the_rate():
    assert between({"1": 7, "2": 1000}, {"1": 11, "3": 6}).per_second("merges") == 5
    assert between({"1": 7}, {"1": 7}).cpu_percent == 50


def test_numbers_fit_their_columns():
    assert [short(n) for n in (0, 99_999, 100_000, 999_999, 1_250_000, 99_999_999, 10**9, 10**12)] == [
        "0",
        "99999",
        "100k",
        "999k",
        "1.2M",
        "99.9M",
        "1.0G",
        "1.0T",
    ]


def test_whoever_reads_only_the_first_line_is_left_in_peace(ksmd):
    command = f"{sys.executable} -m ksmemu watch --dir {ksmd.directory} 0.01 | head -1"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout.split()[0], ran.stderr) == ("SAVED", "")


def test_an_interrupt_is_its_ordinary_end(ksmd):
    command = [sys.executable, "-m", "ksmemu", "watch", "--dir", str(ksmd.directory), "3600"]
    with Terminal(command) as terminal:
        terminal.until(b"CPU%\r\n")
        terminal.until(b"0 B")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.status() == 0
    assert b"Traceback" not in terminal.said


@pytest.mark.parametrize(
    ("arguments", "part"),
    [(("0",), "interval"), (("soon",), "soon"), (("1", "0"), "count"), (("1", "2", "3"), "extra argument")],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, arguments, part):
    ran = watch(tmp_path, *arguments)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert part in ran.stderr.lower()


def test_no_ksmd_is_one_line_and_status_1(tmp_path):
    ran = watch(tmp_path / "none", 1)
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
