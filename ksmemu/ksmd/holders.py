"""Who may still map frames of a pool: the kernel keeps count, and does so when ksmd has died.

Each process that may has an open file of its own for the pool, with a lock on one byte, at an offset that is
the name of the holder. Such a lock (F_OFD_SETLK) belongs to the open file, and goes with it: when the process
dies or starts another program. It keeps nobody from anything. core/holder.c has it for a process that forks.
"""

from __future__ import annotations

import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid. Source: fcntl(2)."""
MAX_HOLDER = 1 << 62
"""Names are below this: offsets of a file."""


def name(file: int) -> int:
    """Give an open file of the pool a name that nobody has, and return it; ENOLCK: no memory for that."""
    holder = 1 + int.from_bytes(os.urandom(8), "little") % (MAX_HOLDER - 1)
    fcntl.fcntl(file, fcntl.F_OFD_SETLK, _words(fcntl.F_RDLCK, holder, 1))
    return holder


def is_anothers(file: int, holder: int) -> bool:
    """Return whether a name is that of another open file of the object than this one."""
    return _first(file, holder, holder + 1) == holder


def living(ours: int) -> set[int]:
    """Return the names of all open files of the pool that still are of use to somebody."""
    found, ranges = set(), [(1, MAX_HOLDER)]
    while ranges:
        start, end = ranges.pop()
        holder = _first(ours, start, end)
        if holder is not None:
            found.add(holder)
            ranges += [(start, holder), (holder + 1, end)]
    return found


def _first(file: int, start: int, end: int) -> int | None:
    """Return a byte of [start, end) on which another open file has a lock."""
    if start == end:
        return None
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _words(fcntl.F_WRLCK, start, end - start))
    kind, _whence, found, _length, _pid = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else found


def _words(kind: int, start: int, length: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
