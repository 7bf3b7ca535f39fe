"""Where a running ksmd is found: one directory that holds its socket, pid, log and control files.

A client hands its memory over, so it must not be taken in: it believes a directory of its own user, or of
root; and, but for root, one of a service user that somebody named, where only root can have put it. Nobody
but the owner may be able to put something into it, and whoever listens must be the owner.

ksmd claims the directory for its life; everybody else asks it for the pid or connects. The file
`ksmd.pid` alone proves nothing: what counts is the lock that the claim keeps on it, and that the
kernel drops when ksmd dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ksmemu import mounts
from ksmemu.errors import AlreadyServedError, ForeignInstanceError, KsmError, NotRunningError

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid. Source: fcntl(2)."""

_SYSTEM_UIDS = range(1000)
"""Of services. Source: SYS_UID_MAX of login.defs(5)."""

_UCRED = struct.Struct("iII")
"""struct ucred: pid, uid, gid."""

_TREES = ("sys", "stats", "proc", "values")
"""The folders that ksmd makes in its directory, and removes when it releases it."""


@dataclass(frozen=True, slots=True)
class Instance:
    """The directory of one ksmd, whether one runs there or not."""

    directory: Path
    is_named: bool = field(default=True, compare=False)
    """Somebody has named the directory: it is not where this user's ksmd is by default."""

    @classmethod
    def resolve(cls, directory: str | os.PathLike[str] | None = None) -> Instance:
        """Return the named instance, or the one that this user has where none is named.

        Named by the argument, else $KSMEMU_DIR; otherwise $XDG_RUNTIME_DIR/ksmemu, else a folder of
        the user in the system's temporary folder.
        """
        if directory is None:
            directory = os.environ.get("KSMEMU_DIR") or None
        is_named = directory is not None
        if directory is None and (runtime := os.environ.get("XDG_RUNTIME_DIR")):
            directory = Path(runtime, "ksmemu")
        if directory is None:
            directory = Path(tempfile.gettempdir(), f"ksmemu-{os.geteuid()}")
        return cls(Path(directory).absolute(), is_named)

    @property
    def socket_file(self) -> Path:
        """Where workers attach."""
        return self.directory / "ksmd.sock"

    @property
    def pid_file(self) -> Path:
        """The locked file of the running ksmd."""
        return self.directory / "ksmd.pid"

    @property
    def log_file(self) -> Path:
        """What ksmd had to say."""
        return self.directory / "ksmd.log"

    @property
    def control(self) -> Path:
        """The control files, under the kernel's path and names."""
        return self.directory / "sys/kernel/mm/ksm"

    @property
    def values(self) -> Path:
        """What FUSE shows in the control files, where FUSE serves them."""
        return self.directory / "values"

    @property
    def is_mounted(self) -> bool:
        """Whether FUSE serves the control files; OSError if its server has gone."""
        return self.control.stat().st_dev != self.directory.stat().st_dev

    @property
    def stats(self) -> Path:
        """Counters of ksmemu's own, for which the kernel has no file."""
        return self.directory / "stats"

    @property
    def tracing(self) -> Path:
        """Events, under the path that tracefs has in the kernel."""
        return self.directory / "sys/kernel/tracing"

    @property
    def proc(self) -> Path:
        """Figures of each worker, as the kernel has them in /proc/PID."""
        return self.directory / "proc"

    def workers(self) -> frozenset[int]:
        """Return the pids of which there are figures: those that had spaces when ksmd last wrote some."""
        with contextlib.suppress(FileNotFoundError):
            return frozenset(int(name) for name in os.listdir(self.proc) if name.isdecimal())
        return frozenset()

    def claim(self, *, all_users: bool = False) -> Claim:
        """Make this process the one ksmd of the directory; create it if it is missing.

        Args:
            all_users: a directory that is created is 0755, so that every user gets to the socket, else 0700.

        Raises:
            AlreadyServedError: another ksmd lives here.
            ForeignInstanceError: the directory belongs to another user.
            KsmError: EEXIST if the directory holds a `sys`, `stats`, `proc` or `values` that no ksmd made,
                ELOOP if it is a symbolic link, EPERM if everybody may write to it.
            OSError: of mkdir, open or write.
            After each of them the directory is as it was.
        Runs in: ksmd.
        """
        with contextlib.ExitStack() as undo:
            created = self._create(0o755 if all_users else 0o700)
            if created:
                undo.callback(_remove_if_empty, self.directory)
            with self._opened(is_own=True) as directory:
                pid_fd = self._lock(directory)
            undo.callback(os.close, pid_fd)
            claim = Claim(self, pid_fd, created=created)
            claim.clear()
            undo.pop_all()
            return claim

    def pid(self) -> int | None:
        """Return the pid of the ksmd that runs here, or None.

        Raises:
            ForeignInstanceError: the directory belongs to another user.
        """
        with contextlib.suppress(FileNotFoundError), self._opened(is_own=True) as directory:
            pid_fd = os.open("ksmd.pid", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                return _holder(pid_fd)
            finally:
                os.close(pid_fd)
        return None

    def is_served(self) -> bool:
        """Whether a ksmd is here, or about to be; of another user's only one that listens can be told.

        Raises:
            ForeignInstanceError: as connect().
        """
        try:
            return self.pid() is not None
        except ForeignInstanceError:
            pass
        try:
            self.connect().close()
        except NotRunningError:
            return False
        return True

    def connect(self) -> socket.socket:
        """Return a new connection (SOCK_SEQPACKET) to the ksmd that runs here.

        Raises:
            NotRunningError: nobody listens here.
            ForeignInstanceError: the directory, or whoever listens, belongs to a user who is not believed.
            PermissionError: that ksmd serves its own user only.
        """
        with contextlib.ExitStack() as undo:
            connection = undo.enter_context(_new_socket())
            try:
                with self._opened(is_own=False) as directory:
                    owner = os.fstat(directory).st_uid
                    connection.connect(_short_path(directory))
            except (FileNotFoundError, ConnectionRefusedError):
                raise NotRunningError(self.directory) from None
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            if (uid := _UCRED.unpack(peer)[1]) != owner:
                raise ForeignInstanceError(self.socket_file, uid)
            undo.pop_all()
            return connection

    def listen(self, *, all_users: bool = False) -> socket.socket:
        """Return a listening socket at `ksmd.sock` that only this user may connect to, or every user.

        Runs in: ksmd, which holds the claim.
        """
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(_new_socket())
            os.fchmod(listener.fileno(), 0o600)  # bind() gives the file the mode of the socket
            new = self.directory / "ksmd.sock.new"
            new.unlink(missing_ok=True)  # of a ksmd that was killed
            with self._opened(is_own=True) as directory:
                listener.bind(_short_path(directory, new.name))
            undo.callback(new.unlink, missing_ok=True)
            if all_users:
                new.chmod(0o666)  # whatever the umask
            listener.listen(socket.SOMAXCONN)
            new.rename(self.socket_file)  # who sees it can connect: workers of a ksmd before wait for this
            undo.pop_all()
            return listener

    def _create(self, mode: int) -> bool:
        try:
            self.directory.mkdir(mode=0o700)
        except FileExistsError:
            return False
        self.directory.chmod(mode)  # whatever the umask
        return True

    @contextlib.contextmanager
    def _opened(self, *, is_own: bool) -> Iterator[int]:
        """Yield a descriptor of the directory, once it is known that only its owner can fill it.

        Args:
            is_own: the owner must be this user; otherwise somebody whose ksmd this user may join.
        """
        try:
            directory = os.open(self.directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except NotADirectoryError:
            if self.directory.is_symlink():
                raise KsmError(
                    errno.ELOOP, f"{self.directory} is a symbolic link; name the real one"
                ) from None
            raise
        try:
            found = os.fstat(directory)
            if found.st_uid != os.geteuid() and (is_own or not self._is_believed(directory)):
                raise ForeignInstanceError(self.directory, found.st_uid)
            if found.st_mode & stat.S_IWOTH:
                raise KsmError(
                    errno.EPERM,
                    f"everybody may write to {self.directory}: chmod o-w {self.directory}",
                )
            yield directory
        finally:
            os.close(directory)

    def _is_believed(self, directory: int) -> bool:
        """Whether this user may join the ksmd of another one, whose directory this is."""
        found, parent = os.fstat(directory), os.stat("..", dir_fd=directory)
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
        if found.st_uid == 0:
            return True
        if os.geteuid() == 0:  # whose memory is not for a service to read
            return False
        # The service cannot have made it, so nobody names by mistake what a service has put in his way.
        is_put_there = parent.st_uid == 0 and not parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        return self.is_named and found.st_uid in _SYSTEM_UIDS and is_put_there

    def _lock(self, directory: int) -> int:
        """Return the descriptor of a ksmd.pid that is locked and says our pid."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        while True:
            if not self.pid_file.exists():
                self._refuse_occupied_names()
            pid_fd = os.open("ksmd.pid", flags, 0o600, dir_fd=directory)
            with contextlib.ExitStack() as undo:
                undo.callback(os.close, pid_fd)
                try:
                    fcntl.fcntl(pid_fd, fcntl.F_OFD_SETLK, _lock_words(fcntl.F_WRLCK, os.getpid()))
                except BlockingIOError:
                    if (holder := _holder(pid_fd)) is None:
                        continue  # it went just now
                    raise AlreadyServedError(self.directory, holder) from None
                if os.fstat(pid_fd).st_nlink == 0:
                    continue  # its owner removed the file between our open and our lock
                undo.callback(self.pid_file.unlink)
                os.ftruncate(pid_fd, 0)
                os.pwrite(pid_fd, f"{os.getpid()}\n".encode(), 0)
                undo.pop_all()
                return pid_fd

    def _refuse_occupied_names(self) -> None:
        """Refuse a directory such as /: a release removes these names and all that is in them."""
        for name in _TREES:
            if (self.directory / name).exists():
                raise KsmError(
                    errno.EEXIST,
                    f"{self.directory} holds a `{name}` that is not ksmemu's: choose another",
                )


class Claim:
    """The right to be the ksmd of a directory: as long as the process lives, or until release().

    `former`: the pids of workers that a ksmd had here which did not release it.
    """

    def __init__(self, instance: Instance, pid_fd: int, *, created: bool) -> None:
        self.instance = instance
        self._pid_fd = pid_fd
        self._created = created
        self.former = instance.workers()

    def redirect_stderr(self) -> None:
        """Send the standard error of this process to ksmd.log, at its end."""
        log = os.open(self.instance.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        sys.stderr.flush()
        os.dup2(log, 2)
        os.close(log)

    def clear(self) -> None:
        """Remove socket and control files: our own, or those of a ksmd that was killed.

        Raises:
            KsmError: EBUSY if something is mounted in their place that is not ours; nothing was removed.
        """
        self._unmount()
        self.instance.socket_file.unlink(missing_ok=True)
        for name in _TREES:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.instance.directory / name)

    def _unmount(self) -> None:
        """Take away what a FUSE server that was killed has left."""
        found = [mount for name in _TREES for mount in mounts.below(self.instance.directory / name)]
        for mount in found:
            if mount.kind != f"fuse.{mounts.FUSE_TYPE}":
                raise KsmError(errno.EBUSY, f"something is mounted at {mount.path}: unmount it first")
        for mount in found:
            mounts.detach(mount)

    def release(self) -> None:
        """Remove what ksmd made in the directory, and the directory if the claim made it.

        May be repeated.
        """
        if self._pid_fd < 0:
            return
        self.clear()
        self.instance.pid_file.unlink(missing_ok=True)  # under the lock: a new claim makes a new file
        os.close(self._pid_fd)
        self._pid_fd = -1
        if self._created and set(os.listdir(self.instance.directory)) <= {"ksmd.log"}:
            self.instance.log_file.unlink(missing_ok=True)
            _remove_if_empty(self.instance.directory)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):  # somebody has just put something there, or claimed it
        directory.rmdir()


def _lock_words(kind: int, length: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, length, 0)


def _holder(pid_fd: int) -> int | None:
    """Return the pid of the claim on this file, without getting in the way of a new claim.

    The lock of a claim is as many bytes long as its pid says, so that lock and pid appear in one
    step; the text in the file is for people.
    """
    answer = fcntl.fcntl(pid_fd, fcntl.F_OFD_GETLK, _lock_words(fcntl.F_WRLCK, 1))
    kind, _whence, _start, length, _pid = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else length


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def _short_path(directory: int, name: str = "ksmd.sock") -> str:
    """Name the socket through a descriptor of its directory: an address has room for 108 bytes."""
    return f"/proc/self/fd/{directory}/{name}"
