"""The own object of an address space, and what its ksmd is told of it. Made by the first advice.

vma ─advise()─▶ adopted into the object, tracked ─▶ ksmd may merge it
    ◀─unadvise()─ every page home again, ksmd forgets it
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ksmemu import _core, room, shared_object, wire
from ksmemu.errors import KsmError
from ksmemu.instance import Instance
from ksmemu.intervals import IntervalMap
from ksmemu.mm import flags, maps
from ksmemu.mm.attach import Attachment, Place, attach
from ksmemu.mm.vma import Flags, Vma, VmaMap
from ksmemu.units import Range
from ksmemu.wire import ReportKind


class OwnObject:
    """The shared-memory object behind [start, start + size), registered with a ksmd as `id`.

    The space's lock is held around every call. Without `own` an object is made that can hold all of it.

    Raises:
        NotRunningError, ForeignInstanceError, KernelLacksError, KsmError: nothing is left behind.
    """

    def __init__(  # noqa: PLR0913 (what it is of)
        self, place: Place, start: int, size: int, node: int, vmas: VmaMap, *, own: int | None
    ) -> None:
        self._vmas = vmas
        self._nodes = IntervalMap[int]()  # as ksmd knows them
        self._nodes.put(start, start + size, node)
        self._protections = b""  # as the agent knows them
        try:
            own = shared_object.create(size, size) if own is None else own
            self._attach(place, start, size, node, own)
        except KsmError as error:
            if error.errno != errno.ENOSPC:
                raise
            # What other spaces were promised of /dev/shm leaves too little for this one.
            self._attach(place, start, size, node, shared_object.create_memfd(size))
        if flags.merge_any or flags.refuses:
            self._attachment.tell_flags()
        for vma in vmas:
            if vma.value.refused:
                self.refused(vma.start, vma.end)

    def _attach(self, place: Place, start: int, size: int, node: int, own: int) -> None:
        try:
            self._attachment: Attachment
            self._attachment, self.id = attach(place, start, size, own, node)
        except BaseException:
            os.close(own)
            raise

    @property
    def _agent(self) -> _core.Agent:
        return self._attachment.agent

    @property
    def instance(self) -> Instance:
        """Where the ksmd runs that knows this object."""
        return self._attachment.instance

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Yield a descriptor of the object as it is now: a fork replaces it."""
        fd = self._agent.own(self.id)
        try:
            yield fd
        finally:
            os.close(fd)

    def is_there(self) -> bool:
        """Return whether this process has the object: a forked child may not."""
        try:
            with self._opened():
                return True
        except OSError as error:
            return error.errno != errno.ENOENT

    def held_bytes(self) -> int:
        """Return what the object holds of the host's memory now (st_blocks)."""
        with self._opened() as own:
            return os.fstat(own).st_blocks * 512

    def tell_node(self, start: int, end: int, node: int) -> None:
        """Let ksmd know the node of [start, end), unless it does; what it learns holds until told otherwise.

        Without a ksmd, the next one is told.
        """
        if any(part.value != node for part in self._nodes.overlapping(start, end)):
            self._nodes.put(start, end, node)
            self._tell(ReportKind.BOUND, start, end, node)

    def _tell(self, kind: ReportKind, start: int, end: int, value: int = 0) -> None:
        """Tell ksmd what changes no mapping, and keep it for the next one."""
        self._remember()
        self._agent.tell(self.id, kind, start, end, value)

    def _remember(self) -> None:
        """Let the agent know what the next ksmd is to be told besides what is mergeable, and merged."""
        kinds = {ReportKind.REFUSED: "refused", ReportKind.UNSHAREABLE: "unshareable"}
        notes = [
            (vma.start, vma.end, kind, 0)
            for vma in self._vmas
            for kind, name in kinds.items()
            if not vma.value.mergeable and getattr(vma.value, name)
        ]
        notes += [(part.start, part.end, ReportKind.BOUND, part.value) for part in self._nodes]
        self._agent.remember(self.id, np.array(notes, dtype=wire.NOTE).tobytes())

    def protect(self, vma: Vma) -> None:
        """Call mprotect(2) with what a VMA of the map now allows, and keep it through merge and rehome.

        Raises:
            OSError: as mprotect(2).
        """
        protections = self._vmas.protections()
        self._agent.protect(self.id, vma.start, vma.end, vma.value.prot, protections)
        self._protections = protections

    def advise(self, vma: Vma, *, from_outside: bool) -> None:
        """Make a VMA mergeable that is not.

        Raises:
            OSError: EAGAIN: no memory to move it; what could not be moved is as it was.
            NotRunningError: ksmd is gone; nothing was changed.
        """
        self._attachment.check_alive()
        self.tell_node(vma.start, vma.end, vma.value.node)
        if self._protections != self._vmas.protections():
            self.protect(vma)
        wanted = Flags(
            mergeable=True,
            own=True,
            from_outside=from_outside,
            prot=vma.value.prot,
            node=vma.value.node,
        )
        self._vmas.put(vma.start, vma.end, wanted)
        try:
            if vma.value.unshareable:
                self._tell(ReportKind.ADVISED, vma.start, vma.end)
                return
            self._remember()
        except OSError:
            self._vmas.put(vma.start, vma.end, vma.value)
            raise
        advised = self._vmas.mergeable()
        done, error = self._agent.advise(self.id, vma.start, vma.end, not vma.value.own, advised)
        if error:
            done = max(done, vma.start)
            self._vmas.put(vma.start, done, replace(vma.value, own=True))
            self._vmas.put(done, vma.end, vma.value)
            text = f"{os.strerror(errno.EAGAIN)}: madvise: {os.strerror(error)}: advised before {done:#x}"
            raise OSError(errno.EAGAIN, text)

    def unadvise(self, vma: Vma, *, refused: bool) -> None:
        """Bring every page of a mergeable VMA home, and make it mergeable no more.

        As in 2009 if ksmd is of that year: what is merged stays merged.

        Raises:
            OSError: EAGAIN: no room for what is merged; the VMA is mergeable still.
        """
        if self._attachment.rfc2009:
            withdrawn = replace(
                vma.value, mergeable=False, from_outside=False, refused=refused, unshareable=True
            )
            self._vmas.put(vma.start, vma.end, withdrawn)
            self._tell(ReportKind.UNSHAREABLE, vma.start, vma.end)
            if refused:
                self.refused(vma.start, vma.end)
            return
        before = self._vmas.mergeable()
        needed = sum(len(part) for part in self._merged(vma))
        with self._opened() as own:
            has_room = needed <= room.object_bytes(own)
        if not has_room:
            text = f"{os.strerror(errno.EAGAIN)}: no room for the {needed} bytes that unmerging needs"
            raise OSError(errno.EAGAIN, text)
        unmerged = replace(vma.value, mergeable=False, from_outside=False, refused=refused)
        self._vmas.put(vma.start, vma.end, unmerged)
        merged: list[Range] = []
        try:
            self._agent.withdraw(self.id, self._vmas.mergeable())
            merged = self._merged(vma)  # nothing merges in the range any more: this stays so
            for part in merged:
                self._agent.rehome(self.id, part.start, part.end)
        except OSError as error:
            self._advise_again(vma, merged, before)
            text = f"{os.strerror(errno.EAGAIN)}: madvise: {error.strerror}: still mergeable"
            raise OSError(errno.EAGAIN, text) from None
        self._agent.unadvised(self.id, vma.start, vma.end)
        if refused:
            self.refused(vma.start, vma.end)

    def refused(self, start: int, end: int) -> None:
        """Let ksmd know that the process itself has said MADV_UNMERGEABLE to what is not mergeable."""
        self._tell(ReportKind.REFUSED, start, end)

    def _advise_again(self, vma: Vma, merged: list[Range], advised: bytes) -> None:
        """Undo the withdrawal; what was rehomed by then is new to ksmd."""
        self._vmas.put(vma.start, vma.end, vma.value)
        rehomed = IntervalMap[bool]()
        for part in merged:
            rehomed.put(part.start, part.end, True)
        for part in self._merged(vma) if merged else []:
            rehomed.put(part.start, part.end, None)
        for item in rehomed:
            self._agent.unadvised(self.id, item.start, item.end)
        # Not before ksmd was told of all of them: until then it may have them merged as what they were.
        for item in rehomed:
            self._agent.advise(self.id, item.start, item.end, False, advised)
        self._agent.withdraw(self.id, advised)

    def _merged(self, vma: Vma) -> list[Range]:
        """Return what shows frames, zeros, or what was there before a fork."""
        with self._opened() as own:
            return maps.not_of(os.fstat(own).st_ino, vma.start, vma.end)

    def unmap(self, vma: Vma) -> None:
        """Take a VMA away that is gone from the map of VMAs; OSError ENOMEM."""
        self._agent.unmap(self.id, vma.start, vma.end, self._vmas.mergeable())

    def close(self) -> None:
        """Unmap the whole space and leave ksmd; the object belongs to the agent, which closes it."""
        self._agent.remove_space(self.id)
        self._attachment.leave()
