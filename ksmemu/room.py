"""How much more memory there is: looked at before anything that needs some, so that nothing fails halfway."""

from __future__ import annotations

import os
from pathlib import Path


def memory_bytes() -> int:
    """Return what this process could still take of memory and swap: the machine's and its cgroup's."""
    fields = {}
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            name, value = line.split(":")
            fields[name] = int(value.split()[0]) * 1024
    return min([fields["MemAvailable"] + fields["SwapFree"], *cgroups("self").values()])


def cgroups(pid: int | str) -> dict[Path, int]:
    """Return the cgroups with a memory limit that hold for a process, and the room in each (version 1 or 2).

    None of a process that is gone.
    """
    found = {}
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as lines:
            groups = [line.rstrip("\n").split(":", 2) for line in lines]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    for number, controllers, path in groups:
        if number == "0":
            root, limit, used = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit, used = (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        folder = Path(root + path)
        for group in (folder, *folder.parents):
            if not (group / limit).exists():
                break
            allowed = (group / limit).read_text()
            if allowed != "max\n":
                found[group] = max(int(allowed) - int((group / used).read_text()), 0)
    return found


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
