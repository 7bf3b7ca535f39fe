"""The command line: one line for an error, and the exit status that goes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import click
import pytest

from ksmemu.cli import commands, main
from ksmemu.cli.output import size
from ksmemu.control.tunables import ACTIONS, TUNABLES

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ksmemu(instance) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ksmemu", *arguments],
            env=os.environ | {"KSMEMU_DIR": str(instance.directory)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def started(ksmemu, instance) -> Iterator[Run]:
    assert ksmemu("start", "sleep_millisecs=7").returncode == 0
    yield ksmemu
    ksmemu("stop")


def assert_one_line(text: str, *parts: str) -> None:
    assert text.count("\n") == 1, text
    assert text.startswith("ksmemu")
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "Missing command"),
        (["merge"], "No such command 'merge'"),
        (["set"], "Missing argument"),
        (["set", "run"], "'run' is not NAME=VALUE"),
        (["set", "run=3"], "run=3: must be 0 to 2"),
        (["set", "run=\n"], "must be a decimal number"),
        (["set", "max_page_sharing=1"], "must be at least 2"),
        (["set", "use_zero_pages=perhaps"], "must be a boolean word"),
        (["set", "pages_shared=3"], "no tunable 'pages_shared'"),
        (["start", "walk=1"], "there are " + ", ".join(TUNABLES)),
        (["status", "--yaml"], "--yaml"),
        (["exec"], "Missing argument"),
        (["exec", "--no-such-option", "true"], "--no-such-option"),
        (["explain", "me"], "'me' is not a valid integer;"),
        (["watch", "often"], "'often' is not a valid number;"),
        (["watch", "1", "0.5"], "'0.5' is not a valid integer;"),
        (["explain", "0"], "0 is not in the range"),
        (["explain", "1", "0xstack"], "'0xstack' is no address"),
        (["explain", "1", "-7"], "No such option"),
        (["explain", "1", str(1 << 64)], "is no address"),
        (["explain", "1", "2", "3"], "unexpected extra argument"),
    ],
)
def test_bad_usage_is_status_2_and_changes_nothing(ksmemu, instance, arguments, part):
    ran = ksmemu(*arguments)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert_one_line(ran.stderr, part)
    assert ran.stderr.endswith("; see --help\n")
    assert not instance.directory.exists()


@pytest.mark.parametrize(
    "verb", [["status"], ["stop"], ["set", "run=1"], ["explain"], ["explain", "1"], ["exec", "true"]]
)
def test_no_ksmd_is_status_1(ksmemu, instance, verb):
    ran = ksmemu(*verb)
    assert ran.returncode == 1
    assert_one_line(ran.stderr, str(instance.directory), "ksmemu start")


def test_a_directory_of_another_user_is_status_1(ksmemu, foreign):
    for verb in (["start"], ["status"], ["stop"]):
        ran = ksmemu(*verb, "--dir", str(foreign.directory))
        assert ran.returncode == 1
        assert_one_line(ran.stderr, str(foreign.directory))


VERBS = commands.list_commands(click.Context(commands))


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_there_is_not_is_one_line_and_status_2(capsys, verb):
    with pytest.raises(SystemExit, match="2"):
        main([verb, "--no-such-option"])
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_line(err, verb, "--no-such-option")


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_says_what_it_is_for(capsys, verb):
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80


def test_modes_that_exclude_each_other_are_a_usage_error(ksmemu):
    ended = ksmemu("start", "--secure", "--fills-only")
    assert ended.returncode == 2
    assert "not together: fills_only and secure" in ended.stderr


@pytest.mark.parametrize("verb", ["start", "bench"])
@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("best", "written, checksum, hints, and MODULE:CLASS"),
        ("no.such:Policy", "No module named"),
        ("ksmemu.policy:Best", "no attribute"),
        ("ksmemu.policy:Seen", "no ksmemu.policy.Policy"),
    ],
)
def test_a_policy_that_is_none_is_a_usage_error(ksmemu, verb, policy, why):
    ended = ksmemu(verb, "--policy", policy)
    assert ended.returncode == 2
    assert why in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("mode", ["--secure", "--rfc2009"])
def test_a_policy_that_a_mode_rules_out_is_a_usage_error(ksmemu, mode):
    ended = ksmemu("start", mode, "--policy", "hints")
    assert ended.returncode == 2
    assert f"not together: {mode[2:]} and policy hints" in ended.stderr


def test_start_with_events_has_them_from_the_first_scan_on(ksmemu, instance):
    assert ksmemu("start", "--events").returncode == 0
    try:
        assert (instance.tracing / "events/ksm/enable").read_text().rstrip() == "1"
        assert (instance.tracing / "trace").read_text() == ""
    finally:
        assert ksmemu("stop").returncode == 0


def test_start_says_where_and_stop_leaves_nothing(ksmemu, instance):
    started = ksmemu("start")
    assert started.returncode == 0
    pid = instance.pid()
    assert started.stdout == f"ksmd {pid} serves {instance.directory}\n"
    stopped = ksmemu("stop")
    assert (stopped.returncode, stopped.stdout) == (0, f"ksmd {pid} has stopped\n")
    assert not instance.directory.exists()


def test_a_second_start_is_refused_with_the_pid_of_the_first(started, instance):
    ran = started("start")
    assert ran.returncode == 1
    assert_one_line(ran.stderr, f"pid {instance.pid()}")


def test_status_begins_with_what_is_saved_and_fits_the_screen(started, instance):
    ran = started("status")
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    assert lines[0] == "0 B saved"
    assert max(len(line) for line in lines if str(instance.directory) not in line) <= 80
    assert [line.split()[:2] for line in lines if line.startswith("sleep")] == [["sleep_millisecs", "7"]]
    figures = lines[lines.index("") + 1 :]
    # Every value ends in the same column, and a meaning follows.
    assert all(line[41] != " " and line[42:44] == "  " for line in figures if line)


def test_status_json_has_every_figure(started, instance):
    figures = json.loads(started("status", "--json").stdout)
    assert figures["saved_bytes"] == 0
    assert figures["pid"] == instance.pid()
    files = {path.name for path in instance.control.iterdir()}
    assert figures["tunables"].keys() | figures["counters"].keys() | ACTIONS.keys() == files
    assert figures["merged_pids"] == []
    assert figures["stats"].keys() == {path.name for path in instance.stats.iterdir()}


def test_explain_says_that_nobody_has_joined(started):
    ran = started("explain")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == (
        "nothing is scanned: run=0\n"
        "  ksmemu set run=1\n"
        "nobody has joined: no process has advised any memory\n"
    )
    assert json.loads(started("explain", "--json").stdout) == {
        "stopped": "run=0",
        "workers": [],
        "page": None,
    }


def test_set_returns_when_it_is_obeyed(started, instance):
    ran = started("set", "pages_to_scan=23", "use_zero_pages=on")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert (instance.control / "pages_to_scan").read_text().rstrip("\n") == "23"
    assert int((instance.control / "use_zero_pages").read_text()) == 1


def test_check_says_yes_or_no_of_every_facility(ksmemu):
    ran = ksmemu("check")
    features = json.loads(ksmemu("check", "--json").stdout)["features"]
    starts = [line for line in ran.stdout.splitlines() if line[:3] in ("yes", "no ")]
    assert len(starts) == len(features)
    for line, feature in zip(starts, features, strict=True):
        assert line.startswith(("yes  " if feature["ok"] else "no   ") + feature["name"] + ": ")
        assert bool(feature["remedy"]) is not feature["ok"]
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert ran.returncode == 0


@pytest.mark.parametrize(
    ("nr_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (-4096, "-4.0 KiB"),
        (2_080_374_784, "1.9 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_a_size_is_shown_for_people(nr_bytes, text):
    assert size(nr_bytes) == text
