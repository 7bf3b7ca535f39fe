"""One security domain: its spaces, its pool, its tables, its counters. Pages merge only inside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from ksmemu import wire
from ksmemu.control.procfs import RMAP_ITEM_BYTES, Process
from ksmemu.domain_key import Key
from ksmemu.ksmd.ancestor import Ancestor
from ksmemu.ksmd.checksum import Checksum
from ksmemu.ksmd.events import Events, Trace
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import Places, by_slot, pages_of, places
from ksmemu.ksmd.pool import Frames, Pool
from ksmemu.ksmd.ranges import Pages, counted
from ksmemu.ksmd.rmap import HAS_ITEM, HOLDS_FRAME, NO_FRAME, SHOWS_FRAME, VOLATILE, Obstacle, State
from ksmemu.ksmd.runs import Runs, orders
from ksmemu.ksmd.stable import Stable
from ksmemu.ksmd.table import Fingerprints, low_half
from ksmemu.ksmd.unstable import Unstable
from ksmemu.ksmd.worker import Order, Worker
from ksmemu.policy import Policy
from ksmemu.units import PAGE_SIZE

_MARKS = np.arange(1, wire.MAX_NODES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
"""A mark for each node, far from each other: multiples of the golden ratio."""

_NONE_RENEWED = (np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))


@dataclass(slots=True)
class Stats:
    """What happened so far; the names are those of control/counters.py."""

    pages_scanned: int = 0
    pages_skipped: int = 0
    pages_over_budget: int = 0
    """Of the last full scan."""
    over_budget_so_far: int = 0
    """Of this one."""
    pages_broken: int = 0
    pages_rehomed: int = 0
    pages_renewed: int = 0
    merges: int = 0
    verify_refusals: int = 0
    freeze_max_ns: int = 0

    def shown(self) -> dict[str, int]:
        """Return them by name, but for what is of a full scan that goes on."""
        return {name: number for name, number in asdict(self).items() if name != "over_budget_so_far"}

    def add(self, gone: Stats) -> None:
        """Add what happened in a domain that has gone, so that no sum falls."""
        self.pages_scanned += gone.pages_scanned
        self.pages_skipped += gone.pages_skipped
        self.pages_broken += gone.pages_broken
        self.pages_rehomed += gone.pages_rehomed
        self.pages_renewed += gone.pages_renewed
        self.merges += gone.merges
        self.verify_refusals += gone.verify_refusals
        self.freeze_max_ns = max(self.freeze_max_ns, gone.freeze_max_ns)


@dataclass(slots=True)
class Rules:
    """What stores have put in force, for every domain of a ksmd alike."""

    max_page_sharing: int = 256
    use_zero_pages: bool = False
    smart_scan: bool = True
    merge_across_nodes: bool = True
    max_frames: int = 0
    """Of all pools together, at most; 0: no limit (max_kernel_pages of 2009)."""
    forgets_unadvised: bool = False
    """Merged pages that are not advised any more are LEFT (the rules of 2009)."""
    fills_only: bool = False
    """Nothing but zeros and 0xff finds a partner (Setup.fills_only)."""
    is_secure: bool = False
    """What finds no partner gets a frame too (Setup.secure)."""
    is_unmerging: bool = False
    """run=2: a merge whose outcome comes late is undone."""


class Domain:
    """The books of one security domain. Runs in: ksmd, one thread.

    Args:
        number: no other domain has it at the same time.
        rules: shared with the other domains.
        trace: where its events go, when they are on.
        threads: that read pages.
        policy: what to try to merge, and when.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (what domains share, an argument each)
        self, key: Key, number: int, rules: Rules, trace: Trace, threads: Executor, policy: Policy
    ) -> None:
        self.key = key
        self.number = number
        self.rules = rules
        self.policy = policy
        self.checksum = Checksum(threads)
        self.pool = Pool()
        self.slots: dict[int, MmSlot] = {}
        self.workers: list[Worker] = []
        self.owner: dict[int, Worker] = {}
        self.ancestors: dict[tuple[int, int], Ancestor] = {}
        self.stable = Stable(self.pool)
        self.unstable = Unstable(self.slots)
        self.stats = Stats()
        self.events = Events(trace, number, self.pool.nr_frames)
        self.nr_chains, self.nr_dups = 0, 0
        self.renewed = [_NONE_RENEWED]  # since take_renewed()
        self._next_order = 0

    def send(self, slot: MmSlot, kind: wire.OrderKind, laid: Runs, pages: Pages, frames: Frames) -> None:
        """Send runs in as many orders as they need; pages and frames are those of the runs, in order."""
        at = 0
        for part in orders(laid):
            end = at + int(part["nr_pages"].sum())
            self._next_order += 1
            live = np.ones(end - at, dtype=np.bool_)
            order = Order(slot, kind, pages[at:end], frames[at:end], live, len(part))
            message = wire.pack_order(kind, slot.number, self._next_order, slot.epoch, part)
            self.owner[slot.id].send(self._next_order, order, message)
            at = end

    def count(self, *states: State) -> int:
        """Return how many pages are in one of the states, over all spaces."""
        counts = _total(self.slots.values())
        return sum(counts[state] for state in states)

    def marks_of(self, slot: MmSlot, pages: Pages) -> Fingerprints:
        """Return what is mixed into fingerprints of pages, or into all, so that those of two nodes differ."""
        if self.rules.merge_across_nodes:
            return np.array(0, dtype=np.uint64)
        return np.asarray(_MARKS[slot.nodes_of(pages)])

    def marks(self) -> Fingerprints:
        """Return the mark of every node that a page is on."""
        slots = self.slots.values()
        nodes = {slot.node for slot in slots} | {part.value for slot in slots for part in slot.nodes}
        return _MARKS[sorted(nodes)]

    def fingerprints(self, slot: MmSlot, pages: Pages) -> Fingerprints:
        """Read pages; return what each is known by, its content and its node; errors as Checksum.pages()."""
        return self.checksum.pages(slot, pages) ^ self.marks_of(slot, pages)

    def bind(self, slot: MmSlot, start: int, end: int, node: int) -> None:
        """The pages in [start, end) are on a node from now on (mbind).

        Fingerprints were for the node before, so what is not merged is looked at anew. A merged page stays
        merged, as the kernel leaves a page that has several owners where it is.
        """
        slot.nodes.put(start, end, node)
        if not self.rules.merge_across_nodes:
            slot.rmap.forget_fingerprints(start, end)

    def is_zero(self, fingerprints: Fingerprints) -> npt.NDArray[np.bool_]:
        """Return of each fingerprint whether it is that of a page of zeros, on whatever node."""
        return self._is_of(self.checksum.zero, fingerprints)

    def is_fill(self, fingerprints: Fingerprints) -> npt.NDArray[np.bool_]:
        """Return of each fingerprint whether it is that of a page of zeros or of 0xff, on whatever node."""
        return self._is_of(self.checksum.zero, fingerprints) | self._is_of(self.checksum.ones, fingerprints)

    def fill_tags(self) -> npt.NDArray[np.uint32]:
        """Return the checksums with which those pages may stand in the books."""
        fills = np.array([[self.checksum.zero], [self.checksum.ones]], dtype=np.uint64)
        return low_half(fills if self.rules.merge_across_nodes else fills ^ _MARKS).ravel()

    def _is_of(self, content: int, fingerprints: Fingerprints) -> npt.NDArray[np.bool_]:
        unmarked = fingerprints ^ np.uint64(content)
        return unmarked == 0 if self.rules.merge_across_nodes else np.isin(unmarked, _MARKS)

    def is_in_pool(self, frames: Frames) -> npt.NDArray[np.bool_]:
        """Return of each frame of the books whether pages map it; zeros show the kernel's zero page."""
        is_zero: npt.NDArray[np.bool_] = frames == NO_FRAME
        is_zero |= self.is_zero(self.pool.fingerprint[np.where(is_zero, 0, frames)])
        return ~is_zero

    def on_the_wire(self, pages: Pages, frames: Frames) -> npt.NDArray[np.uint64]:
        """Return what pages (ascending) are to show that the books give these frames.

        Zeros show the kernel's zero page, equal neighbours the rungs of a ladder.
        """
        in_pool = self.is_in_pool(frames)
        shown = np.full(len(pages), wire.FRAME_ZERO, dtype=np.uint64)
        shown[in_pool] = self.pool.ladders.shown(pages[in_pool], frames[in_pool]).astype(np.uint64)
        return shown

    def begin_anew(self) -> None:
        """Everything was unmerged: forget what was scanned."""
        self.unstable.clear()
        for slot in self.slots.values():
            pages = slot.rmap.tracked(0, slot.rmap.nr_pages)
            states = slot.rmap.state[pages]
            slot.rmap.move(pages[states <= State.UNSTABLE], State.NEW)
            slot.rmap.tag[pages[states <= State.UNSTABLE]] = 0
            slot.rmap.rejuvenate(pages)
        self.count_chains()

    def end_scan(self) -> None:
        """Bring the figures up to date that are those of a full scan."""
        self.stats.pages_over_budget, self.stats.over_budget_so_far = self.stats.over_budget_so_far, 0
        self.count_chains()

    def count_chains(self) -> None:
        """Bring the figures of chains and dups up to date, and of pages that are alone on a frame."""
        self.nr_chains, self.nr_dups = self.stable.chains()
        if self.rules.is_secure:
            for slot in self.slots.values():
                slot.nr_alone = len(self.alone(slot))

    def alone(self, slot: MmSlot) -> Pages:
        """Return the pages of a space that are merged with nobody: each has a frame that no other shows."""
        tracked = slot.rmap.tracked(0, slot.nr_pages)
        merged = tracked[slot.rmap.state[tracked] == State.MERGED]
        alone: Pages = merged[self.pool.refs[slot.rmap.tag[merged]] == 1]
        return alone

    def move(self, where: Places, state: State) -> None:
        """Take pages of any spaces to a state."""
        for slot_id, index in by_slot(where):
            self.slots[slot_id].rmap.move(pages_of(where[index]), state)

    def give_up(self, where: Places, why: Obstacle) -> None:
        """Leave pages of any spaces unmerged that matched."""
        for slot_id, index in by_slot(where):
            self.slots[slot_id].rmap.give_up(pages_of(where[index]), why)

    def forget(self, slot: MmSlot, start: int, end: int) -> None:
        """The pages in [start, end) are gone, or no longer mergeable: give up what they hold."""
        rmap = slot.rmap
        pages = rmap.tracked(start, end)
        states = rmap.state[pages]
        if self.events.is_on:
            shown = pages[np.isin(states, SHOWS_FRAME)]
            self.events.remove(slot, shown, rmap.tag[shown].astype(np.int64))
        holds_frame = pages[np.isin(states, HOLDS_FRAME)]
        frames = rmap.tag[holds_frame].astype(np.int64)
        rmap.tag[holds_frame] = self.pool.checksums(frames)
        self.pool.release(frames, places(slot.id, holds_frame))
        if slot.ancestors:
            self.inherit(slot, slot.heritage(start, end), 0)
        rmap.tag[pages[states == State.ZERO]] = 0
        rmap.move(pages, State.ABSENT)
        slot.former.append(pages)
        for order in self.owner[slot.id].orders.values():
            if order.slot is slot:
                order.live &= (order.pages < start) | (order.pages >= end)

    def shown(self) -> Frames:
        """Return the frames that pages show now, each as often as it is shown."""
        shown = [np.empty(0, dtype=np.int64)]
        for slot in self.slots.values():
            pages = slot.rmap.tracked(0, slot.nr_pages)
            pages = pages[np.isin(slot.rmap.state[pages], SHOWS_FRAME)]
            shown.append(slot.rmap.tag[pages].astype(np.int64))
        return np.concatenate(shown)

    def inherit(self, slot: MmSlot, pages: Pages, number: int) -> None:
        """Pages of a slot show an ancestor, or 0: none."""
        if slot.ancestors:
            before = set(slot.ancestors.values())
            slot.inherit(pages, number)
            for ancestor in before:
                ancestor.sweep()

    def ancestor(self, file: int, nr_pages: int) -> Ancestor:
        """Return the ancestor that a descriptor is of, which is this domain's from here on or closed."""
        key = os.fstat(file).st_dev, os.fstat(file).st_ino
        if key in self.ancestors:
            os.close(file)
        else:
            self.ancestors[key] = Ancestor(file, nr_pages)
        return self.ancestors[key]

    def sweep_ancestors(self) -> None:
        """Give back what nobody shows of ancestors, and forget those of which nothing is shown."""
        for key, ancestor in list(self.ancestors.items()):
            ancestor.sweep()
            if not ancestor.nr_slots and not ancestor.has_strangers():
                ancestor.close()
                del self.ancestors[key]

    def count_left(self, slot: MmSlot, pages: Pages) -> None:
        """Those of some pages that are LEFT count from now on."""
        left = pages[slot.rmap.state[pages] == State.LEFT]
        is_zero = slot.rmap.tag[left] == NO_FRAME
        slot.rmap.move(left[~is_zero], State.MERGED)
        slot.rmap.move(left[is_zero], State.ZERO)

    def take_renewed(self) -> tuple[Places, Frames]:
        """Return the pages that were renewed since the last call, and their frames; a page may come twice."""
        renewed, self.renewed = self.renewed, [_NONE_RENEWED]
        where, frames = (np.concatenate(column) for column in zip(*renewed, strict=True))
        return where, frames

    def nr_rmap_items(self) -> int:
        """Return for how many pages the kernel would have an rmap_item."""
        return self.count(*HAS_ITEM)

    def counters(self) -> Mapping[str, int]:
        """Return every counter but full_scans, which is of all domains."""
        counts = _total(self.slots.values())
        alone = self.pool.nr_single if self.rules.is_secure else 0
        shared = self.pool.nr_used - alone - (self._nr_left() if counts[State.LEFT] else 0)
        sharing = max(counts[State.MERGED] + counts[State.REHOMING] - alone - shared, 0)
        unshared = counts[State.UNSTABLE] + alone
        volatile = sum(counts[state] for state in VOLATILE)
        zero = counts[State.ZERO]
        items = shared + sharing + unshared + volatile
        return self.stats.shown() | {
            "pages_shared": shared,
            "pages_sharing": sharing,
            "pages_unshared": unshared,
            "pages_volatile": volatile,
            "ksm_zero_pages": zero,
            "stable_node_chains": self.nr_chains,
            "stable_node_dups": self.nr_dups,
            "general_profit": (sharing + zero) * PAGE_SIZE - items * RMAP_ITEM_BYTES,
            "workers": len(self.workers),
            "spaces": len(self.slots),
            "pages_tracked": sum(counts[State.NEW :]),
            "ladder_frames": self.pool.ladders.nr_frames,
            "pool_bytes": self.pool.blocks_bytes(),
            "unmerge_bytes": self.unmerge_bytes(),
        }

    def _nr_left(self) -> int:
        """Return how many frames only pages name that are LEFT."""
        tags = []
        for slot in self.slots.values():
            pages = slot.rmap.tracked(0, slot.rmap.nr_pages)
            tags.append(slot.rmap.tag[pages[slot.rmap.state[pages] == State.LEFT]])
        left = np.concatenate(tags)
        frames, counts = counted(left[left != NO_FRAME])
        return int((self.pool.refs[frames] == counts).sum())

    def processes(self) -> Iterable[tuple[int, Process]]:
        """Return pid and figures of each worker that has spaces."""
        return ((worker.pid, _figures(worker)) for worker in self.workers if worker.slots)

    def unmerge_bytes(self, worker: Worker | None = None) -> int:
        """Return the memory that it takes to write to all that is merged (of a worker), or to unmerge it."""
        counts = _total(self.slots.values() if worker is None else worker.slots)
        return sum(counts[state] for state in SHOWS_FRAME) * PAGE_SIZE

    def close(self) -> None:
        """Let go of everything; what is merged stays merged in the workers."""
        for worker in self.workers:
            worker.close()
        for ancestor in self.ancestors.values():
            ancestor.close()
        self.pool.close()


def _total(slots: Iterable[MmSlot]) -> list[int]:
    """Return how many pages of some spaces are in each State."""
    counts = [slot.rmap.counts.tolist() for slot in slots]
    return [sum(in_state) for in_state in zip([0] * len(State), *counts, strict=True)]


def _figures(worker: Worker) -> Process:
    counts = _total(worker.slots)
    merged = counts[State.MERGED] + counts[State.REHOMING]
    return Process(
        rmap_items=merged + sum(counts[State.WRITTEN : State.MERGED]),
        zero_pages=counts[State.ZERO],
        merging_pages=max(merged - sum(slot.nr_alone for slot in worker.slots), 0),
        merge_any=worker.merge_any,
        mergeable=any(len(slot.advised) for slot in worker.slots),
    )
