"""Control groups of a test's own, of version 1 or 2, for what LTP runs inside one. Needs root."""

import contextlib
import errno
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

_ROOT = Path("/sys/fs/cgroup")


class Group:
    """A group with one controller ("memory", "cpuset"), below the root or below another group of a test.

    In version 1 each controller has groups of its own; in version 2 a process is in one group, and what holds
    above it holds for it.
    """

    def __init__(self, controller, name, below=None):
        self.root = _ROOT / controller
        self.is_v1 = (self.root / "cgroup.procs").exists()
        self._below, self._undo = below, []
        if not self.is_v1:
            self.root = _ROOT
            self._enable(controller, _ROOT)
            if below is not None:
                self._enable(controller, below.folder)
        self.folder = (self.root if below is None or self.is_v1 else below.folder) / name
        self.folder.mkdir()

    def _enable(self, controller, folder):
        """Version 2: let children of a group have the controller."""
        if controller not in _words(folder / "cgroup.controllers"):
            pytest.skip(f"the kernel offers no {controller} controller here")
        control = folder / "cgroup.subtree_control"
        if controller not in _words(control):
            control.write_text(f"+{controller}")
            self._undo.insert(0, (control, f"-{controller}"))

    def write(self, name, value):
        (self.folder / name).write_text(str(value))

    def read(self, name):
        return (self.folder / name).read_text()

    def add(self, pid):
        if self.is_v1 and self._below is not None:
            self._below.add(pid)
        self.write("cgroup.procs", pid)

    def members(self):
        return {int(pid) for pid in self.read("cgroup.procs").split()}

    def close(self):
        """Remove the group, as soon as its processes are dead."""
        wait_until(self._is_removed, what="the end of a control group")
        for control, back in self._undo:
            control.write_text(back)

    def _is_removed(self):
        try:
            self.folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True


def _words(file):
    return file.read_text().split() if file.exists() else []


@contextlib.contextmanager
def memory_group(name, limit):
    """Yield a group that may hold so many bytes."""
    with contextlib.closing(Group("memory", name)) as group:
        group.write("memory.limit_in_bytes" if group.is_v1 else "memory.max", limit)
        yield group


def times_at_limit(group):
    """Return how often a memory group was at its limit."""
    if group.is_v1:
        return int(group.read("memory.failcnt"))
    events = dict(line.split() for line in group.read("memory.events").splitlines())
    return int(events["max"])


@contextlib.contextmanager
def cpuset_group(name, cpu, below):
    """Yield a group whose processes run on one processor, with memory of every node, and as below says."""
    with contextlib.closing(Group("cpuset", name, below)) as group:
        group.write("cpuset.cpus", cpu)
        if group.is_v1:  # in version 2 it is inherited
            group.write("cpuset.mems", (group.root / "cpuset.mems").read_text())
        yield group
