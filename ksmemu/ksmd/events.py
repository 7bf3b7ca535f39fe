"""The kernel's nine tracepoints, as lines of JSON in `sys/kernel/tracing/trace`.

An event is written where the books change: a trace says what came true and in which order, not what was
ordered. Off by default; whoever has something to tell asks `is_on` first, so nothing is gathered for nobody.

Names and fields are the kernel's. What is a pointer there is a number here:

    mm         an address space; ksm_enter says whose, where and how long it is
    rmap_item  page n of that space, at start + n * PAGE_SIZE
    pfn        a frame of the pool; NO_FRAME is the kernel's zero page
    ksm_page   whether the frame showed in a page already (the kernel prints "ksm " for it)
    err        0, or the negative errno with which the agent refused

Source: include/trace/events/ksm.h, mm/ksm.c.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ksmemu.ksmd.columns import column
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.pool import Frames
from ksmemu.ksmd.ranges import Pages, counted
from ksmemu.ksmd.rmap import NO_FRAME

log = logging.getLogger(__name__)

FIELDS: Mapping[str, tuple[str, ...]] = {
    "ksm_start_scan": ("seq", "rmap_entries"),
    "ksm_stop_scan": ("seq", "rmap_entries"),
    "ksm_enter": ("mm",),
    "ksm_exit": ("mm",),
    "ksm_merge_one_page": ("pfn", "rmap_item", "mm", "err"),
    "ksm_merge_with_ksm_page": ("ksm_page", "pfn", "rmap_item", "mm", "err"),
    "ksm_remove_ksm_page": ("pfn",),
    "ksm_remove_rmap_item": ("pfn", "rmap_item", "mm"),
    "ksm_advisor": ("scan_time", "pages_to_scan", "cpu_percent"),
}
"""The fields of each event, in the kernel's order; `event` and `ts` come before them."""

ADDED: Mapping[str, tuple[str, ...]] = {"ksm_enter": ("pid", "start", "nr_pages")}
"""Fields that follow the kernel's: a pointer can be looked up, a number cannot."""


class Trace:
    """The file of events, and those of all domains together. Runs in: ksmd, one thread.

    Args:
        path: start() begins the file anew.

    Attributes:
        is_on: whether events are written. It ends by itself when a write fails.
    """

    def __init__(self, path: Path) -> None:
        self.is_on = False
        self._path = path
        self._fd = -1

    def start(self) -> None:
        """Begin an empty trace.

        Raises:
            OSError: the file cannot be made; nothing is written.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self.is_on = True

    def stop(self) -> None:
        """Write no more; the trace stays. May be repeated."""
        if self.is_on:
            self.is_on = False
            os.close(self._fd)

    def start_scan(self, seq: int, rmap_entries: int) -> None:
        """A full scan begins; seq is full_scans until it ends."""
        self.append(_lines("ksm_start_scan", seq, rmap_entries))

    def stop_scan(self, seq: int, rmap_entries: int) -> None:
        """A full scan has ended, and every outcome that was waited for is entered."""
        self.append(_lines("ksm_stop_scan", seq, rmap_entries))

    def advisor(self, scan_time: int, pages_to_scan: int, cpu_percent: int) -> None:
        """The advisor chose pages_to_scan, after a full scan of so many seconds."""
        self.append(_lines("ksm_advisor", scan_time, pages_to_scan, cpu_percent))

    def append(self, lines: list[str]) -> None:
        """Write whole lines or none; if that fails, events end, since a trace with a gap tells lies."""
        text, written = "".join(lines).encode(), 0
        try:
            while written < len(text):
                written += os.write(self._fd, text[written:])
        except OSError as error:
            os.ftruncate(self._fd, max(os.fstat(self._fd).st_size - written, 0))
            log.warning("events are off, %s takes no more: %s", self._path, error.strerror)
            self.stop()


class Events:
    """Writes the events of one domain. Runs in: ksmd, one thread.

    Args:
        trace: where they go.
        number: of the domain; the upper half of its frames' numbers.
        nr_frames: of the pool.
    """

    def __init__(self, trace: Trace, number: int, nr_frames: int) -> None:
        self._trace = trace
        self._first = number << 32
        self._sharers = column(nr_frames, np.uint32)

    @property
    def is_on(self) -> bool:
        """Whether events are written."""
        return self._trace.is_on

    def start(self, frames: Frames) -> None:
        """A trace begins while these frames show in pages, each named as often as it does."""
        self._sharers = column(len(self._sharers), np.uint32)
        self._share(frames)

    def enter(self, slot: MmSlot, pid: int) -> None:
        """An address space was registered."""
        self._trace.append(_lines("ksm_enter", slot.id, pid, slot.start, slot.nr_pages))

    def exit(self, slot: MmSlot) -> None:
        """An address space is gone; its pages were removed before."""
        self._trace.append(_lines("ksm_exit", slot.id))

    def merge(self, slot: MmSlot, pages: Pages, frames: Frames, errors: npt.NDArray[np.int32]) -> None:
        """Pages show these frames now, or were refused: errors holds 0 or an errno for each."""
        zero = frames == NO_FRAME
        lines = _lines("ksm_merge_one_page", frames[zero], pages[zero], slot.id, -errors[zero])
        pages, frames, errors = pages[~zero], frames[~zero], errors[~zero]
        is_ksm_page = self._is_ksm_page(frames, errors == 0)
        self._share(frames[errors == 0])
        lines += _lines("ksm_merge_with_ksm_page", is_ksm_page, self._pfn(frames), pages, slot.id, -errors)
        self._trace.append(lines)

    def remove(self, slot: MmSlot, pages: Pages, frames: Frames) -> None:
        """Pages show these frames no longer; a frame that shows nowhere is no KSM page any more."""
        which, counts = counted(frames[frames != NO_FRAME])
        self._sharers[which] -= counts.astype(np.uint32)
        gone = which[self._sharers[which] == 0]
        lines = _lines("ksm_remove_rmap_item", self._pfn(frames), pages, slot.id)
        self._trace.append(lines + _lines("ksm_remove_ksm_page", self._pfn(gone)))

    def _share(self, frames: Frames) -> None:
        which, counts = counted(frames[frames != NO_FRAME])
        self._sharers[which] += counts.astype(np.uint32)

    def _is_ksm_page(self, frames: Frames, done: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return for each entry whether its frame showed in a page before, one of the entries included."""
        which, number = np.unique(frames, return_inverse=True)
        first = np.full(len(which), len(frames))
        np.minimum.at(first, number[done], np.flatnonzero(done))
        is_later: npt.NDArray[np.bool_] = np.arange(len(frames)) > first[number]
        return is_later | (self._sharers[frames] > 0)

    def _pfn(self, frames: Frames) -> npt.NDArray[np.int64]:
        """Return what frames of this pool are called in the trace, where there may be others."""
        return np.where(frames == NO_FRAME, frames, frames | self._first)


def _lines(name: str, *columns: int | npt.NDArray[np.generic]) -> list[str]:
    """Return a line for each row of the columns, which hold the fields; a number is the same in each row."""
    keys = ("event", "ts", *FIELDS[name], *ADDED.get(name, ()))
    now = round(time.monotonic(), 6)
    rows = zip(*(c.tolist() for c in np.broadcast_arrays(*map(np.atleast_1d, columns))), strict=True)
    return [json.dumps(dict(zip(keys, (name, now, *row), strict=True))) + "\n" for row in rows]
