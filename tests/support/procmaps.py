"""The oracle: what the kernel says of a process, read without the code under test."""

import contextlib
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_PF_EXITING = 4
"""Source: <linux/sched.h>."""
PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT, _SWAPPED, _FILE, _UFFD_WP, _PFN = 1 << 63, 1 << 62, 1 << 61, 1 << 57, (1 << 55) - 1


@dataclass(frozen=True)
class Mapping:
    start: int
    end: int
    perms: str
    offset: int
    inode: int
    path: str

    @property
    def pages(self):
        return (self.end - self.start) // PAGE


def mappings(pid, start=0, end=1 << 64):
    """Return the mappings of a process in [start, end), clipped."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        bounds, perms, offset, _, inode, *path = line.split(maxsplit=5)
        low, high = (int(part, 16) for part in bounds.split("-"))
        if high <= start or low >= end:
            continue
        shift = max(start - low, 0)
        found.append(
            Mapping(
                max(low, start),
                min(high, end),
                perms,
                int(offset, 16) + shift,
                int(inode),
                path[0] if path else "",
            )
        )
    return found


def mergeable(pid, start=0, end=1 << 64):
    """Return (start, end) of the mappings that the kernel's KSM may merge (VmFlags mg), clipped."""
    found, bounds = [], ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *words = line.split()
        if not name.endswith(":"):
            bounds = name
        elif name == "VmFlags:" and "mg" in words:
            low, high = (int(part, 16) for part in bounds.split("-"))
            found.append((max(low, start), min(high, end)))
    return [(low, high) for low, high in found if low < high]


def private_pages(pid, start, end):
    """Return the addresses of pages that are private copies (present or swapped, not of a file)."""
    found = []
    for index, entry in enumerate(_pagemap(pid, start, end)):
        if entry & (_PRESENT | _SWAPPED) and not entry & _FILE:
            found.append(start + index * PAGE)
    return found


def nr_present(pid, start, end):
    """Return how many pages are in the page table."""
    return sum(bool(entry & _PRESENT) for entry in _pagemap(pid, start, end))


def nr_write_protected(pid, start, end):
    """Return how many pages a userfaultfd write-protects."""
    return sum(bool(entry & _UFFD_WP) for entry in _pagemap(pid, start, end))


def physical_pages(pid, start, end):
    """Return which physical page each page is; all are present. Only root may know."""
    entries = _pagemap(pid, start, end)
    assert all(entry & _PRESENT for entry in entries)
    return [entry & _PFN for entry in entries]


def _pagemap(pid, start, end):
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(start // PAGE * 8)
        entries = pagemap.read((end - start) // PAGE * 8)
    return [entry for (entry,) in struct.iter_unpack("=Q", entries)]


@dataclass
class Recount:
    """What the mappings of some spaces say: I2 and I4 compare the books with it."""

    own: int = 0
    """Pages mapped shared from an own object."""
    zero: int = 0
    """Pages mapped from nothing, private: the zero page, or a copy over it."""
    frames: Counter = None
    """(pool inode, frame) -> pages whose mapping names it."""
    broken: int = 0
    inherited: int = 0
    """Pages mapped private from what was an own object until a fork."""

    @property
    def merged(self):
        return sum(self.frames.values())


def _pools(pid):
    """Return the inodes of the pools that an agent reads: nothing else is mapped so, and so long."""
    return {m.inode for m in mappings(pid) if m.perms == "r--s" and m.pages >= os.sysconf("SC_PHYS_PAGES")}


def recount(spaces):
    """Count the pages of advised spaces, each (pid, start, end), by what is really mapped."""
    result = Recount(frames=Counter())
    for pid, start, end in spaces:
        pools = _pools(pid)
        for mapping in mappings(pid, start, end):
            if mapping.perms.startswith("---"):
                continue
            if "s" in mapping.perms:
                result.own += mapping.pages
            elif mapping.inode == 0:
                result.zero += mapping.pages
                continue
            elif mapping.inode not in pools:
                result.inherited += mapping.pages
            else:
                first = mapping.offset // PAGE
                for index in range(mapping.pages):
                    result.frames[mapping.inode, first + index] += 1
                result.broken += len(private_pages(pid, mapping.start, mapping.end))
    return result


def smaps_rollup(pid):
    """Return the fields of smaps_rollup in bytes."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        fields[name.rstrip(":")] = int(value) * 1024
    return fields


def status(pid):
    """Return the sizes of /proc/PID/status in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(value) * 1024 for name, value, _ in fields}


def descriptors(pid):
    """Return what each descriptor of a process is."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = os.fspath(entry.readlink())
        except FileNotFoundError:
            continue
    return found


def inodes(pid):
    """Return the inode of everything that a process has open."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            found.add(entry.stat().st_ino)
    return found


def thread_ids(pid):
    return {path.name for path in Path(f"/proc/{pid}/task").iterdir()}


def threads(pid):
    return len(thread_ids(pid))


def thread_states(pid):
    """Return the state letter of each thread, as ps shows it; X where it has gone while it was asked."""
    return [_state(task / "stat") for task in Path(f"/proc/{pid}/task").iterdir()]


def _state(stat):
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def waits_in(thread):
    """Return the function of the kernel in which a thread of this process waits, or 0."""
    return Path(f"/proc/self/task/{thread}/wchan").read_text()


def has_ending_threads(pid):
    """Whether a thread is on its way out: one that was joined can be seen for a moment longer."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            flags = int((task / "stat").read_text().rpartition(")")[2].split()[6])
        except (FileNotFoundError, ProcessLookupError):
            return True
        if flags & _PF_EXITING:
            return True
    return False


def children(pid):
    """Return the pids of the living children of a process."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found |= {int(child) for child in (task / "children").read_text().split()}
        except FileNotFoundError:
            continue
    return found


def shm_names():
    try:
        return set(os.listdir("/dev/shm"))
    except FileNotFoundError:
        return set()
