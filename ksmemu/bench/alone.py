"""What only ksmemu can be asked: how fast it checksums, and what it does when there is nothing to do."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from ksmemu.bench import procfs
from ksmemu.bench.content import WORDS, Content, PageArray
from ksmemu.bench.engine import Engine
from ksmemu.bench.figures import Figures, until_shared
from ksmemu.ksmd.checksum import Checksum, new_threads
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.ranges import Pages
from ksmemu.units import PAGE_SIZE

_TRIES = 5
_BLOCK_PAGES = 32
_SETTLE_SECONDS, _ASLEEP_SECONDS = 0.2, 2.0


def fingerprint(_: Engine, contents: Sequence[Content]) -> Figures:
    """Checksum an object on all CPUs as ksmd does, and read it on all CPUs, in GiB a second.

    It is read in two ways: through a mapping that is there already, which is as fast as memory is, and by
    pread(2), which is how ksmd reads: nobody can end it by shrinking the object, and no hole is filled by it.
    """
    nr_pages = contents[0].nr_pages
    own = os.memfd_create("bench", os.MFD_CLOEXEC)
    os.ftruncate(own, nr_pages * PAGE_SIZE)
    slot = MmSlot(0, 0, nr_pages, own, -1)
    try:
        with new_threads() as threads, mmap.mmap(own, 0) as memory:
            read, copied, hashed = _speeds(Checksum(threads), slot, memory, contents[0])
    finally:
        slot.close()
    return {
        "read_gib": read,
        "pread_gib": copied,
        "checksum_gib": hashed,
        "checksum_by_read": hashed / read,
        "checksum_by_pread": hashed / copied,
    }


def _speeds(checksum: Checksum, slot: MmSlot, memory: mmap.mmap, content: Content) -> list[float]:
    pages = np.frombuffer(memory, np.uint64).reshape(-1, WORDS)
    content.fill(pages)
    nr_cpus = len(os.sched_getaffinity(0))
    parts, numbers = np.array_split(pages, nr_cpus), np.arange(len(pages))
    with ThreadPoolExecutor(nr_cpus) as threads:
        return _in_turn(
            pages.nbytes,
            lambda: sum(threads.map(_read, parts)),
            lambda: list(threads.map(lambda part: _pread(slot.own, part), np.array_split(numbers, nr_cpus))),
            lambda: checksum.pages(slot, numbers),
        )


def _read(pages: PageArray) -> int:
    return int(pages.sum())


def _pread(own: int, numbers: Pages) -> None:
    block = bytearray(_BLOCK_PAGES * PAGE_SIZE)
    for number in range(int(numbers[0]), int(numbers[-1]) + 1, _BLOCK_PAGES):
        os.preadv(own, [block], number * PAGE_SIZE)


def _in_turn(nr_bytes: int, *acts: Callable[[], object]) -> list[float]:
    """Return at how many GiB a second each goes through so many bytes: the median of some tries."""
    seconds: list[list[float]] = [[] for _ in acts]
    for _ in range(1 + _TRIES):
        for act, found in zip(acts, seconds, strict=True):
            since = time.perf_counter()
            act()
            found.append(time.perf_counter() - since)
    return [nr_bytes / (1 << 30) / median(found[1:]) for found in seconds]  # the first one maps and warms


def asleep(engine: Engine, contents: Sequence[Content]) -> Figures:
    """Merge at the default pace for the longest freeze there; then count how often ksmd wakes up in vain.

    With nothing registered; stopped (run=0); and with spaces that hold no advised page.
    """
    engine.store_run(1)
    figures: dict[str, float] = {"unregistered_wakes": _wakes(engine)}
    with engine.crew(contents) as crew:
        until_shared(engine, crew, contents[0].nr_pages)
        figures["freeze_max_ms"] = engine.ksm.read("freeze_max_ns") / 1e6
        engine.store_run(0)
        figures["stopped_wakes"] = _wakes(engine)
        crew.ask(("unadvise",))
        engine.store_run(1)
        figures["unadvised_wakes"] = _wakes(engine)
    return figures


def _wakes(engine: Engine) -> int:
    time.sleep(_SETTLE_SECONDS)
    before = procfs.voluntary_switches(engine.pid)
    time.sleep(_ASLEEP_SECONDS)
    return procfs.voluntary_switches(engine.pid) - before
