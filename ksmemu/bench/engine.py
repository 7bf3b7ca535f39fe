"""The two engines behind one face: what a workload may ask of them."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ksmemu.bench import kernel_ksm
from ksmemu.bench.content import Content
from ksmemu.bench.worker import work
from ksmemu.control.ksmd import Ksmd
from ksmemu.crew import Crew
from ksmemu.errors import KsmError

KERNEL, KSMEMU = "kernel", "ksmemu"
_DEADLINE_SECONDS = 180.0
_POLL_SECONDS = 0.002


class Ksm(Protocol):
    """Control files: those of a ksmd of ours, or the kernel's."""

    def read(self, name: str) -> int:
        """Return the value of a file."""

    def write(self, name: str, value: int) -> None:
        """Store a value; returns when it was obeyed."""

    def wait_full_scans(self, n: int, timeout: float = ...) -> None:
        """Return once n more full scans have ended."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One of the two, started for one workload.

    Attributes:
        name: KERNEL or KSMEMU.
        ksm: its control files.
        pid: the process that scans.
        directory: of a ksmd of ours.
    """

    name: str
    ksm: Ksm
    pid: int
    directory: Path | None = None

    @contextlib.contextmanager
    def crew(self, contents: Sequence[Content]) -> Iterator[Crew]:
        """Yield workers whose memory is filled; afterwards it is checked to hold what it held."""
        with Crew(work, [(self.directory, content) for content in contents]) as crew:
            crew.answers()
            yield crew
            if not all(crew.ask(("is_intact",))):
                raise KsmError(errno.EIO, f"{self.name}: a worker's memory is not what it was")

    def cpu_seconds(self, crew: Crew) -> float:
        """Return the CPU time that the scanner and all workers have used so far.

        Workers wait for us while it is measured: what they use, their agents do.
        """
        return sum(map(_cpu_seconds, [self.pid, *crew.pids]))

    def run(self) -> None:
        """Let it scan."""
        self.ksm.write("run", 1)

    def until(self, name: str, goal: int) -> None:
        """Return when a counter has reached its goal."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while (now := self.ksm.read(name)) < goal:
            if time.monotonic() > deadline:
                raise KsmError(errno.ETIMEDOUT, f"{self.name}: {name} is {now}, not yet {goal}")
            time.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def started(name: str, **tunables: int) -> Iterator[Engine]:
    """Yield an engine that does not scan yet; what is not named has the kernel's default."""
    if name == KERNEL:
        with kernel_ksm.KernelKsm(**_DEFAULTS | tunables) as ksm:
            yield Engine(name, ksm, kernel_ksm.scanner_pid())
    else:
        with tempfile.TemporaryDirectory(prefix="ksmemu-bench-") as folder:
            with Ksmd(Path(folder, "instance"), **tunables) as ksmd:
                yield Engine(name, ksmd, ksmd.pid, ksmd.directory)


_DEFAULTS: dict[str, int | str] = {
    "advisor_mode": "none",
    "smart_scan": 1,
    "max_page_sharing": 256,
    "merge_across_nodes": 1,
    "use_zero_pages": 0,
    "stable_node_chains_prune_millisecs": 2000,
}
"""Of the kernel; ours starts with them."""


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of all threads of a process that are alive; schedstat counts nanoseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9
