"""`ksmemu bench` as a program, with memory that is small."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from ksmemu.bench.workloads import SIZES
from tests.support.waiting import wait_until

TINY = [f"--size={name}=1" for name in SIZES]


def command(*arguments):
    return [sys.executable, "-m", "ksmemu", "bench", *TINY, *arguments]


def run(*arguments, env=None):
    """Return the finished run."""
    return subprocess.run(
        command(*arguments),
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def figures(*arguments):
    """Return the figures of each workload."""
    ran = run("--json", *arguments)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    return json.loads(ran.stdout)["figures"]


@contextmanager
def in_the_midst(tmp_path, *arguments):
    """Yield a run that has workers, in a session and with a temporary folder of its own."""
    started = subprocess.Popen(
        command("--rounds=1000", *arguments),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with started:
        try:
            wait_until(lambda: len(processes_of(tmp_path)) >= 6, what="ksmd and workers")
            yield started
        finally:
            if started.poll() is None:
                started.send_signal(signal.SIGINT)
                started.communicate(timeout=60)


def processes_of(folder):
    """Return the processes whose temporary folder this is."""
    mark = f"TMPDIR={folder}".encode()
    return {path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if mark in _content(path)}


def _content(path):
    try:
        return path.read_bytes().split(b"\0")
    except OSError:
        return []
