"""Workloads that merge, scan in vain, and unmerge: what ksmd costs while nobody writes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ksmemu.bench import procfs
from ksmemu.bench.content import Content
from ksmemu.bench.engine import MAX_PAGE_SHARING, Engine
from ksmemu.bench.figures import Figures, prefixed, rescan, timed, until_shared
from ksmemu.bench.guard import raised
from ksmemu.bench.guests import expected_sharing

_MAX_MAP_COUNT = Path("/proc/sys/vm/max_map_count")
_SCANS, _SMART_SCANS = 1, 4
"""With smart scan a page that never merges is passed over more and more often: up to eight times in a row."""


def share(engine: Engine, contents: Sequence[Content], goal: int | None = None) -> Figures:
    """Scan until so many pages are saved: by default all that can be."""
    if goal is None:
        goal = expected_sharing(tuple(contents), MAX_PAGE_SHARING)
    with engine.crew(contents) as crew:
        figures = until_shared(engine, crew, goal)
        if engine.is_ours:
            figures |= {
                "mappings": max(crew.ask(("mappings",))),
                "left_pages": max(goal - engine.ksm.read("pages_sharing"), 0),
                "freeze_max_ms": engine.ksm.read("freeze_max_ns") / 1e6,
            }
        engine.store_run(0)
    return figures


def scattered(engine: Engine, contents: Sequence[Content], goal: int) -> Figures:
    """The same for isolated pages: each is a mapping, and cuts the one around it."""
    most = max(content.nr_pages for content in contents)
    with raised(_MAX_MAP_COUNT, 2 * most):
        return share(engine, contents, goal)


def unique(engine: Engine, contents: Sequence[Content]) -> Figures:
    """Look at every page in vain, for the first time and again and again."""
    nr_pages = contents[0].nr_pages

    def scan() -> None:
        engine.store_run(1)
        engine.until_at_least("pages_unshared", nr_pages)

    with engine.crew(contents) as crew:
        figures = timed(engine, crew, scan)
        engine.ksm.write("smart_scan", 0)
        engine.ksm.wait_full_scans(1)
        figures |= prefixed("rescan", rescan(engine, crew, _SCANS, nr_pages))
        engine.ksm.write("smart_scan", 1)
        figures |= prefixed("smart", rescan(engine, crew, _SMART_SCANS, nr_pages))
        engine.store_run(0)
    return figures


def unmerge(engine: Engine, contents: Sequence[Content]) -> Figures:
    """Give every process all of its memory back. The kernel does it in whoever stores `run`: here."""

    def store() -> None:
        engine.store_run(2)
        engine.until(lambda: not any(map(engine.ksm.read, left)), "unmerged")

    left = ("pages_shared", "pool_bytes") if engine.is_ours else ("pages_shared",)
    with engine.crew(contents) as crew:
        until_shared(engine, crew, contents[0].nr_pages)
        here = time.process_time()
        figures = timed(engine, crew, store)
        figures["cpu_s"] += time.process_time() - here
    return figures


def many(engine: Engine, contents: Sequence[Content]) -> Figures:
    """Share what many workers have in common, then scan it in vain; see what ksmd keeps for a page."""
    before = procfs.private_bytes(engine.pid) if engine.is_ours else 0
    nr_pages = sum(content.nr_pages for content in contents)
    with engine.crew(contents) as crew:
        figures = until_shared(engine, crew, nr_pages - contents[0].nr_pages)
        engine.ksm.wait_full_scans(1)
        figures |= prefixed("rescan", rescan(engine, crew, _SCANS, nr_pages))
        if engine.is_ours:
            now = procfs.private_bytes(engine.pid)
            figures |= {"ksmd_mib": now / (1 << 20), "ksmd_page_bytes": (now - before) / nr_pages}
        engine.store_run(0)
    return figures
