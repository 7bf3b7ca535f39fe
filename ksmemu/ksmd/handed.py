"""Which descriptors of a client ksmd may read: only those of files that answer.

In a file system of the client's own (FUSE) a read need never return, and a path can be any. So it is the kind
of file system that counts.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from ksmemu import _core

_TMPFS_MAGIC, _PROC_SUPER_MAGIC = 0x01021994, 0x9FA0
"""Source: <linux/magic.h>; memfds lie in a tmpfs too."""


def is_object(fd: int, size: int) -> bool:
    """Whether a descriptor is of a shared-memory object of at least so many bytes."""
    own = os.fstat(fd)
    return stat.S_ISREG(own.st_mode) and own.st_size >= size and _is_readable(fd, _TMPFS_MAGIC)


def is_pagemap(fd: int, pid: int) -> bool:
    """Whether a descriptor is of the pagemap of a process."""
    path = Path(f"/proc/self/fd/{fd}").readlink()
    return path == Path(f"/proc/{pid}/pagemap") and _is_readable(fd, _PROC_SUPER_MAGIC)


def _is_readable(fd: int, file_system: int) -> bool:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    is_open = flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_PATH
    return is_open and _core.file_system(fd) == file_system
