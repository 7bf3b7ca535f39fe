"""A ksmd seen from outside: start it, steer it and read it through its control files."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from ksmemu import policy
from ksmemu.control.files import files_of
from ksmemu.control.launch import checked, last_log_line, launch
from ksmemu.control.setup import Setup
from ksmemu.errors import KsmError, NotRunningError
from ksmemu.instance import Instance

T = TypeVar("T")

_STORE_SECONDS = 60.0
"""A store is taken in microseconds; run=2 may be answered only when everything is unmerged."""
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.002
_GONE = (errno.ENOENT, errno.ENOTCONN, errno.ECONNABORTED)
"""What control files say whose ksmd has gone."""
_DEATH_SECONDS = 0.2
"""A process lets go of its files a moment before it has ended."""


class RunningKsmd:
    """A ksmd that runs; leaving the context forgets it and does not stop it.

    Every method raises KsmError (ESRCH) when it finds that ksmd has gone.
    """

    def __init__(self, instance: Instance, pid: int) -> None:
        self._instance = instance
        self._pidfd = os.pidfd_open(pid)
        self.pid = pid
        self.files = files_of(instance)

    @property
    def directory(self) -> Path:
        """The instance directory."""
        return self._instance.directory

    @property
    def control(self) -> Path:
        """The control files, under the kernel's names."""
        return self._instance.control

    def read(self, name: str) -> int:
        """Return the value of a tunable, of a counter, or of a counter of ksmemu's own."""
        tunables = self.files.tunables
        return self._read(name, tunables[name].read if name in tunables else int)

    def merged_pids(self) -> list[int]:
        """Return the processes that merge_pid named, ascending; an instance of 2009 tells nobody."""
        return self._read("merge_pid", lambda text: [int(pid) for pid in text.split()])

    def _read(self, name: str, value: Callable[[str], T]) -> T:
        folder = self._instance.stats if name in self.files.stats else self._instance.control
        while True:
            try:
                return value((folder / name).read_text().rstrip("\n"))
            except ValueError:  # another client has stored something that ksmd has not taken yet
                self._require_alive()
                time.sleep(_POLL_SECONDS)
            except OSError as error:
                self._notice_death(error)
                raise

    def write(self, name: str, value: int) -> None:
        """Store a tunable, or a pid into merge_pid or unmerge_pid, and return once ksmd obeys it.

        Raises:
            ValueError: an unknown tunable or a value it never has; nothing was stored.
            KsmError: ksmd refused it: the old value, or one that ksmd chose, is in force. FUSE gives the
                kernel's errno; where the control files are plain files it is EINVAL, and what unmerge_pid
                refuses is no error.
        """
        if name in self.files.actions:
            self._act(name, value)
            return
        value = checked(self.files, name, value)
        text = self.files.tunables[name].word(value)
        self._store(name, text)
        if self.read(name) != value:
            raise self._refused(name, text, errno.EINVAL)

    def _act(self, name: str, pid: int) -> None:
        if pid < 0:
            raise ValueError(f"{name}={pid}: must be a decimal number")
        self._store(name, str(pid))
        if self.files.refuses and name == "merge_pid" and pid not in self.merged_pids():
            raise self._refused(name, str(pid), errno.EINVAL)

    def _store(self, name: str, text: str) -> None:
        """Write a text and return when ksmd has taken it."""
        path = self._instance.control / name
        try:
            is_mounted = self._instance.is_mounted
            with path.open("r+b", buffering=0) as file:
                # Every store ends before a NUL. In a plain file it shows until ksmd has taken this one.
                file.write(f"{text}\n\0".encode())
        except OSError as refusal:
            self._notice_death(refusal)
            raise self._refused(name, text, refusal.errno or errno.EIO) from None
        if not is_mounted:
            self._await_store(name, lambda: _is_taken(path.read_bytes()))

    def counters(self) -> dict[str, int]:
        """Return every counter that the kernel has too."""
        return {name: self.read(name) for name in self.files.counters}

    def stats(self) -> dict[str, int]:
        """Return every counter of ksmemu's own."""
        return {name: self.read(name) for name in self.files.stats}

    def wait_full_scans(self, n: int, timeout: float = 60.0) -> None:
        """Return once n more full scans have ended.

        Args:
            n: 2 is the least after which a page that was quiet all the time has been merged.
            timeout: seconds.
        Raises:
            TimeoutError: the text holds the counters.
        """
        goal = self.read("full_scans") + n
        deadline = time.monotonic() + timeout
        while (now := self.read("full_scans")) < goal:
            self._require_alive()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"full_scans is {now}, not yet {goal}, after {timeout:g} s:"
                    f" run={self.read('run')} {self.counters()}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop ksmd (SIGTERM, after a while SIGKILL) and return when it has gone.

        Workers keep what is merged.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)
            if self._has_ended(_STOP_SECONDS):
                return

    def close(self) -> None:
        """Forget this ksmd; it goes on."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _await_store(self, name: str, is_taken: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _STORE_SECONDS
        while not is_taken():
            self._require_alive()
            if time.monotonic() > deadline:
                raise KsmError(
                    errno.ETIMEDOUT,
                    f"ksmd (pid {self.pid}) did not take {name} in {_STORE_SECONDS:.0f} s",
                )
            time.sleep(_POLL_SECONDS)

    def _refused(self, name: str, text: str, number: int) -> KsmError:
        reason = last_log_line(self._instance, f"{name}: store of '{text}") or os.strerror(number)
        now = "" if name in self.files.actions else f", it is {self.read(name)}"
        return KsmError(number, f"{name}={text} refused{now}: {reason}")

    def _notice_death(self, error: OSError) -> None:
        if error.errno in _GONE:
            self._require_alive(_DEATH_SECONDS)

    def _require_alive(self, seconds: float = 0) -> None:
        if self._has_ended(seconds):
            raise KsmError(errno.ESRCH, f"ksmd (pid {self.pid}) has gone: {last_log_line(self._instance)}")

    def _has_ended(self, seconds: float) -> bool:
        if self._pidfd < 0:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


class Ksmd(RunningKsmd):
    """A ksmd of one's own: started here, stopped on exit, and also when this process is killed.

    Args:
        directory: of the instance; None is what Instance.resolve() finds.
        fuse, rfc2009, events, all_users, fills_only, secure, policy: as control.setup.Setup has them.
        tunables: control files whose first value is not the kernel's default; `run=1` to scan.
    Raises:
        ValueError: an unknown tunable or a value it never has; what a Setup refuses.
        AlreadyServedError, ForeignInstanceError, KsmError: see Instance.claim().
        KernelLacksError: see features.require(), features.require_fuse().
    """

    def __init__(  # noqa: PLR0913 (the options)
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        fuse: bool = False,
        rfc2009: bool = False,
        events: bool = False,
        all_users: bool = False,
        fills_only: bool = False,
        secure: bool = False,
        policy: str = policy.DEFAULT,
        **tunables: int,
    ) -> None:
        setup = Setup(
            fuse=fuse,
            rfc2009=rfc2009,
            events=events,
            all_users=all_users,
            fills_only=fills_only,
            secure=secure,
            policy=policy,
        )
        instance = Instance.resolve(directory)
        in_ksmd, self._lifeline = os.pipe()
        try:
            self._process = launch(instance, tunables, setup, lifeline=in_ksmd)
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(in_ksmd)
        super().__init__(instance, self._process.pid)

    def stop(self) -> None:
        """Stop ksmd and return when it has gone, workers keep what is merged; may be repeated."""
        if self._process.returncode is None:
            super().stop()
            self._process.wait()
            os.close(self._lifeline)
            super().close()

    def close(self) -> None:
        """Stop ksmd: it was started for this object."""
        self.stop()


def connect(directory: str | os.PathLike[str] | None = None) -> RunningKsmd:
    """Return the ksmd that runs in the directory; NotRunningError if none does."""
    instance = Instance.resolve(directory)
    if (pid := instance.pid()) is None:
        raise NotRunningError(instance.directory)
    try:
        ksmd = RunningKsmd(instance, pid)
    except ProcessLookupError:
        raise NotRunningError(instance.directory) from None
    if instance.pid() != pid:  # it went, and its pid may be somebody else's by now
        ksmd.close()
        raise NotRunningError(instance.directory)
    return ksmd


def start_detached(
    directory: str | os.PathLike[str] | None, tunables: Mapping[str, int], setup: Setup
) -> int:
    """Start a ksmd that outlives this process and return its pid; errors as those of Ksmd."""
    process = launch(Instance.resolve(directory), tunables, setup)
    process.returncode = 0  # not ours to wait for: tells Popen not to warn
    return process.pid


def _is_taken(content: bytes) -> bool:
    """Whether ksmd has taken a store: it leaves one line, and newlines that fill the file up."""
    _, newline, rest = content.partition(b"\n")
    return bool(newline) and not rest.strip(b"\n")
