"""Step 1: whose pages to look at: those of a file, or the anonymous ones of a process."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ksmemu import _core
from ksmemu.units import PAGE_SIZE, Range

_SWAPPED = np.uint64(1 << 62)
"""Source: Documentation/admin-guide/mm/pagemap.rst."""
_NOT_MEMORY = ("[v", "/dev/", "/anon_hugepage")
"""Mappings of the kernel's own, of devices, and of huge pages, which KSM passes over."""


@dataclass
class Source:
    """Pages that one descriptor reads; leaving the context closes it.

    Attributes:
        name: for people.
        fd: of the file, or of /proc/PID/mem.
        extents: page numbers, which count from offset 0 of the descriptor.
        is_process: it may go on changing, and giving pages back.
        tail: what follows the last whole page of a file.
        left_out: pages that are not looked at, by the reason.
    """

    name: str
    fd: int
    extents: list[Range]
    is_process: bool = False
    tail: bytes = b""
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def nr_pages(self) -> int:
        """Pages in all; a tail is one, which zeros fill up."""
        return sum(map(len, self.extents)) + bool(self.tail)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def chunks(self, nr: int) -> Iterator[npt.NDArray[np.uint64]]:
        """Yield the page numbers of all extents, nr at a time and the rest."""
        left: list[npt.NDArray[np.uint64]] = []
        have = 0
        for extent in self.extents:
            start = extent.start
            while start < extent.end:
                end = min(extent.end, start + nr - have)
                left.append(np.arange(start, end, dtype=np.uint64))
                have += end - start
                start = end
                if have == nr:
                    yield np.concatenate(left)
                    left, have = [], 0
        if left:
            yield np.concatenate(left)


def open_file(path: Path) -> Source:
    """Return the pages of a file.

    Raises:
        OSError: it cannot be read; ENODATA: it is empty; EINVAL: it is no file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISBLK(found.st_mode):
            raise OSError(errno.EINVAL, "is no file", os.fspath(path))
        nr_bytes = os.lseek(fd, 0, os.SEEK_END)
        if not nr_bytes:
            raise OSError(errno.ENODATA, "is empty", os.fspath(path))
        nr_pages = nr_bytes // PAGE_SIZE
        tail = os.pread(fd, nr_bytes - nr_pages * PAGE_SIZE, nr_pages * PAGE_SIZE)
    except BaseException:
        os.close(fd)
        raise
    return Source(path.name, fd, [Range(0, nr_pages)] if nr_pages else [], tail=tail)


def open_process(pid: int) -> Source:
    """Return the pages of a process that only it holds: no file's, and none of shared memory.

    Raises:
        OSError: ESRCH: there is none; EACCES: it may not be looked into.
    """
    proc = Path(f"/proc/{pid}")
    try:
        name = f"{pid} {(proc / 'comm').read_text().rstrip()}"
        maps = (proc / "maps").read_text().splitlines()
        fd = os.open(proc / "mem", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from None
    except PermissionError:
        raise _forbidden(pid) from None
    source = Source(name, fd, [], is_process=True)
    try:
        with (proc / "pagemap").open("rb", buffering=0) as pagemap:
            for line in maps:
                _add_mapping(source, pagemap.fileno(), line)
    except PermissionError:
        source.__exit__()
        raise _forbidden(pid) from None
    except BaseException:
        source.__exit__()
        raise
    return source


def _forbidden(pid: int) -> PermissionError:
    return PermissionError(
        errno.EACCES,
        f"process {pid} may not be looked into: that takes its user and leave to trace it, or root",
    )


def _add_mapping(source: Source, pagemap: int, line: str) -> None:
    span, _perms, _offset, _device, _inode, *path = line.split(maxsplit=5)
    if path and path[0].startswith(_NOT_MEMORY) and not path[0].startswith("/dev/zero"):
        return
    start, end = (int(bound, 16) for bound in span.split("-"))
    private = np.frombuffer(_core.find_private(pagemap, start, end), np.uint64).reshape(-1, 2) // PAGE_SIZE
    for first, last in private.astype(np.int64).tolist():
        entries = np.frombuffer(os.pread(pagemap, (last - first) * 8, first * 8), np.uint64)
        is_there = np.zeros(last - first + 2, dtype=np.bool_)
        is_there[1 : len(entries) + 1] = entries & _SWAPPED == 0  # to read the others would swap them in
        if nr_swapped := last - first - int(is_there.sum()):
            source.left_out["swapped"] = source.left_out.get("swapped", 0) + nr_swapped
        edges = np.flatnonzero(is_there[1:] != is_there[:-1]) + first
        source.extents += [Range(*pair) for pair in edges.reshape(-1, 2).tolist()]
