"""The C core as Python sees it: mechanism only. Everything that may block releases the GIL.

Addresses, offsets and sizes are in bytes and page-aligned; ranges are half-open. A buffer of ranges holds
pairs of native uint64 (start, end). Errors are OSError with the errno and the name of the system call.
"""

import os
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_Readable: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.generic]
_Writeable: TypeAlias = bytearray | memoryview | npt.NDArray[np.generic]

ORDER_MAX_PAGES: int
WINDOW_PAGES: int
RENEW_PAGES: int
WIRE_VERSION: int

class Memory:
    """A writable buffer over real addresses of this process.

    `owner` is kept alive as long as a view is. The buffer does not check that the addresses stay mapped:
    whoever unmaps them looks at `exports` first.
    """

    def __new__(cls, address: int, length: int, owner: object) -> Memory: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def address(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def exports(self) -> int:
        """Views that are alive."""

class Agent:
    """What joins this process to one ksmd: its descriptors, the two userfaultfds and the C thread.

    A forked child has one of its own by the same object, which joins ksmd by itself.
    """

    def __new__(
        cls,
        control: int,
        order: int,
        pool: int,
        pool_bytes: int,
        held: int,
        holder: int,
        pagemap: int,
        directory: str | os.PathLike[str],
        label: str,
        tracks: bool,
        rfc2009: bool,
        secure: bool,
    ) -> Agent:
        """Start the thread. The five descriptors belong to the agent from here on, also on error.

        When ksmd goes, the thread waits for the next one in the directory, and joins it with the memory as
        it is; nothing needs to be said again.

        Args:
            control: control socket. order: order socket. pool: read-only pool of pool_bytes.
            held, holder: another descriptor of the pool, by which ksmd knows who may map it, and its name.
            pagemap: /proc/self/pagemap. directory: of the instance.
            label: of the security domain, 64 bytes at most.
            tracks: record writes with userfaultfd; otherwise ksmd compares checksums.
            rfc2009: ksmd is of that year.
            secure: map frames so that the time of a read or write tells nothing of what lies beside.

        Raises:
            OSError: EPERM, EINVAL: no userfaultfd with what is needed; EMFILE, ENOMEM.
        """

    def close(self) -> None:
        """Stop the thread and close all descriptors. Mappings of spaces stay as they are."""

    def is_alive(self) -> bool:
        """Return whether ksmd still listens (and this is not a forked child)."""

    def wait(self, seconds: int, /) -> bool:
        """Wait until ksmd listens; return whether it does."""

    def control(self) -> int:
        """Return a second descriptor of the control socket, which is the caller's; OSError EMFILE."""

    def own(self, space: int, /) -> int:
        """Return a second descriptor of the own object of a space as it is now: a fork replaces it.

        Raises:
            OSError: ENOENT: a forked child does not have the space. EMFILE.
        """

    def set_flags(self, merge_any: bool, refuses: bool, /) -> None:
        """Keep for the next ksmd what prctl(2) would say of this process."""

    def add_space(self, space: int, start: int, size: int, node: int, own: int, /) -> None:
        """Make a space known, as ksmd knows it. Its own object is the agent's, unless this raises."""

    def remove_space(self, space: int, /) -> None:
        """Unmap all of a space, close its own object, tell ksmd; the addresses are nobody's afterwards."""

    def advise(self, space: int, start: int, end: int, adopt: bool, advised: _Readable, /) -> tuple[int, int]:
        """Make [start, end) mergeable; with `adopt`, move it from ordinary memory to the own object first.

        Args:
            advised: all mergeable ranges of the space, this one included.

        Returns:
            (done, errno): errno 0 on success. [start, done) is in the own object, [done, end) is as before.
        """

    def withdraw(self, space: int, advised: _Readable, /) -> None:
        """Refuse merges outside `advised` from now on; orders under way for the space become stale."""

    def protect(self, space: int, start: int, end: int, prot: int, protections: _Readable, /) -> None:
        """Call mprotect(2) on [start, end), and keep its protection through merge and rehome.

        Args:
            protections: of the space, this one included: triples of uint64 (start, end, PROT_*), ascending;
                what they leave out may be read and written.

        Raises:
            OSError: as mprotect(2); nothing was changed.
        """

    def rehome(self, space: int, start: int, end: int, /) -> None:
        """Bring merged pages back to the own object.

        Raises:
            OSError: ENOSPC, ENOMEM: pages before the failure are OWN, the others as they were.
        """

    def unadvised(self, space: int, start: int, end: int, /) -> None:
        """Stop recording writes to [start, end), all of it OWN, and tell ksmd."""

    def tell(self, space: int, kind: int, start: int, end: int, value: int, /) -> None:
        """Tell ksmd of [start, end) what changes no mapping: a wire.ReportKind, and a value of that kind.

        UNSHAREABLE, and ADVISED after it: only for a range that stays among the `advised` ones.
        """

    def remember(self, space: int, notes: _Readable, /) -> None:
        """Keep what the next ksmd is to be told of a space besides what is mergeable.

        Args:
            notes: all of it: (uint64 start, uint64 end, uint32 kind, uint32 value) each.
        """

    def unmap(self, space: int, start: int, end: int, advised: _Readable, /) -> None:
        """Take [start, end) out of the space: its bytes are gone, ksmd is told."""

def harvest(pagemap: int, start: int, end: int, /) -> bytearray:
    """Return what was written since the last harvest, and re-arm it in the same walk.

    Mappings that no track userfaultfd watches are passed over. Pages never touched may be named once.

    Returns:
        Ranges of addresses, ascending.

    Raises:
        OSError: ESRCH if the worker is gone, ENOTTY before Linux 6.7.

    Runs in: ksmd, on the descriptor that the worker opened and handed over.
    Source: PAGEMAP_SCAN, Documentation/admin-guide/mm/pagemap.rst.
    """

def find_private(pagemap: int, start: int, end: int, /) -> bytearray:
    """Return the ranges that hold private anonymous pages, swapped ones too; the zero page is not one.

    Over mappings of the pool these are the BROKEN pages. Before Linux 6.7 the zero page cannot be told
    from a copy and is named as well.
    """

def data_extents(fd: int, start: int, end: int, /) -> bytearray:
    """Return where an object holds data, as ranges of offsets (lseek SEEK_DATA)."""

def checksum_pages(fd: int, pages: _Readable, seed: int, out: _Writeable, /) -> None:
    """Write the seeded XXH3 of each page of an object to `out`.

    Args:
        pages: uint64 page numbers; ascending ones are read in rows. out: uint64, as many.

    Raises:
        OSError: ENODATA if the object ends before a page; EINVAL if the lengths differ.
    """

def fill_frames(
    fd: int,
    pages: _Readable,
    pool: int,
    frames: _Readable,
    seed: int,
    out: _Writeable,
    /,
) -> None:
    """Copy pages of an object to frames of the pool; write the fingerprint of each frame to `out`.

    Raises:
        OSError: ENOSPC: no room for the pool, some frames may be filled; ENODATA, EINVAL.
    """

def punch(fd: int, offset: int, size: int, /) -> None:
    """Give a stretch of an object back to the host; it reads as zeros afterwards."""

def reserve(size: int, /) -> int:
    """Set addresses aside: no memory, no access. Returns the first address."""

def unreserve(start: int, size: int, /) -> None:
    """Unmap everything at [start, start + size)."""

def map_ordinary(start: int, size: int, /) -> None:
    """Put ordinary zeroed memory at reserved addresses where nothing is mapped."""

def map_nothing(start: int, size: int, /) -> None:
    """Replace what is mapped by a reservation."""

def protect(start: int, size: int, prot: int, /) -> None:
    """Call mprotect(2) on ordinary memory."""

def probe_userfaultfd() -> tuple[int, bool]:
    """Return the feature bits of this kernel, and whether only user-mode faults are within reach."""

def probe_pagemap_scan() -> None:
    """Raise OSError ENOTTY where the kernel has no PAGEMAP_SCAN."""

def file_system(fd: int, /) -> int:
    """Return what kind of file system a file is in: f_type of statfs(2)."""

def keep_memory() -> None:
    """Let malloc keep what is freed for what comes next: memory from the host costs a fault a page."""

def return_memory() -> None:
    """Let malloc return to the host what is free (malloc_trim)."""

def inotify_init() -> int:
    """Return a new inotify descriptor: non-blocking, close-on-exec."""

def inotify_add_watch(fd: int, path: str, mask: int, /) -> int:
    """Watch a path; returns the watch descriptor."""
