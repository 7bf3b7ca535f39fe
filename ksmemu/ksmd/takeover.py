"""Go on where a ksmd that died has left off: the books are rebuilt from what agents say is mapped.

A worker that resumes hands over the pool it knows, its spaces, and what is mergeable and merged in them. What
frames hold and who else may map them, ksmd finds out by itself: nothing that a ksmd wrote down is believed.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd import holders
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.pool import Frames
from ksmemu.ksmd.ranges import Pages, distinct, expand
from ksmemu.ksmd.rmap import NO_FRAME, State
from ksmemu.ksmd.table import Fingerprints
from ksmemu.wire import WireError


def takes_pool(domain: Domain, others: Iterable[Domain], file: int, holder: int) -> bool:
    """Return whether the pool of a worker that resumes is that of the domain, or has become it now.

    Args:
        others: whose pools it cannot be: two domains would fill the same frames.
        file: the worker's descriptor. holder: what a ksmd called it.

    Raises:
        WireError: it is no pool of ours, or not called so.
    """
    try:
        fcntl.fcntl(file, fcntl.F_GET_SEALS)  # shared memory alone has seals; no file system is asked
    except OSError:
        raise WireError("a pool that is no shared memory") from None
    found = os.fstat(file)
    # SAFE: only this user can have made it, and given it a mode by which no other can write.
    if (
        not stat.S_ISREG(found.st_mode)
        or found.st_uid != os.geteuid()
        or found.st_mode & 0o022
        or found.st_nlink
        or found.st_size != domain.pool.nr_bytes
    ):
        raise WireError("a pool that is none")
    pool = domain.pool
    if not pool.is_same(file):
        if pool.was_given or any(other.pool.is_same(file) for other in others):
            return False
        pool.adopt(file, domain.checksum.seed)
    if not 0 < holder < holders.MAX_HOLDER or holders.is_anothers(file, holder):
        raise WireError(f"a holder {holder} that is not called so")
    return True


def mapped(domain: Domain, slot: MmSlot, spans: npt.NDArray[np.void]) -> None:
    """Enter what a space shows already: in each span frames that follow each other, or the zero page.

    What a forked child has from its parent is counted from the first scan on, as in the kernel.

    Raises:
        WireError: these pages cannot show this; nothing was entered.
    """
    pages, frames = spelled_out(slot, spans)
    if slot.rmap.state[pages].any():
        raise WireError("pages that are tracked already")
    if slot.is_inherited(pages).any():
        raise WireError("pages that show a frame and an ancestor")
    is_zero = frames == NO_FRAME
    _enter(domain, slot, pages[~is_zero], frames[~is_zero])
    _enter_zeros(domain, slot, pages[is_zero])


def spelled_out(slot: MmSlot, spans: npt.NDArray[np.void]) -> tuple[Pages, Frames]:
    """Return the pages that spans name, which ascend, and the frame of each; NO_FRAME stays so.

    Raises:
        WireError: they do not ascend, or leave the space.
    """
    starts, lengths = spans["page"], spans["nr_pages"]
    limit = np.uint64(slot.nr_pages)
    if not ((starts < limit) & (lengths > 0) & (lengths <= limit)).all():
        raise WireError(f"spans that are none in a space of {slot.nr_pages} pages")
    ends = starts + lengths
    if (starts[1:] < ends[:-1]).any() or (ends > limit).any():
        raise WireError(f"spans that overlap, or leave a space of {slot.nr_pages} pages")
    pages = expand(np.stack([starts, ends], axis=1).astype(np.int64))
    values = np.repeat(spans["value"].astype(np.int64), lengths.astype(np.int64))
    into = pages - np.repeat(starts.astype(np.int64), lengths.astype(np.int64))
    return pages, np.where(values == NO_FRAME, NO_FRAME, values + into)


def _enter(domain: Domain, slot: MmSlot, pages: Pages, frames: Frames) -> None:
    pool = domain.pool
    if (frames >= pool.nr_frames).any() or not pool.holds_data(frames):
        raise WireError("frames that hold nothing, or are none")
    bases = pool.ladders.bases(frames)
    for base in distinct(bases[bases >= 0]).tolist():
        _enter_rungs(domain, slot, pages[bases == base], base)
    pages, frames = pages[bases < 0], frames[bases < 0]
    is_new = pool.refs[frames] == 0
    marks = domain.marks_of(slot, pages)
    pool.recognise(frames)
    _show(domain, slot, pages, frames)
    _add(domain, (pool.fingerprint[frames] ^ marks)[is_new], frames[is_new])


def _enter_rungs(domain: Domain, slot: MmSlot, pages: Pages, base: int) -> None:
    """A forked child shows rungs of a ladder: in the books it has dups of that content."""
    content = domain.pool.ladders.content(base)
    frames, new = _deal(domain, len(pages), content)
    if len(new) and not domain.pool.copy(base, new):
        raise WireError("no room for what a forked child shows")
    _show(domain, slot, pages, frames)
    domain.pool.ladders.lengthen(base, new)
    _add(domain, np.full(len(new), content, dtype=np.uint64), new)


def _enter_zeros(domain: Domain, slot: MmSlot, pages: Pages) -> None:
    """As merge.py has it: zeros show the zero page; in the books they have frames, unless use_zero_pages."""
    if domain.rules.use_zero_pages:
        _show(domain, slot, pages, np.full(len(pages), NO_FRAME))
        return
    contents = np.broadcast_to(np.uint64(domain.checksum.zero) ^ domain.marks_of(slot, pages), len(pages))
    for content in distinct(contents).tolist():
        alike = pages[contents == content]
        frames, new = _deal(domain, len(alike), content)
        _show(domain, slot, alike, frames)
        _add(domain, np.full(len(new), content, dtype=np.uint64), new)


def _deal(domain: Domain, nr: int, content: int) -> tuple[Frames, Frames]:
    """Return (frames, new): frames of one content for so many pages, referenced; the new hold nothing yet."""
    pool = domain.pool
    _, known, sharers = domain.stable.dups(np.array([content], dtype=np.uint64))
    most = min(domain.rules.max_page_sharing, nr)
    room = np.clip(domain.rules.max_page_sharing - sharers, 0, most)
    new = pool.allocate(-(-max(nr - int(room.sum()), 0) // most))
    room = np.concatenate([room, np.full(len(new), most)])
    frames = np.repeat(np.concatenate([known, new]), room)[:nr]
    if len(frames) < nr:
        raise WireError("no frame left for what is merged already")
    pool.is_fresh[new] = False
    pool.recognise(frames)
    return frames, new


def _add(domain: Domain, fingerprints: Fingerprints, frames: Frames) -> None:
    """Enter frames as merged content; pages of others that have been waiting for it are looked at anew."""
    domain.stable.add(fingerprints, frames)
    _, where = domain.unstable.waiting(distinct(fingerprints))
    domain.move(where, State.WRITTEN)


def _show(domain: Domain, slot: MmSlot, pages: Pages, frames: Frames) -> None:
    """Enter that pages show frames; by the rules of 2009 what is not advised any more is not counted."""
    if not len(pages):
        return
    slot.rmap.track(pages, State.LEFT)
    slot.rmap.tag[pages] = frames
    if domain.rules.forgets_unadvised:
        advised = [np.arange(part.start, part.end) for part in slot.advised]
        pages = pages[np.isin(pages, np.concatenate([*advised, pages[:0]]))]
    if not domain.owner[slot.id].is_forked:
        domain.count_left(slot, pages)


def drop_orphans(domain: Domain) -> None:
    """Give back what nobody maps, as far as all who may map it have said what they map."""
    domain.pool.sweep()
    domain.sweep_ancestors()
