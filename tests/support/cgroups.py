"""Control groups of a test's own, of version 1 or 2, for what LTP runs inside one. Needs root."""

import contextlib
import errno
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

_V1, _V2 = Path("/sys/fs/cgroup/{}"), Path("/sys/fs/cgroup")


class Group:
    """One group of one controller ("memory", "cpuset"); below the root, removed by close()."""

    def __init__(self, controller, name):
        root = Path(str(_V1).format(controller))
        self.is_v1 = (root / "cgroup.procs").exists()
        self._enabled = None
        if not self.is_v1:
            root = _V2
            self._enable(controller)
        self.root = root
        self.folder = root / name
        self.folder.mkdir()

    def _enable(self, controller):
        """Version 2: let children of the root have the controller."""
        available, control = _V2 / "cgroup.controllers", _V2 / "cgroup.subtree_control"
        if not available.exists() or controller not in available.read_text().split():
            pytest.skip(f"the kernel offers no {controller} controller here")
        if controller not in control.read_text().split():
            control.write_text(f"+{controller}")
            self._enabled = control, f"-{controller}"

    def write(self, name, value):
        (self.folder / name).write_text(str(value))

    def read(self, name):
        return (self.folder / name).read_text()

    def add(self, pid):
        self.write("cgroup.procs", pid)

    def members(self):
        return {int(pid) for pid in self.read("cgroup.procs").split()}

    def close(self):
        """Remove the group, as soon as its processes are dead."""
        wait_until(self._is_removed, what="the end of a control group")
        if self._enabled:
            control, back = self._enabled
            control.write_text(back)

    def _is_removed(self):
        try:
            self.folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True


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
def cpuset_group(name, cpu):
    """Yield a group whose processes run on one processor, with the memory of every node."""
    with contextlib.closing(Group("cpuset", name)) as group:
        group.write("cpuset.cpus", cpu)
        if group.is_v1:  # in version 2 it is inherited
            group.write("cpuset.mems", (group.root / "cpuset.mems").read_text())
        yield group
