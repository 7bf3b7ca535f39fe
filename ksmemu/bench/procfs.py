"""What processes cost, as the kernel tells it under /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_GONE = (FileNotFoundError, ProcessLookupError)


def cpu_seconds(pid: int, *, but_main: bool = False) -> float:
    """Return the CPU time of the threads of a process that are alive, with or without the main thread."""
    # schedstat begins with nanoseconds on the CPU
    return (
        sum(
            int(text.split()[0])
            for tid, text in _of_threads(pid, "schedstat")
            if not (but_main and tid == pid)
        )
        / 1e9
    )


def voluntary_switches(pid: int) -> int:
    """Return how often threads of a process went to sleep: as often they were woken."""
    return sum(_field(text, "voluntary_ctxt_switches") for _, text in _of_threads(pid, "status"))


def rollup_bytes(pid: int, name: str) -> int:
    """Return a sum over all mappings of a process, as smaps_rollup has it."""
    return 1024 * _field(Path(f"/proc/{pid}/smaps_rollup").read_text(), name)


def private_bytes(pid: int) -> int:
    """Return the memory that a process has for itself."""
    return 1024 * _field(Path(f"/proc/{pid}/status").read_text(), "RssAnon")


def shared_object_bytes(pid: int) -> int:
    """Return the memory of the shared-memory objects that a process has open, however often."""
    found = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(*_GONE):
            if str(descriptor.readlink()).startswith(("/dev/shm/", "/memfd:")):
                stat = descriptor.stat()
                found[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


def _of_threads(pid: int, name: str) -> Iterator[tuple[int, str]]:
    for tid in map(int, os.listdir(f"/proc/{pid}/task")):
        with contextlib.suppress(*_GONE):
            yield tid, Path(f"/proc/{pid}/task/{tid}/{name}").read_text()


def _field(text: str, name: str) -> int:
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name}:"))
