"""The arena: one address space, for whatever numpy takes large blocks for.

numpy ─▶ data_memory.c ─▶ take ─▶ mmap and madvise in the space      one own object and one descriptor,
                          give ─▶ munmap: back to the host           however many arrays there are

An array must not fail because it cannot be merged. Where no ksmd runs, blocks are ordinary memory in the
space, and a thread advises them when one comes. Where the arena has nothing to give, numpy's own handler has.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator

from ksmemu.errors import NotRunningError
from ksmemu.mm import _data_memory, attach, spaces
from ksmemu.mm.address_space import MADV_MERGEABLE, AddressSpace
from ksmemu.units import PAGE_SIZE

log = logging.getLogger(__name__)

_TIMES_MEMORY = 4
"""So much address range: what is freed may leave gaps into which nothing fits that comes later."""

_LOOK_SECONDS = 1.0
"""How often is looked for a ksmd, where there are blocks that wait for one."""


class Arena:
    """Blocks of mergeable memory; the space is there while there are blocks, or while it is held.

    `take`, `give` and `size_of` are for data_memory.c: in any thread, also where a collection of garbage
    frees arrays amid a method of a space. Then nothing may be changed in this thread: `_is_at_work()`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # before those of spaces
        self._space: AddressSpace | None = None
        self._sizes: dict[int, int] = {}
        self._freed: deque[int] = deque()  # on their way back; anyone may append
        self._nr_holders = 0
        self._is_over = threading.Event()  # of the space that is there: nobody need wait for a ksmd
        self._waiter: threading.Thread | None = None
        self._has_warned = False

    # ---- numpy -----------------------------------------------------------------------------------

    def take(self, size: int) -> int:
        """Return the address of `size` zeroed bytes, or 0."""
        if self._is_at_work():
            return 0
        try:
            with self._lock:
                self._sweep()
                return self._map(size)
        except OSError as error:
            self._warn_once("arrays are not mergeable: %s", error)
            return 0

    def give(self, address: int) -> int:
        """Take a block back."""
        self._freed.append(address)
        self._tidy()
        return 0

    def size_of(self, address: int) -> int:
        """Return how many bytes were asked for."""
        return self._sizes.get(address, 0)

    def _is_at_work(self) -> bool:
        """Return whether this thread is amid a method of the arena, or of a space, and holds its lock."""
        locks = [self._lock, attach._lock, *(space._lock for space in spaces.every())]  # noqa: SLF001
        return any(lock._is_owned() for lock in locks)  # type: ignore[attr-defined]  # noqa: SLF001

    # ---- the space -------------------------------------------------------------------------------

    def _map(self, size: int) -> int:
        space = self._space or self._open()
        address = space.mmap(size)
        self._sizes[address] = size
        try:
            space.madvise(address, size, MADV_MERGEABLE)
        except NotRunningError as error:
            self._warn_once("arrays wait to be mergeable: %s", error)
            self._await_ksmd(space)
        except OSError as error:
            self._warn_once("arrays are not mergeable: %s", error)
        except BaseException:  # a KeyboardInterrupt
            self._freed.append(address)
            raise
        return address

    def _open(self) -> AddressSpace:
        memory = os.sysconf("SC_PHYS_PAGES") * PAGE_SIZE
        self._space = space = AddressSpace(_TIMES_MEMORY * memory, name="arrays", noreserve=True)
        self._is_over = threading.Event()
        _data_memory.set_bounds(space.start, space.start + space.size)
        return space

    def _warn_once(self, text: str, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(text, error.strerror)

    def _sweep(self) -> None:
        """Unmap what was freed. If this is interrupted, the next one goes on, before anything is mapped."""
        while self._freed and self._space:
            address = self._freed[0]
            self._space.munmap(address, self._sizes[address])
            self._freed.popleft()
            del self._sizes[address]

    def _tidy(self) -> None:
        """Give back what was freed, and the space if nobody needs it: not amid anything else."""
        if self._is_at_work():
            _thread.start_new_thread(self._tidy, ())
            return
        with self._lock:
            try:
                self._sweep()
            except OSError as error:
                log.warning("freed arrays stay for now: %s", error)
            if self._space and not self._sizes and not self._nr_holders:
                _data_memory.set_bounds(0, 0)  # before others can get these addresses
                self._is_over.set()
                self._waiter = None
                space, self._space = self._space, None
                space.close()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the space meanwhile: to make one, and to join ksmd, costs more than an array."""
        with self._lock:
            self._nr_holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._nr_holders -= 1
            self._tidy()

    def __contains__(self, address: int) -> bool:
        space = self._space
        return space is not None and space.start <= address < space.start + space.size

    # ---- a ksmd that comes later -----------------------------------------------------------------

    def _await_ksmd(self, space: AddressSpace) -> None:
        if self._waiter is None:
            self._waiter = threading.Thread(
                target=self._advise_late, args=(space, self._is_over), name="ksmemu-arrays", daemon=True
            )
            self._waiter.start()

    def _advise_late(self, space: AddressSpace, is_over: threading.Event) -> None:
        """Runs in: a thread of its own, until a ksmd has come or there are no blocks."""
        while not is_over.wait(_LOOK_SECONDS):
            if not space.instance.is_served():
                continue
            with self._lock:
                if is_over.is_set():
                    return
                try:
                    space.madvise_rest()
                except NotRunningError:
                    continue
                except OSError as error:
                    log.warning("arrays are not mergeable: %s", error)
                self._waiter = None
                return

    # ---- fork ------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait until no other thread is at work here, and keep them all from it."""
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Undo before_fork()."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """The space has been divided; where it could not be, what is in it is lost here, and said so."""
        self._lock = threading.RLock()
        if self._space is not None and self._space not in spaces.every():
            _data_memory.stop()
        elif self._waiter is not None and self._space is not None:
            self._waiter = None
            self._await_ksmd(self._space)


arena = Arena()
_data_memory.serve(arena)
atexit.register(_data_memory.stop)  # what Python frees after that is freed by the end of the process
