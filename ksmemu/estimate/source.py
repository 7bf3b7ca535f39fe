"""Step 1: whose pages to look at: those of a file, or the anonymous ones of a process."""

from __future__ import annotations

import errno
import os
import re
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
_KERNEL = 1 << 63
"""Where the kernel's half begins, in which vsyscall lies: the pagemap has no entry there."""
_MAPPING = re.compile(
    r"^(?P<start>[0-9a-f]+)-(?P<end>[0-9a-f]+) .*\n(?P<fields>(?:[A-Z]\w*:.*\n)+)", re.MULTILINE
)
_FIELD = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)
"""A mapping in smaps, and what it says of one in KiB. Source: Documentation/filesystems/proc.rst."""
_PASSED_OVER = {"ht": "huge pages", "io": "", "pf": ""}
"""Flags of mappings that KSM passes over, and what is said of them: those of devices are no memory."""


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
        name = f"{pid} {(proc / 'comm').read_text(errors='replace').rstrip()}"
        smaps = (proc / "smaps").read_text(errors="replace")
        fd = os.open(proc / "mem", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from None
    except PermissionError:
        raise _forbidden(pid) from None
    source = Source(name, fd, [], is_process=True)
    try:
        with (proc / "pagemap").open("rb", buffering=0) as pagemap:
            for mapping in _MAPPING.finditer(smaps):
                _add_mapping(source, pagemap.fileno(), mapping)
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


def _add_mapping(source: Source, pagemap: int, mapping: re.Match[str]) -> None:
    start, end = (int(mapping[bound], 16) for bound in ("start", "end"))
    if start >= _KERNEL:
        return
    flags = mapping["fields"].rpartition("VmFlags:")[2].split()
    kib = {name: int(value) for name, value in _FIELD.findall(mapping["fields"])}
    if passed_over := [_PASSED_OVER[flag] for flag in flags if flag in _PASSED_OVER]:
        _leave_out(source, passed_over[0], kib.get("Private_Hugetlb", 0) + kib.get("Shared_Hugetlb", 0))
        return
    _leave_out(source, "of files and shared memory", kib["Rss"] - kib["Anonymous"])
    private = np.frombuffer(_core.find_private(pagemap, start, end), np.uint64).reshape(-1, 2) // PAGE_SIZE
    for first, last in private.astype(np.int64).tolist():
        entries = np.frombuffer(os.pread(pagemap, (last - first) * 8, first * 8), np.uint64)
        is_there = np.zeros(last - first + 2, dtype=np.bool_)
        is_there[1 : len(entries) + 1] = entries & _SWAPPED == 0  # to read the others would swap them in
        _leave_out(source, "swapped", (last - first - int(is_there.sum())) * PAGE_SIZE // 1024)
        edges = np.flatnonzero(is_there[1:] != is_there[:-1]) + first
        source.extents += [Range(*pair) for pair in edges.reshape(-1, 2).tolist()]


def _leave_out(source: Source, reason: str, kib: int) -> None:
    if nr_pages := kib * 1024 // PAGE_SIZE:
        source.left_out[reason] = source.left_out.get(reason, 0) + nr_pages
