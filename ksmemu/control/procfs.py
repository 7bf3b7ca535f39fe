"""`proc/PID/ksm_stat` and `proc/PID/ksm_merging_pages` of each worker, in the kernel's format.

A file is replaced as a whole when a figure changes: open it anew to read it anew.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ksmemu.units import PAGE_SIZE

log = logging.getLogger(__name__)

RMAP_ITEM_BYTES = 64
"""sizeof(struct ksm_rmap_item): profit is counted as the kernel counts it."""
_MODE = 0o400


@dataclass(frozen=True, slots=True)
class Process:
    """Figures of one process, named as the kernel names them."""

    rmap_items: int
    zero_pages: int
    merging_pages: int
    merge_any: bool
    mergeable: bool

    def __add__(self, other: Process) -> Process:
        """Return the figures of both together."""
        return Process(
            self.rmap_items + other.rmap_items,
            self.zero_pages + other.zero_pages,
            self.merging_pages + other.merging_pages,
            self.merge_any or other.merge_any,
            self.mergeable or other.mergeable,
        )

    def stat(self) -> str:
        """Return the text of ksm_stat."""
        profit = (self.merging_pages + self.zero_pages) * PAGE_SIZE - self.rmap_items * RMAP_ITEM_BYTES
        return (
            f"ksm_rmap_items {self.rmap_items}\n"
            f"ksm_zero_pages {self.zero_pages}\n"
            f"ksm_merging_pages {self.merging_pages}\n"
            f"ksm_process_profit {profit}\n"
            f"ksm_merge_any: {'yes' if self.merge_any else 'no'}\n"
            f"ksm_mergeable: {'yes' if self.mergeable else 'no'}\n"
        )


class ProcDirectory:
    """The `proc` folder of an instance. Runs in: ksmd."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shown: dict[int, Process] = {}

    def publish(self, processes: Mapping[int, Process]) -> None:
        """Show these processes, and no others; what cannot be written now is written the next time."""
        for pid in self._shown.keys() - processes.keys():
            shutil.rmtree(self._folder / str(pid), ignore_errors=True)
            del self._shown[pid]
        for pid, process in processes.items():
            if self._shown.get(pid) == process:
                continue
            try:
                self._write(pid, "ksm_stat", process.stat())
                self._write(pid, "ksm_merging_pages", f"{process.merging_pages}\n")
            except OSError as error:  # no descriptor or no room left: figures are not worth an end
                log.info("the figures of pid %d are late: %s", pid, error.strerror)
            else:
                self._shown[pid] = process

    def _write(self, pid: int, name: str, text: str) -> None:
        folder = self._folder / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{name}"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
            os.fchmod(fd, _MODE)
        new.replace(folder / name)
