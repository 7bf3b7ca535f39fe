"""The counters: name, meaning, and the law each obeys.

ksmd keeps the books, `sysfs.py` shows them as files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Counter:
    """One read-only file."""

    name: str
    meaning: str
    law: str
    """What is true of the value at every moment at which no scan runs."""


_COUNTERS = (
    Counter("full_scans", "full scans completed", "rises by 1 a scan; 0 again after a successful run=2"),
    Counter("pages_scanned", "pages looked at so far", "never falls"),
    Counter("pages_shared", "frames of the pool in use", "frames named by at least one mapping"),
    Counter("pages_sharing", "pages saved by sharing them", "mappings of frames - pages_shared"),
    Counter("pages_unshared", "unique pages, looked at in vain", "the unstable table's size"),
    Counter(
        "pages_volatile",
        "written too often to be merged",
        "max(0, tracked - pages_shared - pages_sharing - pages_unshared)",
    ),
    Counter("pages_skipped", "visits saved by smart_scan", "never falls"),
    Counter("ksm_zero_pages", "pages that map the zero page", "0 unless use_zero_pages is or was 1"),
    Counter("stable_node_chains", "contents with several frames", "sharing above max_page_sharing"),
    Counter("stable_node_dups", "frames of those contents", "at least 2 a chain"),
    Counter(
        "general_profit",
        "bytes saved, less metadata",
        "(pages_sharing + ksm_zero_pages) * PAGE_SIZE - tracked * 64",
    ),
)

_STATS = (
    Counter(
        "pages_over_budget",
        "left: vm.max_map_count is near",
        "0 when no worker is near it",
    ),
    Counter("pages_broken", "copies on write found so far", "never falls"),
    Counter("pages_rehomed", "pages brought back to own objects", "never falls"),
    Counter("pages_renewed", "written with what they held", "never falls"),
    Counter("merges", "pages merged so far", "never falls"),
    Counter("verify_refusals", "differed when compared frozen", "never falls"),
    Counter("freeze_max_ns", "longest freeze, in ns", "never falls"),
    Counter("workers", "processes attached", "connections that registered a space"),
    Counter("spaces", "address spaces registered", "one per mm_slot"),
    Counter("pages_tracked", "advised pages that hold data", "what ksmd keeps books about"),
    Counter(
        "ladder_frames",
        "frames side by side for neighbours",
        "pool_bytes / PAGE_SIZE = pages_shared - those of zeros + ladder_frames",
    ),
    Counter("pool_bytes", "memory of all pools", "st_blocks of the pools * 512"),
    Counter(
        "unmerge_bytes",
        "needed to unmerge everything",
        "pages that show a frame or the zero page * PAGE_SIZE",
    ),
)

COUNTERS: Mapping[str, Counter] = {counter.name: counter for counter in _COUNTERS}
"""The kernel's counters by name, in the order in which they are shown."""

STATS: Mapping[str, Counter] = {counter.name: counter for counter in _STATS}
"""Counters of ksmemu's own, for which the kernel has no file."""
