"""The kernel's own KSM with the face of a Ksmd: read, write, counters, wait for full scans.

Whatever is done to it, and however its user ends, its tunables are put back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from pathlib import Path
from typing import Self, TextIO

from ksmemu.bench.guard import Store, guarded
from ksmemu.control.files import LINUX
from ksmemu.errors import KernelLacksError, KsmError

KSM = Path("/sys/kernel/mm/ksm")
_UNMERGE = 2
_FIRST, _LAST = "advisor_mode", "run"
"""The advisor refuses pages_to_scan, and changes it when it comes or goes."""
_POLL_SECONDS = 0.002


def is_there() -> bool:
    """Whether this process may steer it."""
    return os.geteuid() == 0 and KSM.is_dir()


class KernelKsm:
    """KSM of the running kernel, for one user at a time; a context manager.

    Args:
        tunables: stored when the context is entered, after unmerging everything.
    """

    def __init__(self, **tunables: int | str) -> None:
        self._tunables = tunables
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Take it.

        Raises:
            KernelLacksError: it is not there, or not ours to steer.
            BlockingIOError: somebody else has it. KsmError: EBUSY: something is merged already.
            OSError: a tunable was refused; everything is as it was.
        """
        if not is_there():
            raise KernelLacksError("the kernel's own KSM needs CONFIG_KSM, and root to steer it")
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context((KSM / "run").open())
            _take(lock)
            if self.read("pages_shared"):
                raise KsmError(errno.EBUSY, "something else uses the kernel's KSM")
            stack.enter_context(guarded(_stores(tunables()), lock.fileno()))
            self.write("run", _UNMERGE)
            for name, value in self._tunables.items():
                self.write(name, value)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str) -> int:
        """Return the value of a file; of advisor_mode 0 or 1."""
        text = (KSM / name).read_text().strip()
        return int("[none]" not in text) if name == "advisor_mode" else int(text)

    def write(self, name: str, value: int | str) -> None:
        """Store a value; OSError as the kernel gives it."""
        (KSM / name).write_text(f"{value}\n")

    def counters(self) -> dict[str, int]:
        """Return every counter."""
        return {name: self.read(name) for name in LINUX.counters}

    def wait_full_scans(self, n: int, timeout: float = 60.0) -> None:
        """Return once n more full scans have ended; TimeoutError after timeout seconds."""
        goal = self.read("full_scans") + n
        deadline = time.monotonic() + timeout
        while self.read("full_scans") < goal:
            if time.monotonic() > deadline:
                raise TimeoutError(f"full scan {goal} of the kernel has not ended: {self.counters()}")
            time.sleep(_POLL_SECONDS)


def _take(lock: TextIO) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(errno.EAGAIN, "another benchmark or test has the kernel's KSM") from None


def tunables() -> dict[str, str]:
    """Return every tunable that there is, as text."""
    writable = (path for path in sorted(KSM.iterdir()) if path.stat().st_mode & 0o200)
    return {path.name: _chosen(path.read_text()) for path in writable}


def scanner_pid() -> int:
    """Return the pid of the kernel's ksmd; KernelLacksError where it cannot be seen (a pid namespace)."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text() == "ksmd\n" and not (folder / "cmdline").read_bytes():
                return int(folder.name)
    raise KernelLacksError("the kernel's ksmd is not among the processes that can be seen here")


def _chosen(text: str) -> str:
    """Return a value; of a list of words the one in brackets."""
    found = re.search(r"\[(.*)\]", text)
    return found[1] if found else text.strip()


def _stores(saved: dict[str, str]) -> list[Store]:
    """Return what unmerges everything and puts every tunable back, `run` last."""
    rest = [(name, text) for name, text in saved.items() if name not in {_FIRST, _LAST}]
    stores = [(_LAST, str(_UNMERGE)), (_FIRST, "none"), *rest]
    if saved[_FIRST] != "none":
        stores.append((_FIRST, saved[_FIRST]))
    stores.append((_LAST, saved[_LAST]))
    return [(str(KSM / name), f"{text}\n") for name, text in stores]
