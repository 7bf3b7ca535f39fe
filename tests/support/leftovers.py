"""What a process holds that ksmemu could have left: descriptors, threads, mappings of shared objects."""

import os
import re
from collections import Counter

import ksmemu  # noqa: F401 - numpy starts threads when it is imported: before the first count
from tests.support import procmaps


def of_worker(state):
    """Return what this worker holds, and the number of mappings of its space."""
    space = getattr(state, "space", None)
    found = of_process(os.getpid())
    if space is not None and "closed" not in repr(space):
        start, end = space.start, space.start + space.size
        parts = procmaps.mappings(os.getpid(), start, end)
        if any(part.inode for part in parts):
            found["mappings of the space"] = len(parts)
    return found


def of_ksmd(ksmd):
    return of_process(ksmd.pid)


def of_busy_ksmd(ksmd):
    """The same, but for threads: some of them begin when there is much to read."""
    found = of_process(ksmd.pid)
    del found["threads"]
    return found


def of_process(pid):
    kinds = (re.sub(r":\[\d+\]|(?<=/dev/shm/)#\d+", "", what) for what in procmaps.descriptors(pid).values())
    shared = [m for m in procmaps.mappings(pid) if "/dev/shm/" in m.path or "memfd:" in m.path]
    return {
        "descriptors": Counter(kind for kind in kinds if not kind.startswith("/proc/")),
        "threads": procmaps.threads(pid),
        "shared mappings": len(shared),
        "names in /dev/shm": procmaps.shm_names(),
    }


def counts(pid):
    """Return how much a process holds: descriptors, threads, mappings of any kind, bytes of its own."""
    return {
        "descriptors": len(procmaps.descriptors(pid)),
        "threads": procmaps.threads(pid),
        "mappings": len(procmaps.mappings(pid)),
        "bytes": procmaps.smaps_rollup(pid)["Anonymous"],
    }
