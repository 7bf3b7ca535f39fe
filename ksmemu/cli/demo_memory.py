"""Memory in use, as the kernel counts it: what `ksmemu demo` compares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of one demo at one moment, in bytes."""

    own: int
    """st_blocks of the workers' own objects."""
    pool: int
    """st_blocks of the pool."""
    private: int
    """Pss_Anon of workers and ksmd; the copies that the kernel made on write are here."""
    host: int
    """Shmem + AnonPages of the whole machine: the outsider's view."""

    @property
    def used(self) -> int:
        """What this demo costs the machine."""
        return self.own + self.pool + self.private


def measure(own: int, pool: int, pids: Iterable[int]) -> Memory:
    """Return the memory in use now; own and pool were asked of the processes that hold them."""
    private = sum(_kibibytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss_Anon") for pid in pids)
    return Memory(own, pool, private, _kibibytes(Path("/proc/meminfo"), "Shmem", "AnonPages"))


def _kibibytes(path: Path, *names: str) -> int:
    """Return the sum of some `Name:  N kB` lines, in bytes."""
    fields = (line.split() for line in path.read_text().splitlines())
    return sum(int(field[1]) * 1024 for field in fields if field[0].rstrip(":") in names)
