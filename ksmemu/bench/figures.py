"""Figures, and how they are taken: the clock, the CPU time, a goal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ksmemu.bench.engine import Engine
from ksmemu.crew import Crew

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

    def is_done() -> bool:
        return engine.ksm.read("pages_sharing") >= sharing or engine.is_over_budget()

    def scan() -> None:
        engine.store_run(1)
        engine.until(is_done, f"pages_sharing {sharing}")

    return timed(engine, crew, scan)


def rescan(engine: Engine, crew: Crew, nr_scans: int, nr_pages: int) -> dict[str, float]:
    """Return what full scans of memory that nobody writes cost for a page, in ns.

    Args:
        nr_scans: at least; no less than a second.
        nr_pages: of memory.
    """
    engine.ksm.wait_full_scans(1)
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
