"""How the pages of spaces look, as columns: what a page map is drawn from, and who shares with whom.

control/page_map.py -> page_map.py. As an explanation it is made from the books and from what else holds
memory, and changes nothing.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ksmemu import _core, wire
from ksmemu.control import page_map
from ksmemu.control.look import Look
from ksmemu.control.page_map import Columns, Content, SpaceHead
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.pool import Frames
from ksmemu.ksmd.ranges import Pages, contains, counted, expand, from_core, union
from ksmemu.ksmd.rmap import CHUNK, NO_FRAME, State
from ksmemu.ksmd.worker import Worker
from ksmemu.units import PAGE_SIZE
from ksmemu.wire import WireError

log = logging.getLogger(__name__)

_OF_STATE = {
    State.ABSENT: Look.ABSENT,
    State.NEW: Look.OWN,
    State.WRITTEN: Look.VOLATILE,
    State.UNSEEN: Look.VOLATILE,
    State.SETTLED: Look.OWN,
    State.SKIPPED: Look.OWN,
    State.UNSTABLE: Look.OWN,
    State.ORDERED: Look.OWN,
    State.MERGED: Look.MERGED,
    State.ZERO: Look.ZERO,
    State.REHOMING: Look.BROKEN,
    State.LEFT: Look.MERGED,
}

LOOKS: npt.NDArray[np.uint8] = np.array([_OF_STATE[state] for state in State], dtype=np.uint8)
"""The Look of a page by its State, as far as the books know."""

_NR_CONTENTS = 20
_HEAD_BYTES = 16

assert (page_map.CHUNK, page_map.NO_FRAME) == (CHUNK, NO_FRAME)  # noqa: S101 (both sides of one answer)


def answer(domains: Sequence[Domain], body: dict[str, object]) -> bytes:
    """Return the answer to a question for page maps.

    Args:
        domains: of which whoever asks may know.

    Raises:
        WireError: it is no such question. OSError: ESRCH: there is no such space.
    """
    pid, start = body.get("pid"), body.get("start")
    if not isinstance(pid, int | None) or not isinstance(start, int | None):
        raise WireError("a question for page maps that names no process or address")
    if body != {"pages": wire.VERSION, "pid": pid, "start": start}:
        raise WireError(f"a question for page maps of another version than {wire.VERSION}")
    found = [
        (domain, worker, slot)
        for domain in domains
        for worker in domain.workers
        for slot in worker.slots
        if pid in (None, worker.pid) and start in (None, slot.start)
    ]
    if pid is not None and not found:
        raise OSError(errno.ESRCH, f"no such memory of pid {pid} is known")
    columns = [_columns(domain, slot) for domain, _, slot in found]
    spaces = [
        _head(domain, worker, slot, len(chunks))
        for (domain, worker, slot), (chunks, _, _) in zip(found, columns, strict=True)
    ]
    contents = [] if pid is not None else _contents(domains)
    return page_map.encode({"spaces": spaces, "contents": contents}, columns)


def _head(domain: Domain, worker: Worker, slot: MmSlot, nr_chunks: int) -> SpaceHead:
    return {
        "pid": worker.pid,
        "domain": str(domain.key),
        "start": slot.start,
        "end": slot.start + slot.nr_pages * PAGE_SIZE,
        "nr_chunks": nr_chunks,
    }


def _columns(domain: Domain, slot: MmSlot) -> Columns:
    """Return the chunks of a space that hold data, and the look and the frame of each of their pages."""
    rmap = slot.rmap
    own, private = held(slot)
    with_data = union(rmap.tracked(0, rmap.nr_pages), own, private)
    chunks = counted(with_data // CHUNK)[0]
    rows = (chunks[:, None] * CHUNK + np.arange(CHUNK)).reshape(-1)

    def those(pages: Pages) -> npt.NDArray[np.bool_]:
        found = np.zeros(len(rows), dtype=np.bool_)
        found[np.searchsorted(chunks, pages // CHUNK) * CHUNK + pages % CHUNK] = True
        return found

    looks = LOOKS[rmap.state[rows]]
    is_private = those(private)
    looks[(those(own) | is_private) & (looks == Look.ABSENT)] = Look.OWN
    looks[is_private & ((looks == Look.MERGED) | (looks == Look.ZERO))] = Look.BROKEN
    if domain.rules.is_secure:
        looks[those(domain.alone(slot)) & (looks == Look.MERGED)] = Look.OWN
    has_frame = (looks == Look.MERGED) | (looks == Look.BROKEN)
    return chunks, looks, np.where(has_frame, rmap.tag[rows], NO_FRAME).astype(np.uint32)


def held(slot: MmSlot) -> tuple[Pages, Pages]:
    """Return the pages that hold data outside the pool: in the own object, and private ones (or broken)."""
    start, end = slot.start, slot.start + slot.nr_pages * PAGE_SIZE
    try:
        own = from_core(_core.data_extents(slot.own, 0, end - start), PAGE_SIZE)
        private = _core.find_private(slot.pagemap, start, end)
    except OSError as error:
        # It is dying, or it took back what it handed over: its own loss.
        log.info("space %d cannot be looked at: %s", slot.id, error)
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    pages = expand(from_core(private, PAGE_SIZE, start))
    return expand(own), pages[~_are_armed_holes(slot, pages)]


def _are_armed_holes(slot: MmSlot, pages: Pages) -> npt.NDArray[np.bool_]:
    """Return which of these are holes of the own object beside data: armed ones look as if swapped out."""
    advised = np.array([(part.start, part.end) for part in slot.advised], dtype=np.int64).reshape(-1, 2)
    is_own = (slot.rmap.state[pages] == State.ABSENT) & (slot.home[pages] == 0)
    are_armed: npt.NDArray[np.bool_] = is_own & contains(advised, pages)
    return are_armed


def _contents(domains: Iterable[Domain]) -> list[Content]:
    """Return the contents that most pages show."""
    found = [content for domain in domains for content in _shared(domain)]
    return sorted(found, key=lambda content: -content["pages"])[:_NR_CONTENTS]


def _shared(domain: Domain) -> list[Content]:
    """Return the contents of a domain that most pages show; one above max_page_sharing has several frames."""
    pool = domain.pool
    frames = counted(np.concatenate([np.empty(0, np.int64), *map(_named, domain.slots.values())]))[0]
    prints, first, index = np.unique(pool.fingerprint[frames], return_index=True, return_inverse=True)
    pages = np.bincount(index, pool.refs[frames] - pool.pending[frames], len(prints)).astype(np.int64)
    nr_frames = np.bincount(index, minlength=len(prints))
    most = np.argsort(-pages, kind="stable")[:_NR_CONTENTS]
    contents: list[Content] = []
    for at in most[pages[most] > 1].tolist():
        data = pool.read(int(frames[first[at]]))
        contents.append(
            {
                "domain": str(domain.key),
                "pages": int(pages[at]),
                "frames": int(nr_frames[at]),
                "is_fill": data == data[:1] * PAGE_SIZE,
                "head": data[:_HEAD_BYTES].hex(),
            }
        )
    return contents


def _named(slot: MmSlot) -> Frames:
    """Return the frames that pages of a space name, each as often as it is."""
    pages = slot.rmap.tracked(0, slot.nr_pages)
    tags = slot.rmap.tag[pages[np.isin(slot.rmap.state[pages], [State.MERGED, State.REHOMING, State.LEFT])]]
    frames: Frames = tags[tags != NO_FRAME].astype(np.int64)
    return frames
