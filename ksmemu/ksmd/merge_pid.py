"""merge_pid and unmerge_pid: merge processes that never asked for it, from outside.

    echo PID > merge_pid ─▶ merge() ─ SIGURG ─▶ the process connects and asks ─▶ answer(): merge, or not
                                                it advises its own memory ──▶ closes: it has obeyed

Only code inside a process can change that process's mappings, and one that never advised has no thread and
no socket of ours to be reached by. So it is woken by a signal that a process which is none of ours ignores,
and asks for itself; what it may refuse is its own affair.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from ksmemu import wire
from ksmemu.ksmd import connection
from ksmemu.wire import WireError

log = logging.getLogger(__name__)

_PIDFD_SIGNAL_THREAD = 1 << 0
"""Source: <linux/pidfd.h>, Linux 6.9."""

_CORE = "/_core."
"""What a process that has address spaces maps."""


class MergePid:
    """The processes that are to be merged from outside. Runs in: ksmd, one thread.

    Args:
        listen_to: call a function whenever a descriptor has something to say.
        ignore: no longer.
        all_users: processes of every user may be named, not only of the one who runs this ksmd.
    """

    def __init__(
        self,
        listen_to: Callable[[int, Callable[[], None]], None],
        ignore: Callable[[int], None],
        *,
        all_users: bool,
    ) -> None:
        self._listen_to = listen_to
        self._ignore = ignore
        self._all_users = all_users
        self._pidfds: dict[int, int] = {}
        self._obeying: dict[int, socket.socket] = {}
        """Connections, by pid, of those who have asked and not finished yet."""
        self._owing: set[int] = set()
        """Those who were told to unmerge and have not done it yet."""

    def show(self) -> str:
        """Return the pids, ascending, as reading either file lists them."""
        return " ".join(str(pid) for pid in sorted(self._pidfds))

    def merge(self, pid: int) -> None:
        """Merge all memory of a process, also what it maps later; errors as _open()."""
        if pid not in self._pidfds:
            pidfd, uid = _open(pid, all_users=self._all_users)
            log.info("merge_pid: pid %d of uid %d is to be merged", pid, uid)
            self._pidfds[pid] = pidfd
            self._listen_to(pidfd, lambda: self._drop(pid))
        _wake(self._pidfds[pid])

    def unmerge(self, pid: int) -> None:
        """Undo merge(): what the process itself has advised stays; errors as _open().

        It is done when owes(pid) is false.
        """
        found, uid = _open(pid, all_users=self._all_users)
        os.close(found)
        pidfd = self._pidfds.get(pid)
        if pidfd is not None:
            log.info("unmerge_pid: pid %d of uid %d is to be unmerged", pid, uid)
            self._owing.add(pid)
            _wake(pidfd)

    def owes(self, pid: int) -> bool:
        """Whether a process was told to unmerge and has not finished."""
        return pid in self._owing

    def is_obeying(self, pid: int) -> bool:
        """Whether a process has asked what to do and is at it."""
        return pid in self._obeying

    def refused(self, pid: int) -> None:
        """A process has said that nobody else may merge it."""
        if pid in self._pidfds:
            log.warning("merge_pid: pid %d refuses", pid)
            self._drop(pid)

    def answer(self, control: socket.socket, body: dict[str, object]) -> None:
        """Tell a process that asks what it is to do; it obeys, and then closes the connection.

        Raises:
            WireError, OSError: it asked for something else; the connection is the caller's still.
        """
        if body != {"merge_pid": wire.VERSION, "refuses": body.get("refuses") is True}:
            raise WireError("a question about merge_pid that is none")
        pid, _ = connection.peer(control)
        if body["refuses"]:
            self.refused(pid)
        is_wanted = pid in self._pidfds and pid not in self._owing
        wire.send_control(control, {"merge": is_wanted})
        if pid in self._obeying:
            self._hang_up(pid)
        self._obeying[pid] = control
        self._listen_to(control.fileno(), lambda: self._obeyed(pid, was_wanted=is_wanted))

    def _obeyed(self, pid: int, *, was_wanted: bool) -> None:
        self._hang_up(pid)
        if pid in self._owing and not was_wanted:
            self._drop(pid)

    def _hang_up(self, pid: int) -> None:
        control = self._obeying.pop(pid)
        self._ignore(control.fileno())
        control.close()

    def _drop(self, pid: int) -> None:
        """Forget a process: it is dead, it refuses, or it is unmerged."""
        self._owing.discard(pid)
        pidfd = self._pidfds.pop(pid, None)
        if pidfd is not None:
            self._ignore(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Close every descriptor; what was advised stays so."""
        for pid in list(self._obeying):
            self._hang_up(pid)
        for pid in list(self._pidfds):
            self._drop(pid)


def _wake(pidfd: int) -> None:
    """Let the process ask. Its main thread must be interrupted: only that one runs a handler in Python."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGURG, None, _PIDFD_SIGNAL_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Before 6.9 any thread may get it; then it asks when its main thread goes on by itself.
        signal.pidfd_send_signal(pidfd, signal.SIGURG)


def _open(pid: int, *, all_users: bool) -> tuple[int, int]:
    """Return a pidfd and the uid of a process that has an address space of ours.

    Raises:
        OSError: ESRCH: no such process, or it has none. EPERM: it is of a user who is not served here, or
            runs with the rights of several.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):
        raise OSError(errno.ESRCH, f"no process {pid}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # 0, or a thread of a process
            raise
        raise OSError(errno.ESRCH, f"no process {pid}") from None
    try:
        return pidfd, _uid_of(pid, all_users=all_users)
    except BaseException:
        os.close(pidfd)
        raise


def _uid_of(pid: int, *, all_users: bool) -> int:
    """Return the uid of a process that is ours; errors as _open()."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        uids = sorted({int(uid) for uid in status["Uid"].split()})
        if len(uids) > 1 or (uids != [os.geteuid()] and not all_users):
            raise OSError(errno.EPERM, f"pid {pid} is of uid {', '.join(map(str, uids))}")
        catches = int(status["SigCgt"], 16) >> (signal.SIGURG - 1) & 1
        if not catches or _CORE not in Path(f"/proc/{pid}/maps").read_text(errors="replace"):
            raise OSError(errno.ESRCH, f"pid {pid} has no address space of ours")
    except (FileNotFoundError, ProcessLookupError):
        raise OSError(errno.ESRCH, f"no process {pid}") from None
    return uids[0]
