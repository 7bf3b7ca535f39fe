"""`python -m ksmemu.control.fuse`: the FUSE server of one control directory, a child of ksmd.

It shows ksmd's value files as sysfs shows its own, and hands each write to ksmd, whose end of the
socket is in `mounted.py`. Reads do not ask ksmd: they never wait for it.

Source: what a file of sysfs does: fs/kernfs/file.c.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import mfusepy

from ksmemu import mounts
from ksmemu.control.mounted import ANSWER, MOUNTED
from ksmemu.units import PAGE_SIZE

_LONGEST_TEXT = 1 << 20
_WRITERS = 128
"""Threads, at most: a write waits for ksmd in one of them."""


class ControlMount:
    """The operations of the file system; each runs in a thread of libfuse's.

    Raises:
        OSError: the errno that the client gets.
    """

    use_ns = True

    def __init__(self, values: Path, mount_point: Path, ksmd: socket.socket) -> None:
        self._files = {path.name: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in values.iterdir()}
        self._mount_point = mount_point
        self._ksmd = ksmd
        self._one_store = threading.Lock()
        self._since = time.time_ns()

    def init(self, _path: str) -> None:
        """Report to ksmd: the mount is there."""
        mount = mounts.below(self._mount_point)[0]
        threading.Thread(target=self._end_with_ksmd, args=(mount,), daemon=True).start()
        self._ksmd.send(MOUNTED)

    def getattr(self, path: str, _fi: Any = None) -> dict[str, int]:
        """A file has a page, as in sysfs, whatever is in it."""
        if path == "/":
            mode, size = stat.S_IFDIR | 0o755, 0
        else:
            mode, size = os.fstat(self._file(path)).st_mode, PAGE_SIZE
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._since)
        return {
            "st_mode": mode,
            "st_size": size,
            "st_nlink": 1,
            "st_uid": os.geteuid(),
            "st_gid": os.getegid(),
            **times,
        }

    def readdir(self, _path: str, _fh: int) -> list[str]:
        """Return all names."""
        return [".", "..", *self._files]

    def open(self, path: str, fi: Any) -> int:
        """Root may not write to a read-only file either; nothing is cached."""
        writes = fi.flags & os.O_ACCMODE != os.O_RDONLY
        if writes and not os.fstat(self._file(path)).st_mode & stat.S_IWUSR:
            raise OSError(errno.EACCES, "read-only")
        fi.direct_io = 1
        return 0

    def read(self, path: str, size: int, offset: int, _fi: Any) -> bytes:
        """Return the value and a newline: what fills its file up stays here."""
        content = os.pread(self._file(path), _LONGEST_TEXT, 0).rstrip(b"\n") + b"\n"
        return content[offset : offset + size]

    def write(self, path: str, data: bytes, _offset: int, _fi: Any) -> int:
        """Let ksmd obey a store: a page of it at most, wherever in the file."""
        data = data[:PAGE_SIZE]
        if number := self._ask(path[1:].encode() + b"\0" + data):
            raise OSError(number, os.strerror(number))
        return len(data)

    def truncate(self, _path: str, _length: int) -> int:
        """Nothing to do; the shell's `>` asks for it."""
        return 0

    utimens = truncate

    def create(self, _path: str, _mode: int, _fi: Any) -> NoReturn:
        """No file can be made."""
        raise OSError(errno.EACCES, "nothing can be made here")

    def _refuse(self, *_arguments: object) -> NoReturn:
        raise OSError(errno.EPERM, "nothing can be made, moved or removed here")

    mknod = mkdir = symlink = link = unlink = rmdir = rename = chmod = chown = _refuse

    def _ask(self, message: bytes) -> int:
        """Return ksmd's answer to one store; ENOTCONN if there is no ksmd any more."""
        with self._one_store:
            try:
                self._ksmd.send(message)
                answer = self._ksmd.recv(ANSWER.size)
            except ConnectionError:
                answer = b""
        (number,) = ANSWER.unpack(answer) if answer else (errno.ENOTCONN,)
        return int(number)

    def _file(self, path: str) -> int:
        if (fd := self._files.get(path[1:])) is None:
            raise OSError(errno.ENOENT, "no such file")
        return fd

    def _end_with_ksmd(self, mount: mounts.Mount) -> None:
        """When ksmd has gone, the mount and this process follow, whoever still holds a file open."""
        poll = select.poll()
        poll.register(self._ksmd, 0)  # only the hang-up
        poll.poll()
        try:
            mounts.detach(mount)
        finally:
            os._exit(0)  # the threads of libfuse may be waiting for anything


def main(values: str, mount_point: str, end: str) -> None:
    """Mount and serve until ksmd closes its end, or a signal ends this process."""
    with socket.socket(fileno=int(end)) as ksmd:
        files = ControlMount(Path(values), Path(mount_point), ksmd)
        try:
            mfusepy.FUSE(
                files,
                mount_point,
                foreground=True,
                raw_fi=True,
                fsname="ksmemu",
                subtype=mounts.FUSE_TYPE,
                default_permissions=True,
                max_threads=_WRITERS,
                max_idle_threads=10,
            )
        except RuntimeError:  # libfuse has said why on stderr
            sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
