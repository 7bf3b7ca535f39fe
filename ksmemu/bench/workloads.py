"""The workloads: each takes a fresh engine that does not scan yet, and returns its figures.

Figures in seconds, or as their names say; the two engines have those in common that can be compared. Memory is
filled before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ksmemu.bench.content import Content, Fills, Random, Scattered, own_random
from ksmemu.bench.content import Image as ImageFile
from ksmemu.bench.engine import KSMEMU, Engine
from ksmemu.bench.guests import expected_sharing
from ksmemu.crew import Crew
from ksmemu.units import PAGE_SIZE

Figures = Mapping[str, float]

MAX_PAGE_SHARING = 256
_STEADY_SECONDS = 1.0
_STEADY_SCANS = 17
"""Enough that with smart scan every age has its part."""
_WRITES = 5_003
_STREAM_PAGES = 8_192


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table.

    Attributes:
        about: for people.
        run: does it.
        nr_pages: of all its workers, so that a batch is a scan.
        tunables: other than the defaults.
    """

    about: str
    run: Callable[[Engine], Figures]
    nr_pages: int
    tunables: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much memory the workloads take, in MiB."""

    twins: int = 512
    image: int = 256
    scattered: int = 256
    unique: int = 1024
    fills: int = 256
    churn: int = 512
    written: int = 64
    unmerge: int = 256
    many: int = 32
    many_workers: int = 64
    churn_seconds: int = 10


def workloads(sizes: Sizes, images: Sequence[Path]) -> dict[str, Workload]:
    """Return every workload by name."""
    pages = {name: _pages(getattr(sizes, name)) for name in sizes.__slots__}
    twins = [Random(pages["twins"])] * 2
    guests = [ImageFile(path) for path in images]
    scattered = [Scattered(pages["scattered"], rank) for rank in range(2)]
    unique = [own_random(pages["unique"], 0)]
    fills = [Fills(pages["fills"])]
    churned = [Random(pages["churn"])] * 2
    written = [Random(pages["written"])] * 2
    unmerged = [Random(pages["unmerge"])] * 2
    many = [Random(pages["many"])] * sizes.many_workers
    half = pages["fills"] // 2
    saved_fills = 2 * (half - -(-half // MAX_PAGE_SHARING))
    saved_images = expected_sharing(images, MAX_PAGE_SHARING)

    def workload(about: str, run: Callable[[Engine], Figures], contents: Sequence[Content]) -> Workload:
        return Workload(about, run, sum(content.nr_pages for content in contents), {})

    return {
        "twins": workload("all of it equal", lambda e: _share(e, twins, pages["twins"]), twins),
        "images": workload("guests", lambda e: _share(e, guests, saved_images), guests),
        "scattered": workload(
            "every second page equal",
            lambda e: _share(e, scattered, pages["scattered"] // 2),
            scattered,
        ),
        "unique": workload("nothing equal", lambda e: _unique(e, unique), unique),
        "fills": workload("zeros and 0xff", lambda e: _share(e, fills, saved_fills), fills),
        "churn": workload("1 % rewritten a second", lambda e: _churn(e, churned, sizes.churn_seconds), churned),
        "break": workload("first write to a page", lambda e: _break(e, written), written),
        "unmerge": workload("run=2", lambda e: _unmerge(e, unmerged), unmerged),
        "many": workload("many workers", lambda e: _many(e, many), many),
    }


def _pages(mib: int) -> int:
    return (mib << 20) // PAGE_SIZE


def _share(engine: Engine, contents: Sequence[Content], sharing: int) -> Figures:
    with engine.crew(contents) as crew:
        figures = dict(_until_shared(engine, crew, sharing))
        figures["mappings"] = max(crew.ask(("mappings",)))
        if engine.name == KSMEMU:
            figures["freeze_max_ms"] = engine.ksm.read("freeze_max_ns") / 1e6
        engine.ksm.write("run", 0)
    return figures


def _until_shared(engine: Engine, crew: Crew, sharing: int) -> Figures:
    return _timed(engine, crew, lambda: (engine.run(), engine.until("pages_sharing", sharing)))


def _timed(engine: Engine, crew: Crew, act: Callable[[], object]) -> Figures:
    cpu, since = engine.cpu_seconds(crew), time.perf_counter()
    act()
    seconds = time.perf_counter() - since
    return {"wall": seconds, "cpu": engine.cpu_seconds(crew) - cpu}


def _unique(engine: Engine, contents: Sequence[Content]) -> Figures:
    nr_pages = contents[0].nr_pages
    with engine.crew(contents) as crew:
        first = _timed(
            engine, crew, lambda: (engine.run(), engine.until("pages_unshared", nr_pages))
        )
        figures = {f"first_{name}": value for name, value in first.items()}
        figures |= {f"smart_{name}": value for name, value in _steady(engine, crew).items()}
        engine.ksm.write("smart_scan", 0)
        figures |= {f"steady_{name}": value for name, value in _steady(engine, crew).items()}
        engine.ksm.write("run", 0)
    return figures


def _steady(engine: Engine, crew: Crew) -> Figures:
    """Return what a full scan costs of memory that nobody writes."""
    engine.ksm.wait_full_scans(2)
    cpu, since, before = engine.cpu_seconds(crew), time.perf_counter(), engine.ksm.read("full_scans")
    engine.ksm.wait_full_scans(_STEADY_SCANS)
    while time.perf_counter() < since + _STEADY_SECONDS:
        engine.ksm.wait_full_scans(1)
    seconds, scans = time.perf_counter() - since, engine.ksm.read("full_scans") - before
    return {"wall": seconds / scans, "cpu": (engine.cpu_seconds(crew) - cpu) / scans}


def _churn(engine: Engine, contents: Sequence[Content], seconds: float) -> Figures:
    """Both engines scan once a second while the first worker rewrites pages; first without scanning."""
    rate = contents[0].nr_pages // 100
    nr_pages = sum(content.nr_pages for content in contents)
    most = contents[0].nr_pages
    with engine.crew(contents) as crew:
        _until_shared(engine, crew, most)
        engine.ksm.wait_full_scans(3)
        engine.ksm.write("run", 0)
        undisturbed = crew.ask_first(("churn", seconds / 2, rate, 1))
        engine.run()
        engine.ksm.wait_full_scans(3)
        engine.ksm.write("pages_to_scan", nr_pages)
        engine.ksm.write("sleep_millisecs", 1000)
        cpu, scans = engine.cpu_seconds(crew), engine.ksm.read("full_scans")
        crew.tell_first(("churn", seconds, rate, 2))
        kept = []
        while not crew.first_has_answered(0.25):
            kept.append(engine.ksm.read("pages_sharing") / most)
        scans = engine.ksm.read("full_scans") - scans
        cpu = engine.cpu_seconds(crew) - cpu
        engine.ksm.write("run", 0)
    return {"kept": float(np.mean(kept)), "scans": scans, "cpu": cpu}


def _break(engine: Engine, contents: Sequence[Content]) -> Figures:
    nr_pages = contents[0].nr_pages
    with engine.crew(contents) as crew:
        _until_shared(engine, crew, nr_pages)
        engine.ksm.write("run", 0)
        numbers = np.random.default_rng(1).permutation(nr_pages - _STREAM_PAGES)[:_WRITES]
        first = crew.ask(("time_writes", numbers))[0]
        second = crew.ask(("time_writes", numbers))[0]
        stream = crew.ask(("time_stream", nr_pages - _STREAM_PAGES, nr_pages))[0]
    return {
        "median_us": float(np.median(first)) / 1e3,
        "p99_us": float(np.percentile(first, 99)) / 1e3,
        "second_us": float(np.median(second)) / 1e3,
        "stream_us": stream / 1e3,
    }


def _unmerge(engine: Engine, contents: Sequence[Content]) -> Figures:
    with engine.crew(contents) as crew:
        _until_shared(engine, crew, contents[0].nr_pages)
        return _timed(engine, crew, lambda: engine.ksm.write("run", 2))


def _many(engine: Engine, contents: Sequence[Content]) -> Figures:
    nr_pages = contents[0].nr_pages
    with engine.crew(contents) as crew:
        figures = dict(_until_shared(engine, crew, (len(contents) - 1) * nr_pages))
        figures |= {f"idle_{name}": value for name, value in _steady(engine, crew).items()}
        engine.ksm.write("run", 0)
    return figures
