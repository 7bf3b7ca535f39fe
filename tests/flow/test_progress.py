"""Progress of what takes longer than a second: on a terminal, and nowhere else."""

import os
import signal
import sys

from tests.support.terminal import Terminal


def command(ksmd, *arguments):
    return [sys.executable, "-m", "ksmemu", arguments[0], "--dir", str(ksmd.directory), *arguments[1:]]


def test_a_store_that_is_not_obeyed_yet_shows_on_a_terminal(ksmd):
    os.kill(ksmd.pid, signal.SIGSTOP)
    try:
        with Terminal(command(ksmd, "set", "run=2")) as terminal:
            terminal.until(b"run=2 ")
            os.kill(ksmd.pid, signal.SIGCONT)
            assert terminal.status() == 0
    finally:
        os.kill(ksmd.pid, signal.SIGCONT)
    assert terminal.said.endswith(b"\033[A\033[K")
    assert ksmd.read("run") == 2


def test_a_report_has_a_bar_on_a_terminal(ksmd, tmp_path):
    """It comes after a second; in a pipe there is none: test_report.py."""
    path = str(tmp_path / "a.html")
    with Terminal(command(ksmd, "report", "--seconds", "1.5", path)) as terminal:
        assert terminal.status() == 0
    assert b"looking" in terminal.said
    assert b"100%" in terminal.said
    assert terminal.said.endswith(path.encode() + b"\r\n")
