"""The demonstration, as `make demo` runs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ksmemu.control.ksmd import connect

PAGE_SIZE = 4096


def run_demo(*arguments: str) -> str:
    start = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "ksmemu", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    assert time.monotonic() - start < 30
    return ran.stdout


def test_the_demo_saves_memory_and_gives_it_back():
    before = set(os.listdir("/dev/shm"))
    text = run_demo("--json")
    assert text.count("\n") == 1
    figures = json.loads(text)
    memory = figures["memory"]
    assert figures["ok"] is True
    assert figures["pages_sharing"] >= 0.95 * figures["pages_mergeable"]
    assert figures["saved_bytes"] >= 0.9 * figures["pages_sharing"] * PAGE_SIZE
    assert memory["unmerged"]["own"] == memory["loaded"]["own"]
    # Frames of zeros hold no memory; rungs of ladders are not counted as shared.
    frames_bytes = (figures["pages_shared"] + figures["ladder_frames"]) * PAGE_SIZE
    assert 0.99 * frames_bytes <= memory["merged"]["pool"] <= frames_bytes
    assert set(os.listdir("/dev/shm")) <= before


def test_a_pipe_gets_plain_lines_of_80_columns():
    text = run_demo()
    assert "\x1b" not in text
    assert "\r" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "all is as it was" in text


def test_workers_may_be_late(tmp_path):
    """A scan does not wait for them: the demo does, before it says what became of their writes."""
    with start_demo(tmp_path) as demo:
        lines = iter(demo.stdout.readline, "")
        assert any("writes to merged pages" in line for line in lines)
        late = session_of(demo.pid) - {demo.pid}
        with connect(*tmp_path.glob("*/instance")) as ksmd, stopped(late):
            ksmd.wait_full_scans(4)
        text, complaint = demo.communicate(timeout=30)
    assert (demo.returncode, complaint) == (0, "")
    before, after = map(int, re.search(r"fell from (\d+) to (\d+)", text).groups())
    assert after < before


def session_of(pid):
    """Return the processes of a session: those of the demo, but for ksmd."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(int(path.name)) == pid:
                found.add(int(path.name))
    return found


@contextlib.contextmanager
def stopped(pids):
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def start_demo(directory):
    return subprocess.Popen(
        [sys.executable, "-m", "ksmemu", "demo"],
        env=os.environ | {"TMPDIR": str(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("lines", [1, 4, 6])
def test_an_interrupted_demo_leaves_nothing(tmp_path, lines):
    """Ctrl-C goes to every process of the terminal at once; one of them says so."""
    with start_demo(tmp_path) as demo:
        for _ in range(lines):
            demo.stdout.readline()
        os.killpg(demo.pid, signal.SIGINT)
        _, complaint = demo.communicate(timeout=30)
    assert demo.returncode == 1
    assert complaint.strip() == "ksmemu: interrupted"
    assert list(tmp_path.iterdir()) == []
