"""Workloads whose workers write: what merging costs those who own the memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np

from ksmemu.bench.content import Content
from ksmemu.bench.engine import Engine
from ksmemu.bench.figures import Figures, until_shared
from ksmemu.bench.worker import Times
from ksmemu.crew import Crew
from ksmemu.units import PAGE_SIZE

_CHURN_SECONDS = 4.0
_CHURN_PART = 100
"""One page in so many is rewritten a second."""
_HALF_SECOND = 0.5
_FOREVER_MILLISECS = 1_000_000
_WRITES, _STREAM = 5_003, 8_192
"""At most: a small memory has fewer pages."""


def churn(engine: Engine, contents: Sequence[Content]) -> Figures:
    """Let the first of two equal workers read, and rewrite pages of what is shared, under a scan a second.

    Both engines are told to scan once a second, by a store that wakes ksmd: so the same number of scans is
    compared. The loss of the writer is against the same engine with run=0.
    """
    shared = contents[0].nr_pages
    with engine.crew(contents) as crew:
        memory = _merged_memory(engine, crew, shared)
        engine.store_run(0)
        alone, _ = _churned(engine, crew, shared, memory)
        _merged_memory(engine, crew, shared)
        engine.ksm.write("sleep_millisecs", _FOREVER_MILLISECS)
        cpu, since = engine.cpu_seconds(crew), time.perf_counter()
        watched, kept = _churned(engine, crew, shared, memory)
        seconds = time.perf_counter() - since
        cpu = engine.cpu_seconds(crew) - cpu
        engine.store_run(0)
    return {"cpu_per_s": cpu / seconds, "writer_loss_percent": (1 - watched / alone) * 100, **kept}


def _merged_memory(engine: Engine, crew: Crew, shared: int) -> int:
    """Scan until all is shared, and every copy has been found; return the memory that it takes then."""
    engine.ksm.write("sleep_millisecs", 0)
    engine.store_run(1)
    engine.ksm.wait_full_scans(3)
    engine.until_at_least("pages_sharing", shared)
    return engine.memory_bytes(crew)


def _churned(engine: Engine, crew: Crew, shared: int, memory: int) -> tuple[float, dict[str, float]]:
    """Let the first worker write for a while, and wake ksmd once a second; look half a second later.

    Returns:
        How many pages the worker read a second; which part of the savings was kept, in per cent: of the pages
        that the counter has, and of the host's memory, of which `memory` is in use with everything merged.
    """
    scans, rate = engine.ksm.read("full_scans"), 2 * shared // _CHURN_PART
    crew.tell_one(0, ("churn", _CHURN_SECONDS, rate, 1))
    since = time.monotonic()
    counted: list[float] = []
    held: list[float] = []
    for half in itertools.count(1):
        if crew.has_answered(0, max(since + half * _HALF_SECOND - time.monotonic(), 0)):
            break
        if half % 2:
            engine.ksm.write("sleep_millisecs", _FOREVER_MILLISECS + half)  # other than before: it wakes ksmd
        else:
            counted.append(engine.ksm.read("pages_sharing") / shared)
            held.append(1 - (engine.memory_bytes(crew) - memory) / (shared * PAGE_SIZE))
    return crew.answer_of(0), {
        "kept_percent": float(np.mean(counted)) * 100,
        "kept_host_percent": float(np.mean(held)) * 100,
        "scans": engine.ksm.read("full_scans") - scans,
    }


def first_writes(engine: Engine, contents: Sequence[Content]) -> Figures:
    """Write to merged pages, to tracked ones that nothing equals, and to memory that nobody tracks.

    The first two workers are equal, the third is like nothing.
    A tracked page is written twice: what records writes takes part in the first one only.
    """
    nr_pages = contents[0].nr_pages
    stream = (nr_pages - min(_STREAM, nr_pages // 2), nr_pages)
    numbers = np.random.default_rng(1).permutation(stream[0])[:_WRITES]

    def write(rank: int) -> Times:
        crew.tell_one(rank, ("time_writes", numbers, stream))
        answer: Times = crew.answer_of(rank)
        return answer

    with engine.crew(contents) as crew:
        until_shared(engine, crew, nr_pages)
        engine.until_at_least("pages_unshared", nr_pages)
        engine.store_run(0)
        crew.tell_one(0, ("time_fresh", numbers, stream))
        fresh, plain = crew.answer_of(0)
        merged, armed, again = write(0), write(2), write(2)
    figures = {**_figures("merged", merged), **_figures("fresh", fresh), **_figures("armed", armed)}
    return figures | {
        "again_us": _median_us(again),
        "plain_us": _median_us(plain),
        "merged_by_fresh": _median_us(merged) / _median_us(fresh),
    }


def _figures(name: str, times: Times) -> dict[str, float]:
    single, stream = times
    return {
        f"{name}_us": _median_us(times),
        f"{name}_p99_us": float(np.percentile(single, 99)) / 1e3,
        f"{name}_stream_us": stream / 1e3,
    }


def _median_us(times: Times) -> float:
    return float(np.median(times[0])) / 1e3
