"""Replay a trace: which page of which space shows which frame, from its events alone.

It knows no more than the lines of the trace say, and believes none that contradicts those before.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

from tests.support.waiting import wait_until

TRACE = "sys/kernel/tracing/trace"
ENABLE = "sys/kernel/tracing/events/ksm/enable"
NO_FRAME = (1 << 32) - 1


@dataclass(frozen=True)
class Space:
    pid: int
    start: int
    nr_pages: int


@dataclass
class Scan:
    """A full scan, and how many pages it merged; a worker that is slow may say so after its end."""

    seq: int
    merges: int = 0


@dataclass
class Replay:
    """The state after the events so far; ValueError for one that cannot be true."""

    spaces: dict = field(default_factory=dict)
    shows: dict = field(default_factory=dict)
    """(mm, page) -> frame."""
    sharers: Counter = field(default_factory=Counter)
    """frame -> pages, of each KSM page."""
    scans: list = field(default_factory=list)
    is_scanning: bool = False
    refusals: int = 0

    def obey(self, event):
        fields = {name: value for name, value in event.items() if name not in {"event", "ts"}}
        getattr(self, f"_{event['event']}")(**fields)

    def pages_shared(self):
        return len(self.sharers)

    def pages_sharing(self):
        return self.sharers.total() - len(self.sharers)

    def zero_pages(self):
        return sum(frame == NO_FRAME for frame in self.shows.values())

    def _ksm_start_scan(self, seq, rmap_entries):
        # run=2 counts from 0 again, in the middle of a scan if need be.
        expected = {self.scans[-1].seq + (not self.is_scanning), 0} if self.scans else {seq}
        _believe(seq in expected, f"scan {seq} begins")
        _believe(not self.is_scanning or seq == 0, f"scan {seq} begins in another")
        self.scans.append(Scan(seq))
        self.is_scanning = True

    def _ksm_stop_scan(self, seq, rmap_entries):
        _believe(self.is_scanning and self.scans[-1].seq == seq, f"scan {seq} ends")
        self.is_scanning = False

    def _ksm_enter(self, mm, pid, start, nr_pages):
        _believe(mm not in self.spaces, f"space {mm} enters twice")
        self.spaces[mm] = Space(pid, start, nr_pages)

    def _ksm_exit(self, mm):
        _believe(mm in self.spaces, f"space {mm} leaves")
        del self.spaces[mm]
        _believe(all(where[0] != mm for where in self.shows), f"pages of space {mm} stay")

    def _ksm_merge_one_page(self, pfn, rmap_item, mm, err):
        _believe(pfn == NO_FRAME, "the zero page")
        self._merge(pfn, rmap_item, mm, err)

    def _ksm_merge_with_ksm_page(self, ksm_page, pfn, rmap_item, mm, err):
        _believe(ksm_page == (pfn in self.sharers), f"frame {pfn} is a KSM page: {ksm_page}")
        self._merge(pfn, rmap_item, mm, err)
        if not err:
            self.sharers[pfn] += 1

    def _merge(self, pfn, page, mm, err):
        _believe(mm in self.spaces and page < self.spaces[mm].nr_pages, f"page {page} of space {mm}")
        _believe((mm, page) not in self.shows, f"page {page} of space {mm} shows one already")
        if err:
            self.refusals += 1
            return
        _believe(self.scans, "a merge before the first scan")
        self.shows[mm, page] = pfn
        self.scans[-1].merges += 1

    def _ksm_remove_rmap_item(self, pfn, rmap_item, mm):
        _believe(self.shows.pop((mm, rmap_item), None) == pfn, f"page {rmap_item} of space {mm} showed {pfn}")
        if pfn != NO_FRAME:
            self.sharers[pfn] -= 1

    def _ksm_remove_ksm_page(self, pfn):
        _believe(self.sharers.pop(pfn, None) == 0, f"frame {pfn} is gone")

    def _ksm_advisor(self, scan_time, pages_to_scan, cpu_percent):
        _believe(scan_time >= 1 and cpu_percent >= 1 and pages_to_scan >= 1, "the advisor")


def switch(ksmd, value):
    """Store into `enable` and return what it is then, once ksmd has obeyed."""
    path = ksmd.directory / ENABLE
    path.write_text(f"{value}\n\0")  # a store ends before the NUL, which ksmd takes away
    wait_until(lambda: "\0" not in path.read_text(), what="the store")
    return path.read_text().rstrip()


def events_of(ksmd):
    """Return the trace of a ksmd, line by line."""
    text = (ksmd.directory / TRACE).read_text()
    assert text.endswith("\n") or not text, "half a line"
    return [json.loads(line) for line in text.splitlines()]


def _believe(is_true, what):
    if not is_true:
        raise ValueError(f"this cannot be: {what}")


def replay(events):
    """Return the state after all of the events."""
    state = Replay()
    for event in events:
        state.obey(event)
    return state
