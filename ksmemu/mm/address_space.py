"""An address space: real memory at fixed addresses, ordinary until it is advised.

Until the first advice there is nothing here but anonymous memory: no object, no descriptor, no thread.
The first advice moves the advised range into the space's own object and joins ksmd. Addresses stay, so
arrays and views over them stay valid through merge, write and unmerge.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np
import numpy.typing as npt

from ksmemu import _core, room, shared_object, wire
from ksmemu.domain_key import checked_label, default_label
from ksmemu.instance import Instance
from ksmemu.intervals import Interval
from ksmemu.mm import flags, merge_pid, spaces
from ksmemu.mm.attach import Place
from ksmemu.mm.own_object import OwnObject
from ksmemu.mm.vma import Flags, Vma, VmaMap
from ksmemu.units import PAGE_SIZE, pages_for

log = logging.getLogger(__name__)

MADV_MERGEABLE = 12
MADV_UNMERGEABLE = 13

_ADDRESS_LIMIT = 1 << 64


def _error(number: int, text: str) -> OSError:
    return OSError(number, f"{os.strerror(number)}: {text}")


class AddressSpace:
    """`size` bytes of address range in which memory can be mapped, advised and merged.

    Args:
        size: bytes, rounded up to whole pages.
        name: for error messages only.
        instance: directory of the ksmd to join on the first advice; None: the default one.
        noreserve: allow a size beyond memory, for a space that stays mostly empty (MAP_NORESERVE).
        node: the simulated NUMA node of what is mapped in it, until mbind() says otherwise: with
            merge_across_nodes=0 only pages of one node merge.
        domain: pages merge only with those of address spaces that have the same, and the same user; at most
            64 letters, digits, dots, hyphens and underscores. None: $KSMEMU_DOMAIN, else the empty one.

    Raises:
        ValueError: size is not positive, there is no such node, or the domain cannot be called so.
        OSError: ENOMEM: neither memory nor the address range could hold it; nothing was changed.

    Not for memory that is pinned: a page that a device writes to (O_DIRECT, RDMA, vfio) must not be
    mergeable, because a device does not fault.

    Thread-safe. After close() every method raises ValueError. Close it, or use it as a context manager.
    """

    def __init__(  # noqa: PLR0913 (the options)
        self,
        size: int,
        *,
        name: str | None = None,
        instance: str | os.PathLike[str] | None = None,
        noreserve: bool = False,
        node: int = 0,
        domain: str | None = None,
    ) -> None:
        self._closed = True
        if size <= 0:
            raise ValueError(f"the size of an address space must be positive, not {size}")
        if not 0 <= node < wire.MAX_NODES:
            raise ValueError(f"node {node}: nodes are 0 to {wire.MAX_NODES - 1}")
        self.size = pages_for(size) * PAGE_SIZE
        self.name = name
        self.node = node
        self.domain = default_label() if domain is None else checked_label(domain)
        self._lock = threading.RLock()
        self._noreserve = noreserve
        limit = _ADDRESS_LIMIT - PAGE_SIZE if noreserve else room.memory_bytes()
        if self.size > limit:
            raise _error(errno.ENOMEM, f"{size} bytes are beyond what memory can hold")
        self._instance = instance
        self.start = _core.reserve(self.size)
        self._closed = False
        self._vmas = VmaMap()
        self._memories: weakref.WeakSet[_core.Memory] = weakref.WeakSet()
        self._own: OwnObject | None = None
        spaces.add(self)
        merge_pid.listen()

    # ---- mapping ---------------------------------------------------------------------------------

    def mmap(self, length: int, address: int | None = None) -> int:
        """Map `length` bytes of zeroed memory and return where.

        Args:
            length: rounded up to whole pages.
            address: page-aligned, with nothing mapped there; None: the first gap that fits.

        Raises:
            OSError: EINVAL: length not positive or address misaligned. EEXIST: something is mapped there.
                ENOMEM: no such gap, or outside the space. Nothing was changed.
        """
        with self._lock:
            self._check_open()
            if length <= 0:
                raise _error(errno.EINVAL, f"mmap of {length} bytes")
            size = pages_for(length) * PAGE_SIZE
            at = self._gap(size) if address is None else address
            self._check_aligned(at)
            if not self.start <= at <= at + size <= self.start + self.size:
                raise _error(errno.ENOMEM, f"[{at:#x}, +{size}) is outside the address space")
            if self._vmas.overlapping(at, at + size):
                raise _error(errno.EEXIST, f"[{at:#x}, +{size}) is mapped in part")
            _core.map_ordinary(at, size)
            self._vmas.put(at, at + size, Flags(node=self.node))
            self._advise_new(at, size)
            return at

    def munmap(self, address: int, length: int) -> None:
        """Take [address, address + length) away; what is not mapped there is passed over.

        Raises:
            OSError: EINVAL: misaligned, length not positive, or outside the space. ENOMEM: no mapping left
                (vm.max_map_count); what could not be taken away is as it was.
            BufferError: a view of it is alive. Nothing was changed.
        """
        with self._lock:
            self._check_open()
            self._check_aligned(address)
            end = address + pages_for(length) * PAGE_SIZE
            if length <= 0 or not self.start <= address < end <= self.start + self.size:
                raise _error(errno.EINVAL, f"munmap of [{address:#x}, +{length})")
            self._check_no_views(address, end)
            for vma in self._vmas.overlapping(address, end):
                self._unmap(vma)

    def _unmap(self, vma: Vma) -> None:
        self._vmas.put(vma.start, vma.end, None)
        try:
            if (vma.value.own or vma.value.refused) and self._own is not None:
                self._own.unmap(vma)
            else:
                _core.map_nothing(vma.start, len(vma))
        except OSError:
            self._vmas.put(vma.start, vma.end, vma.value)
            raise

    def mbind(self, address: int, length: int, node: int) -> None:
        """Put [address, address + length) on a simulated NUMA node, as mbind(2) does for one node.

        It matters with merge_across_nodes=0. Pages that are not merged move at once (MPOL_MF_MOVE); a merged
        page has more owners than one, so it stays where it is until it is written or unmerged. What is
        mapped there later is on the node of the space again. The length is rounded up to whole pages.

        Raises:
            OSError: EINVAL: misaligned, no such node, or the range wraps. EFAULT: part of the range is not
                mapped. Nothing was changed.
        """
        with self._lock:
            self._check_open()
            end = self._end_of(address, length)
            if not 0 <= node < wire.MAX_NODES:
                raise _error(errno.EINVAL, f"node {node}")
            vmas = self._vmas.overlapping(address, end)
            if sum(len(vma) for vma in vmas) != end - address:
                raise _error(errno.EFAULT, f"[{address:#x}, +{length}) is not mapped in full")
            if self._own is not None and vmas:
                self._own.tell_node(address, end, node)
            for vma in vmas:
                self._vmas.put(vma.start, vma.end, replace(vma.value, node=node))

    def mprotect(self, address: int, length: int, prot: int) -> None:
        """Set what may be done with [address, address + length), as mprotect(2) does.

        Memory merges under any protection, and keeps it. Do not call mprotect(2) itself on the memory of a
        space: that is not seen here. A merge would undo it, and the process would end by SIGSEGV when
        memory that it has made unreadable is compared.

        Args:
            prot: PROT_NONE (0), or PROT_READ, PROT_WRITE, PROT_EXEC of the mmap module, or'ed.

        Raises:
            OSError: EINVAL: misaligned, or another prot. ENOMEM: part of the range is not mapped (what comes
                before is changed), or there are too many mappings. EACCES: PROT_EXEC where /dev/shm
                does not allow it.
        """
        with self._lock:
            self._check_open()
            self._check_aligned(address)
            if prot & ~(mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC):
                raise _error(errno.EINVAL, f"protection {prot:#x}")
            end = address + pages_for(length) * PAGE_SIZE
            if length < 0 or end > _ADDRESS_LIMIT:
                raise _error(errno.ENOMEM, f"[{address:#x}, +{length}) wraps")
            for vma in self._vmas.overlapping(address, end):
                if vma.start != address:
                    break
                self._protect(vma, prot)
                address = vma.end
            if address < end:
                raise _error(errno.ENOMEM, f"{address:#x} is not mapped")

    def _protect(self, vma: Vma, prot: int) -> None:
        protected = Interval(vma.start, vma.end, replace(vma.value, prot=prot))
        self._vmas.put(vma.start, vma.end, protected.value)
        try:
            if self._own is not None and vma.value.own:
                self._own.protect(protected)
            else:
                _core.protect(vma.start, len(vma), prot)
        except OSError:
            self._vmas.put(vma.start, vma.end, vma.value)
            raise

    # ---- bytes -----------------------------------------------------------------------------------

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of the bytes at an address; OSError EFAULT where not all of it may be read."""
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes at an address; OSError EFAULT where not all of it may be written: nothing was."""
        source = memoryview(data).cast("B")
        self._view(address, len(source), mmap.PROT_WRITE)[:] = source

    def view(self, address: int, length: int) -> memoryview:
        """Return a view of real memory, read-only unless all of it may be written.

        The space cannot be closed while one is alive. What mprotect() takes away later, a view does not see:
        using it then is a SIGSEGV.

        Raises:
            OSError: EFAULT: not all of it is mapped, or may be read.
        """
        try:
            return self._view(address, length, mmap.PROT_READ | mmap.PROT_WRITE)
        except OSError:
            return self._view(address, length, mmap.PROT_READ).toreadonly()

    def _view(self, address: int, length: int, prot: int) -> memoryview:
        with self._lock:
            self._check_open()
            end = address + max(length, 0)
            vmas = self._vmas.overlapping(address, end)
            if sum(len(vma) for vma in vmas if not prot & ~vma.value.prot) != length:
                raise _error(errno.EFAULT, f"[{address:#x}, +{length}) is not mapped in full, or protected")
            memory = _core.Memory(address, length, self)
            self._memories.add(memory)
            return memoryview(memory)

    def ndarray(
        self, shape: int | Sequence[int], dtype: npt.DTypeLike, address: int | None = None
    ) -> npt.NDArray[np.generic]:
        """Return an array over real memory, mapped anew unless `address` says where it lies."""
        dtype = np.dtype(dtype)
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if address is None:
            address = self.mmap(max(length, 1))
        return np.ndarray(shape, dtype, buffer=self.view(address, length))

    def blocks_bytes(self) -> int:
        """Return what the own object holds of the host's memory now (st_blocks); 0 before advice."""
        with self._lock:
            self._check_open()
            return self._own.held_bytes() if self._own is not None else 0

    # ---- advice ----------------------------------------------------------------------------------

    def madvise(self, address: int, length: int, advice: int) -> int:
        """Advise [address, address + length) as madvise(2) does for MADV_MERGEABLE and MADV_UNMERGEABLE.

        The length is rounded up to whole pages. MADV_MERGEABLE moves ordinary memory into the own object
        (advise before filling, and there is nothing to move). MADV_UNMERGEABLE returns when every page of
        the range is the worker's own again.

        Returns:
            0, as the kernel does; also where there is nothing to do.

        Raises:
            OSError: EINVAL: misaligned, unknown advice, or the range wraps. ENOMEM: part of the range is
                not mapped; the mapped parts were advised. EAGAIN: no memory to move or to unmerge; what
                could not be advised is as it was. EMFILE, ENFILE, ENOMEM: no descriptor, or no addresses,
                to join ksmd with; nothing changed.
            NotRunningError, KernelLacksError: there is no ksmd, or it cannot work here; nothing changed.
        """
        with self._lock:
            self._check_open()
            if advice not in (MADV_MERGEABLE, MADV_UNMERGEABLE):
                raise _error(errno.EINVAL, f"advice {advice}")
            end = self._end_of(address, length)
            vmas = self._vmas.overlapping(address, end)
            for vma in vmas:
                if advice == MADV_MERGEABLE:
                    self._advise(vma)
                else:
                    self._unadvise(vma, refused=True)
            if sum(len(vma) for vma in vmas) != end - address:
                raise _error(errno.ENOMEM, f"[{address:#x}, +{length}) is not mapped in full")
            return 0

    def _advise(self, vma: Vma, *, from_outside: bool = False) -> None:
        if vma.value.mergeable:
            self._vmas.put(vma.start, vma.end, replace(vma.value, from_outside=from_outside))
            return
        if self._own is None:
            place = Place(self._instance, self.domain)
            # No file system could promise room for what is not reserved.
            own = shared_object.create_memfd(self.size) if self._noreserve else None
            self._own = OwnObject(place, self.start, self.size, self.node, self._vmas, own=own)
        self._own.advise(vma, from_outside=from_outside)

    def _unadvise(self, vma: Vma, *, refused: bool) -> None:
        if vma.value.mergeable and self._own is not None:
            self._own.unadvise(vma, refused=refused)
            return
        self._vmas.put(vma.start, vma.end, replace(vma.value, refused=refused))
        if refused and self._own is not None:
            self._own.refused(vma.start, vma.end)

    def _advise_new(self, address: int, size: int) -> None:
        """Advise what was mapped just now, if the process has asked for that or was asked for.

        As in the kernel no mapping fails for it.
        """
        try:
            if flags.merge_any:
                self.madvise(address, size, MADV_MERGEABLE)
            elif flags.merge_all and not flags.refuses and self.instance.directory in flags.merge_all:
                self._advise(Interval(address, address + size, Flags(node=self.node)), from_outside=True)
        except OSError as error:
            log.warning("[%#x, +%d) stays as it is, unmerged: %s", address, size, error.strerror)

    def madvise_all(self, advice: int) -> None:
        """Advise everything that is mapped; errors as madvise(), what came before is done."""
        with self._lock:
            self._check_open()
            for vma in list(self._vmas):
                self.madvise(vma.start, len(vma), advice)

    def madvise_rest(self) -> None:
        """Make everything mergeable of which the process has not said anything; errors as madvise()."""
        with self._lock:
            self._check_open()
            for vma in list(self._vmas):
                if not vma.value.refused:
                    self._advise(vma)

    def merge_from_outside(self, *, on: bool) -> None:
        """Obey merge_pid, or with off unmerge_pid: where this process has said nothing itself.

        Raises:
            OSError: as madvise(), what came before is done.
        """
        with self._lock:
            for vma in () if self._closed else list(self._vmas):
                if on and not vma.value.mergeable and not vma.value.refused:
                    self._advise(vma, from_outside=True)
                elif not on and vma.value.from_outside:
                    self._unadvise(vma, refused=False)

    @property
    def is_advised(self) -> bool:
        """Whether any part was ever advised: then a ksmd knows this space."""
        return self._own is not None

    @property
    def instance(self) -> Instance:
        """Where the ksmd runs that this space joins, or has joined."""
        return Instance.resolve(self._instance) if self._own is None else self._own.instance

    # ---- end -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Unmap everything and leave ksmd; closing twice is no error.

        Raises:
            BufferError: a view or an array over the memory is alive; nothing was changed.
        """
        with self._lock:
            if self._closed:
                return
            self._check_no_views(self.start, self.start + self.size)
            if self._own is None:
                _core.unreserve(self.start, self.size)
            else:
                self._own.close()
            self._closed = True
            spaces.discard(self)

    def __enter__(self) -> AddressSpace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self.start:#x}, +{self.size}"
        return f"<AddressSpace {self.name or ''}[{state}]>"

    # ---- fork ------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait until no other thread is at work on this space, and keep them all from it."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Undo before_fork()."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """This is the copy of a space in a forked child, whose memory is its own.

        Where the parent could not divide it (EMFILE, ENOMEM) the child does not have it: it is closed.
        """
        self._lock = threading.RLock()  # the parent's thread holds the other one
        if self._own is not None and not self._own.is_there():
            log.warning("%r: the fork could not divide its memory: it is closed here", self)
            self._closed = True
            spaces.discard(self)

    # ---- checks ----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this address space is closed")

    @staticmethod
    def _check_aligned(address: int) -> None:
        if address % PAGE_SIZE:
            raise _error(errno.EINVAL, f"address {address:#x} is not page-aligned")

    def _end_of(self, address: int, length: int) -> int:
        """Return where a range ends that is rounded up to whole pages; EINVAL: misaligned, or it wraps."""
        self._check_aligned(address)
        end = address + pages_for(length) * PAGE_SIZE
        if length < 0 or address < 0 or end >= _ADDRESS_LIMIT:
            raise _error(errno.EINVAL, f"[{address:#x}, +{length}) wraps")
        return end

    def _check_no_views(self, start: int, end: int) -> None:
        for memory in self._memories:
            if memory.exports and memory.address < end and start < memory.address + memory.length:
                raise BufferError("a view of this memory is alive")

    def _gap(self, size: int) -> int:
        at = self._vmas.gap(size, self.start, self.start + self.size)
        if at is None:
            raise _error(errno.ENOMEM, f"no gap of {size} bytes in the address space")
        return at
