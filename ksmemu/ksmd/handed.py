"""Which descriptors of a client ksmd may read: only those of files that answer, and that are the client's.

In a file system of the client's own (FUSE) a read need never return, and a path can be any. So it is the kind
of file system that counts. And what a worker was merely let read is not its memory to merge.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from ksmemu import _core
from ksmemu.ksmd.domain import Domain
from ksmemu.wire import WireError

_TMPFS_MAGIC, _PROC_SUPER_MAGIC = 0x01021994, 0x9FA0
"""Source: <linux/magic.h>; memfds lie in a tmpfs too."""


def check_object(domain: Domain, fd: int, size: int) -> None:
    """Raise WireError unless a descriptor is of shared memory of the domain's user, at least size bytes."""
    if not _is_readable(fd, _TMPFS_MAGIC):
        raise WireError("an own object that is no shared memory")
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size < size:
        raise WireError("an own object that is none")
    if found.st_uid != domain.key.uid:
        raise WireError(f"an own object of uid {found.st_uid}")


def is_pagemap(fd: int, pid: int) -> bool:
    """Whether a descriptor is of the pagemap of a process."""
    path = Path(f"/proc/self/fd/{fd}").readlink()
    return path == Path(f"/proc/{pid}/pagemap") and _is_readable(fd, _PROC_SUPER_MAGIC)


def _is_readable(fd: int, file_system: int) -> bool:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    is_open = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_PATH
    return is_open and _core.file_system(fd) == file_system
