"""How much more memory there is: looked at before anything that needs some, so that nothing fails halfway."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def memory_bytes() -> int:
    """Return what this process could still take of memory and swap: the machine's and its cgroup's."""
    fields = {}
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, value = line.split(":")
            fields[name] = int(value.split()[0]) * 1024
    return min(fields["MemAvailable"] + fields["SwapFree"], _cgroup_bytes())


def _cgroup_bytes() -> int:
    """Return the room that the tightest memory.max above this process leaves (cgroup v2)."""
    room = sys.maxsize
    with open("/proc/self/cgroup", encoding="utf-8") as lines:
        paths = [line.rstrip("\n")[4:] for line in lines if line.startswith("0::/")]
    for path in paths:
        folder = Path("/sys/fs/cgroup") / path
        for group in (folder, *folder.parents):
            try:
                limit = (group / "memory.max").read_text()
                used = int((group / "memory.current").read_text())
            except FileNotFoundError:
                break
            if limit != "max\n":
                room = min(room, max(int(limit) - used, 0))
    return room


def object_bytes(fd: int) -> int:
    """Return how much more an object could hold: memory, and its file system if that has a limit."""
    room = memory_bytes()
    system = os.fstatvfs(fd)
    return min(room, system.f_bavail * system.f_frsize) if system.f_blocks else room


def shm_bytes() -> int:
    """Return the room left in the file system of POSIX shared memory; 0 where there is none."""
    try:
        system = os.statvfs("/dev/shm")
    except FileNotFoundError:
        return 0
    return system.f_bavail * system.f_frsize
