"""Figures, and how they are taken: the clock, the CPU time, a goal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ksmemu.bench.engine import Engine
from ksmemu.crew import Crew

_FRUITLESS_SCANS = 2
"""Near the mapping budget, after which nothing more is expected."""

Figures = Mapping[str, float]
"""By name; the end of the name says what is counted: _s, _ms, _us, _ns are costs, which can be compared."""


def timed(engine: Engine, crew: Crew, act: Callable[[], object]) -> dict[str, float]:
    """Return what an act costs: by the clock, and of the CPUs in the scanner and the agents."""
    cpu, since = engine.cpu_seconds(crew), time.perf_counter()
    act()
    wall = time.perf_counter() - since
    return {"wall_s": wall, "cpu_s": engine.cpu_seconds(crew) - cpu}


def until_shared(engine: Engine, crew: Crew, sharing: int) -> dict[str, float]:
    """Scan until so many pages are saved, or as many as there are mappings for; return what it costs."""
    found, last, is_over = 0, 0, False

    def is_done() -> bool:
        nonlocal found, last, is_over
        before, found = found, engine.ksm.read("pages_sharing")
        if found != before:
            last = engine.ksm.read("full_scans")
        is_over = is_over or engine.is_over_budget()  # a scan that passes them over does not count them
        return found >= sharing or (is_over and engine.ksm.read("full_scans") >= last + _FRUITLESS_SCANS)

    def scan() -> None:
        engine.store_run(1)
        engine.until(is_done, f"pages_sharing {sharing}")

    return timed(engine, crew, scan)


def rescan(engine: Engine, crew: Crew, nr_scans: int, nr_pages: int) -> dict[str, float]:
    """Return what full scans of memory that nobody writes cost for a page, in ns, where one has just ended.

    Args:
        nr_scans: at least; no less than a second.
        nr_pages: of memory.
    """
    before = engine.ksm.read("full_scans")

    def scan() -> None:
        until = time.perf_counter() + 1.0
        engine.ksm.wait_full_scans(nr_scans)
        while time.perf_counter() < until:
            engine.ksm.wait_full_scans(1)

    cost = timed(engine, crew, scan)
    looked_at = (engine.ksm.read("full_scans") - before) * nr_pages
    return {f"{name}_page_ns": cost[f"{name}_s"] / looked_at * 1e9 for name in ("wall", "cpu")}


def prefixed(prefix: str, figures: Figures) -> dict[str, float]:
    """Return figures under longer names."""
    return {f"{prefix}_{name}": value for name, value in figures.items()}
