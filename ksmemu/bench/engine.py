"""The two engines behind one face: what a workload may ask of them."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ksmemu.bench import kernel_ksm, procfs
from ksmemu.bench.content import Content
from ksmemu.bench.worker import work
from ksmemu.control.ksmd import Ksmd
from ksmemu.crew import Crew
from ksmemu.errors import KsmError
from ksmemu.policy import DEFAULT

KERNEL, KSMEMU = "kernel", "ksmemu"
MAX_PAGE_SHARING = 256
_DEADLINE_SECONDS = 120.0
_POLL_SECONDS = 0.002

_DEFAULTS: dict[str, int | str] = {
    "advisor_mode": "none",
    "smart_scan": 1,
    "max_page_sharing": MAX_PAGE_SHARING,
    "merge_across_nodes": 1,
    "use_zero_pages": 0,
    "stable_node_chains_prune_millisecs": 2000,
}
"""Of the kernel; ours starts with them."""


class Ksm(Protocol):
    """Control files: those of a ksmd of ours, or the kernel's."""

    def read(self, name: str) -> int:
        """Return the value of a file."""

    def write(self, name: str, value: int) -> None:
        """Store a value; returns when it was obeyed."""

    def counters(self) -> dict[str, int]:
        """Return every counter."""

    def wait_full_scans(self, n: int, timeout: float = ...) -> None:
        """Return once n more full scans have ended."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One of the two, started for one workload.

    Attributes:
        name: KERNEL, KSMEMU, or the policy that ksmemu goes by instead of its default.
        ksm: its control files.
        pid: the process that scans.
        directory: of a ksmd of ours.
    """

    name: str
    ksm: Ksm
    pid: int
    directory: Path | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is ksmemu."""
        return self.name != KERNEL

    @contextlib.contextmanager
    def crew(self, contents: Sequence[Content]) -> Iterator[Crew]:
        """Yield workers whose memory is filled; afterwards it is checked to hold what it held."""
        with Crew(work, [(self.directory, content) for content in contents]) as crew:
            crew.answers()
            yield crew
            if not all(crew.ask(("is_intact",))):
                raise KsmError(errno.EIO, f"{self.name}: a worker's memory is not what it was")

    def cpu_seconds(self, crew: Crew) -> float:
        """Return the CPU time that the scanner and the agents of all workers have used so far."""
        scanner = procfs.cpu_seconds(self.pid)
        return scanner + sum(procfs.cpu_seconds(pid, but_main=True) for pid in crew.pids)

    def memory_bytes(self, crew: Crew) -> int:
        """Return the memory that the workers' pages take of the host: ours also in own objects and pools."""
        if self.is_ours:
            private = sum(procfs.rollup_bytes(pid, "Pss_Anon") for pid in crew.pids)
            return private + procfs.shared_object_bytes(self.pid)
        return sum(procfs.rollup_bytes(pid, "Pss") for pid in crew.pids)

    def store_run(self, value: int) -> None:
        """Store `run`; with 1 it begins to scan."""
        self.ksm.write("run", value)

    def is_over_budget(self) -> bool:
        """Whether pages stay unmerged for want of mappings."""
        return self.is_ours and self.ksm.read("pages_over_budget") > 0

    def until(self, reached: Callable[[], bool], what: str) -> None:
        """Return when something has become true.

        Raises:
            KsmError: ETIMEDOUT: the text says what has not, and names the counters.
        """
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not reached():
            if time.monotonic() > deadline:
                counters = " ".join(f"{name}={value}" for name, value in self.ksm.counters().items() if value)
                raise KsmError(
                    errno.ETIMEDOUT,
                    f"{self.name}: not yet {what} after {_DEADLINE_SECONDS:.0f} s: {counters}",
                )
            time.sleep(_POLL_SECONDS)

    def until_at_least(self, name: str, goal: int) -> None:
        """Return when a counter has reached its goal; KsmError as until()."""
        self.until(lambda: self.ksm.read(name) >= goal, f"{name} {goal}")


@contextlib.contextmanager
def started(name: str, **tunables: int) -> Iterator[Engine]:
    """Yield an engine that does not scan yet; what is not named has the kernel's default."""
    if name == KERNEL:
        with kernel_ksm.KernelKsm(**_DEFAULTS | tunables) as ksm:
            yield Engine(name, ksm, kernel_ksm.scanner_pid())
    else:
        with (
            tempfile.TemporaryDirectory(prefix="ksmemu-bench-") as folder,
            Ksmd(Path(folder, "instance"), policy=DEFAULT if name == KSMEMU else name) as ksmd,
        ):
            for tunable, value in tunables.items():
                ksmd.write(tunable, value)
            yield Engine(name, ksmd, ksmd.pid, ksmd.directory)
