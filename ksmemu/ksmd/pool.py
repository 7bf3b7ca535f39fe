"""Step 5: the shared frames of one security domain: allocate, fill, reference, release.

A frame is written once, before anybody maps it, and never again until its last reference is gone and it
was punched. Workers hold a descriptor that cannot write.
"""

from __future__ import annotations

import logging
import os

import numpy as np
import numpy.typing as npt

from ksmemu import _core, shared_object
from ksmemu.ksmd import holders
from ksmemu.ksmd.columns import column
from ksmemu.ksmd.ladder import Ladders
from ksmemu.ksmd.place import Places
from ksmemu.ksmd.ranges import Pages, counted, expand, from_core
from ksmemu.ksmd.rmap import NO_FRAME
from ksmemu.ksmd.table import Fingerprints, low_half
from ksmemu.units import PAGE_SIZE

_MODE = 0o444
"""Nobody opens it for writing again, not even through /proc/self/fd of a descriptor that was given."""
_SHARE = 4
"""A file system with room for this part of memory is large enough for the pool; most have twice that."""

log = logging.getLogger(__name__)

Frames = npt.NDArray[np.int64]
"""Frame numbers."""
Gaps = tuple[Fingerprints, Places]
"""Of each page that left a frame which others go on sharing: the content of it, the place of the page."""
NO_GAPS: Gaps = (np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64))


class Pool:
    """One shared-memory object, all hole at first, and the columns that say who uses which frame.

    A frame of zeros is a hole: whoever maps it maps the kernel's zero page instead.

    Attributes:
        max_used: no frame is allocated beyond so many in use (max_kernel_pages of 2009).
        refs: pages that name the frame, also those of orders under way (I2).
        pending: those of orders under way.
        fingerprint: of what the frame holds.
        is_fresh: allocated, and never had two pages yet.
        nr_used, nr_single: frames that pages name, and those of them that a single page names.
        was_given: a worker has a descriptor of it: no other pool can take its place.
        known: names of the holders that have said what they map.
        nr_orphans: frames that nobody names who is known, while there are others.
    """

    def __init__(self) -> None:
        self.nr_frames = os.sysconf("SC_PHYS_PAGES")
        self.nr_bytes = self.nr_frames * PAGE_SIZE
        self._fd = shared_object.create(self.nr_bytes, needed=self.nr_bytes // _SHARE)
        os.fchmod(self._fd, _MODE)
        self._read_only = shared_object.open_read_only(self._fd)
        self.was_given = False
        self.known: set[int] = set()
        self.refs = column(self.nr_frames, np.uint32)
        self.pending = column(self.nr_frames, np.uint32)
        self.fingerprint = column(self.nr_frames, np.uint64)
        self.is_fresh = column(self.nr_frames, np.bool_)
        self._is_orphan = column(self.nr_frames, np.bool_)
        self.nr_orphans = 0
        self._left: list[tuple[Places, Frames]] = []
        self.max_used = self.nr_frames
        self.nr_used = self.nr_single = 0
        self.nr_refs = 0
        self._high = 0  # no frame from here on was ever used
        self.ladders = Ladders(self)

    def close(self) -> None:
        """Forget the pool; it lives as long as somebody maps a frame."""
        os.close(self._fd)
        os.close(self._read_only)

    def read_only(self) -> int:
        """Return the descriptor with which workers map frames."""
        return self._read_only

    def give(self) -> tuple[int, int]:
        """Return (descriptor, holder): the caller's, for a worker to keep, and its name.

        Raises:
            OSError: EMFILE, ENFILE, ENOLCK.
        """
        file = shared_object.open_read_only(self._fd)
        try:
            holder = holders.name(file)
        except BaseException:
            os.close(file)
            raise
        self.was_given = True
        return file, holder

    def is_same(self, file: int) -> bool:
        """Return whether a descriptor is of this pool."""
        return os.path.samestat(os.fstat(file), os.fstat(self._fd))

    def has_strangers(self) -> bool:
        """Return whether somebody may map frames who has not said which."""
        return bool(holders.living(self._fd) - self.known)

    def adopt(self, file: int, seed: int) -> None:
        """Become the pool of a ksmd that died: `file` is a worker's descriptor. Nothing was given yet.

        Each frame that holds data is an orphan, known by what it holds, until somebody names it.

        Raises:
            OSError: EACCES: another user's; ENOMEM. This pool is as it was.
        """
        os.fchmod(file, 0o600)
        try:
            adopted = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.fchmod(file, _MODE)
        frames = expand(from_core(_core.data_extents(adopted, 0, self.nr_bytes), PAGE_SIZE))
        found = np.empty(len(frames), dtype=np.uint64)
        try:
            _core.checksum_pages(adopted, frames.astype(np.uint64), seed, found)
        except BaseException:
            os.close(adopted)
            raise
        self.close()
        self._fd, self.was_given = adopted, True
        self._read_only = shared_object.open_read_only(adopted)
        self.fingerprint[frames] = found
        self._is_orphan[frames] = True
        self.nr_orphans = len(frames)
        self._high = int(frames[-1]) + 1 if len(frames) else 0

    def holds_data(self, frames: Frames) -> bool:
        """Return whether all of these frames were named already, or are orphans."""
        return bool(((self.refs[frames] > 0) | self._is_orphan[frames]).all())

    def recognise(self, frames: Frames) -> None:
        """Take a reference for each entry: a page that shows the frame since before this ksmd."""
        which, _ = counted(frames)
        self.nr_orphans -= int(np.count_nonzero(self._is_orphan[which]))
        self._is_orphan[which] = False
        self.acquire(frames)
        self.settle(frames)

    def sweep(self) -> None:
        """Give the frames back to the host that nobody names, unless there are strangers."""
        if not self.nr_orphans or self.has_strangers():
            return
        orphans = np.flatnonzero(self._is_orphan[: self._high])
        self._is_orphan[orphans] = False
        self.nr_orphans = 0
        self.discard(orphans)

    def blocks_bytes(self) -> int:
        """Return the host's memory that the pool holds now (st_blocks)."""
        return os.fstat(self._fd).st_blocks * 512

    def allocate(self, nr: int) -> Frames:
        """Return fresh frames, consecutive where possible; fewer than nr if there are no more.

        They are the caller's: each is acquired, or discarded.
        """
        nr = max(min(nr, self.max_used - self.nr_used), 0)
        free = self._high - self.nr_used - self.ladders.nr_frames - self.nr_orphans
        if free >= max(nr, self._high // 4) or self._high + nr > self.nr_frames:
            found = np.flatnonzero(~self._is_taken())[:nr]
        else:
            found = np.empty(0, dtype=np.int64)
        more = min(nr - len(found), self.nr_frames - self._high)
        frames = np.concatenate([found, np.arange(self._high, self._high + more)])
        self._high += more
        self.is_fresh[frames] = True
        return frames

    def _is_taken(self) -> npt.NDArray[np.bool_]:
        """Return for each frame that was ever used whether it is in use, or allocated and to be used."""
        taken: npt.NDArray[np.bool_] = (self.refs[: self._high] > 0) | self.is_fresh[: self._high]
        return taken | self._is_orphan[: self._high]

    def fill(self, own: int, pages: Pages, frames: Frames, seed: int) -> Fingerprints:
        """Copy pages of a worker's own object to frames; return what each frame now holds.

        Raises:
            OSError: ENOSPC: no room for the pool; ENODATA: the object is shorter than it was.
        """
        found = np.empty(len(pages), dtype=np.uint64)
        _core.fill_frames(own, pages.astype(np.uint64), self._fd, frames.astype(np.uint64), seed, found)
        return found

    def read(self, frame: int) -> bytes:
        """Return what a frame that is in use holds."""
        return os.pread(self._fd, PAGE_SIZE, frame * PAGE_SIZE)

    def acquire(self, frames: Frames) -> None:
        """Take a reference for each entry; an entry is a page of an order that is about to be sent."""
        which, counts = counted(frames)
        self._change_refs(which, counts)
        self.pending[which] += counts.astype(np.uint32)

    def _change_refs(self, which: Frames, by: npt.NDArray[np.int64]) -> None:
        """Add to the references of frames, each named once, and to what is counted of them."""
        before = self.refs[which]
        after = (before + by).astype(np.uint32)
        self.refs[which] = after
        self.nr_refs += int(by.sum())
        self.nr_used += int(np.count_nonzero(after)) - int(np.count_nonzero(before))
        self.nr_single += int(np.count_nonzero(after == 1)) - int(np.count_nonzero(before == 1))

    def settle(self, frames: Frames) -> None:
        """The order of these entries has ended, one way or the other."""
        which, counts = counted(frames)
        self.pending[which] -= counts.astype(np.uint32)

    def release(self, frames: Frames, where: Places) -> None:
        """Give back the reference that the page at each place holds; frames without one are punched."""
        self._left.append((where, frames))
        which, counts = counted(frames[frames != NO_FRAME])
        self._change_refs(which, -counts)
        gone = which[self.refs[which] == 0]
        self.ladders.drop(gone)
        self._free(gone)

    def _free(self, frames: Frames) -> None:
        """Give frames (ascending) back that nobody names who is known: now, or when there are no strangers.

        A forked child maps what its parent mapped, and is a stranger until it has said so.
        """
        if len(frames) and self.has_strangers():
            self._is_orphan[frames] = True
            self.nr_orphans += len(frames)
        else:
            self.discard(frames)

    def take_gaps(self) -> Gaps:
        """Return where pages left frames that are still in use, since the last call."""
        left, self._left = self._left, []
        if not left:
            return NO_GAPS
        where, frames = (np.concatenate(column) for column in zip(*left, strict=True))
        is_used = (frames != NO_FRAME) & (self.refs[np.where(frames == NO_FRAME, 0, frames)] > 0)
        return self.fingerprint[frames[is_used]], where[is_used]

    def checksums(self, frames: Frames) -> npt.NDArray[np.uint32]:
        """Return what a page that left these frames has for its last checksum; 0 for NO_FRAME."""
        known = frames != NO_FRAME
        fingerprints = self.fingerprint[np.where(known, frames, 0)]
        return np.where(known, low_half(fingerprints), 0).astype(np.uint32)

    def set_aside(self, nr: int) -> int | None:
        """Take nr consecutive frames out of what allocate() gives; return the first, or None."""
        used = np.flatnonzero(self._is_taken())
        starts = np.concatenate([[-1], used]) + 1
        fits = np.flatnonzero(np.concatenate([used, [self._high]]) - starts >= nr)
        base = int(starts[fits[0]]) if len(fits) else self._high
        if base + nr > self.nr_frames:
            return None
        self.refs[base : base + nr] = 1
        self.fingerprint[base : base + nr] = 0  # else tables would know them by what they held before
        self._high = max(self._high, base + nr)
        return base

    def give_back(self, frames: Frames) -> None:
        """Undo set_aside(); nothing maps these frames (ascending)."""
        self.refs[frames] = 0
        self._free(frames)

    def copy(self, frame: int, frames: Frames) -> bool:
        """Copy one frame to others; return False, with a word in the log, where there is no room for them."""
        found = np.empty(len(frames), dtype=np.uint64)
        source = np.full(len(frames), frame, dtype=np.uint64)
        try:
            _core.fill_frames(self._fd, source, self._fd, frames.astype(np.uint64), 0, found)
        except OSError as error:
            log.warning("%d frames could not be filled: %s", len(frames), error.strerror)
            return False
        return True

    def discard(self, frames: Frames) -> None:
        """Give frames that nobody references back to the host; ascending."""
        if not len(frames):
            return
        self.is_fresh[frames] = False
        breaks = np.flatnonzero(np.diff(frames) != 1) + 1
        for run in np.split(frames, breaks):
            # SAFE: no mapping names these frames: every page that did was rehomed, or its process is gone.
            _core.punch(self._fd, int(run[0]) * PAGE_SIZE, len(run) * PAGE_SIZE)
