"""The kernel's own KSM with the face of a Ksmd: read, write, counters, wait for full scans.

Whatever a test does to it, and however the test ends, its tunables are put back (restore_ksm.py).
"""

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys

from tests.support import restore_ksm
from tests.support.restore_ksm import KSM
from tests.support.waiting import wait_until

COUNTERS = (
    "full_scans",
    "pages_scanned",
    "pages_shared",
    "pages_sharing",
    "pages_unshared",
    "pages_volatile",
    "pages_skipped",
    "ksm_zero_pages",
    "stable_node_chains",
    "stable_node_dups",
    "general_profit",
)
_SECONDS = 30.0


class KernelKsm:
    """KSM of the running kernel, for one user at a time; a context manager."""

    def __init__(self, **tunables):
        assert os.geteuid() == 0, "the kernel's KSM is steered by root only"
        assert KSM.is_dir(), "this kernel has no KSM"
        self._tunables = tunables

    def __enter__(self):
        self._lock = open(KSM / "run")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert self.read("pages_shared") == 0, "something else uses KSM"
            self._guard = _start_guard(tunables(), self._lock)
        except BaseException:
            self._lock.close()
            raise
        try:
            self.write("run", 2)
            for name, value in self._tunables.items():
                self.write(name, value)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.close()
        code = self._guard.wait(_SECONDS)
        self._guard.stdout.close()
        self._lock.close()
        assert code == 0, "the tunables of KSM were not put back"

    def read(self, name):
        text = (KSM / name).read_text().strip()
        if name == "advisor_mode":
            return int("[none]" not in text)
        return int(text)

    def write(self, name, value):
        """Store a value; OSError as the kernel gives it."""
        (KSM / name).write_text(f"{value}\n")

    def counters(self):
        return {name: self.read(name) for name in COUNTERS}

    def wait_full_scans(self, n, timeout=60.0):
        goal = self.read("full_scans") + n
        wait_until(lambda: self.read("full_scans") >= goal, timeout, f"full scan {goal}")


def tunables():
    """Return every tunable that there is, as text."""
    writable = (path for path in sorted(KSM.iterdir()) if path.stat().st_mode & 0o200)
    return {path.name: _chosen(path.read_text()) for path in writable}


def _chosen(text):
    """Return a value; of a list of words the one in brackets."""
    found = re.search(r"\[(.*)\]", text)
    return found[1] if found else text.strip()


def _start_guard(saved, lock):
    """Start the process that puts everything back; it holds the lock until then."""
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", restore_ksm.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[lock.fileno()],
        start_new_session=True,
    )
    guard.stdin.write(json.dumps(saved) + "\n")
    guard.stdin.flush()
    assert guard.stdout.readline() == "ready\n"
    return guard


def process_files(proc, pid):
    """Return the text of the files of a process under a proc folder."""
    return {name: (proc / str(pid) / name).read_text() for name in ("ksm_stat", "ksm_merging_pages")}
