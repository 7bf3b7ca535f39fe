"""The workloads: what each is, how much memory it takes, and which module does it.

Each gets a fresh engine that does not scan yet. Memory is filled before a clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ksmemu.bench import sharing
from ksmemu.bench.content import Content, Fills, Image, Random, Scattered, own_random
from ksmemu.bench.engine import KERNEL, KSMEMU, Engine
from ksmemu.bench.figures import Figures
from ksmemu.bench.guests import Guest, expected_sharing
from ksmemu.units import PAGE_SIZE

MAX_PAGE_SHARING = 256
_NR_GUESTS = 3
_NR_MANY = 64

SIZES: Mapping[str, int] = {
    "twins": 512,
    "images": 256,
    "scattered": 256,
    "unique": 1024,
    "fills": 256,
    "unmerge": 256,
    "many": 32,
}
"""MiB of each worker of a workload."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One block of the table.

    Attributes:
        about: the memory, for people.
        run: does it once.
        nr_pages: of all its workers, so that a batch is a full scan.
        tunables: other than full speed and the defaults.
        engines: on which it runs.
    """

    about: str
    run: Callable[[Engine], Figures]
    nr_pages: int
    tunables: Mapping[str, int] = field(default_factory=dict)
    engines: Sequence[str] = (KERNEL, KSMEMU)


def workloads(sizes: Mapping[str, int], images: Sequence[Path]) -> dict[str, Workload]:
    """Return every workload by name.

    Args:
        sizes: MiB, as SIZES has them.
        images: raw memory images; none: guests are made up.
    """
    pages = {name: (mib << 20) // PAGE_SIZE for name, mib in sizes.items()}
    guests: list[Content] = [Image(path) for path in images] or [
        Guest(pages["images"], rank) for rank in range(_NR_GUESTS)
    ]
    twins = [Random(pages["twins"])] * 2
    scattered = [Scattered(pages["scattered"], rank) for rank in range(2)]
    unique = own_random(pages["unique"], 0)
    fills = Fills(pages["fills"])
    unmerged = [Random(pages["unmerge"])] * 2
    many = [Random(pages["many"])] * _NR_MANY
    few = many[: _NR_MANY // 2]

    return {
        "twins": _workload("all pages equal", twins, lambda e: sharing.share(e, twins, pages["twins"])),
        "images": _workload("guests", guests, lambda e: sharing.share(e, guests, _expected(guests))),
        "scattered": _workload(
            "every second page equal",
            scattered,
            lambda e: sharing.scattered(e, scattered, pages["scattered"] // 2),
        ),
        "unique": _workload("nothing equal", [unique], lambda e: sharing.unique(e, unique)),
        "fills": _workload(
            "zeros and 0xff", [fills], lambda e: sharing.share(e, [fills], _expected([fills]))
        ),
        "unmerge": _workload("run=2, all merged", unmerged, lambda e: sharing.unmerge(e, unmerged)),
        "many": _workload("all pages equal", many, lambda e: sharing.many(e, many)),
        "half": _workload("half as many as many", few, lambda e: sharing.many(e, few)),
    }


def _workload(about: str, contents: Sequence[Content], run: Callable[[Engine], Figures]) -> Workload:
    nr_pages = sum(content.nr_pages for content in contents)
    size = nr_pages * PAGE_SIZE / len(contents) / (1 << 20)
    return Workload(f"{len(contents)} x {size:g} MiB, {about}", run, nr_pages)


def _expected(contents: Sequence[Content]) -> int:
    return expected_sharing(tuple(contents), MAX_PAGE_SHARING)
