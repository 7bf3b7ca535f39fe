"""The workloads: what each is, how much memory it takes, and which module does it.

Each gets a fresh engine that does not scan yet. Memory is filled before a clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ksmemu.bench import alone, sharing, writing
from ksmemu.bench.content import Content, Fills, Image, Random, Scattered, own_random
from ksmemu.bench.engine import KERNEL, KSMEMU, Engine
from ksmemu.bench.figures import Figures
from ksmemu.bench.guests import Guest
from ksmemu.units import PAGE_SIZE

_NR_GUESTS = 3
_NR_MANY = 64
_FEW = 2
_DEFAULT_PACE = {"pages_to_scan": 100, "sleep_millisecs": 20}

SIZES: Mapping[str, int] = {
    "twins": 512,
    "images": 256,
    "scattered": 256,
    "unique": 1024,
    "fills": 256,
    "churn": 512,
    "break": 64,
    "unmerge": 256,
    "many": 32,
    "asleep": 8,
    "fingerprint": 512,
}
"""MiB of each worker of a workload."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One block of the table.

    Attributes:
        about: for people.
        contents: the memory of each worker.
        run: does it once, on an engine with these workers.
        tunables: other than full speed and the defaults.
        engines: on which it runs.
        most_rounds: of what takes long, or comes out the same every time.
    """

    about: str
    contents: Sequence[Content]
    run: Callable[[Engine, Sequence[Content]], Figures]
    tunables: Mapping[str, int] = field(default_factory=dict)
    engines: Sequence[str] = (KERNEL, KSMEMU)
    most_rounds: int = 1_000

    @property
    def nr_pages(self) -> int:
        """Of all workers."""
        return sum(content.nr_pages for content in self.contents)

    def __str__(self) -> str:
        each = self.nr_pages * PAGE_SIZE / len(self.contents) / (1 << 20)
        return f"{len(self.contents)} x {each:g} MiB, {self.about}"


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

    def twins(name: str, nr: int = 2) -> list[Content]:
        return [Random(pages[name])] * nr

    return {
        "twins": Workload("all pages equal", twins("twins"), partial(sharing.share, goal=pages["twins"])),
        "images": Workload("guests", guests, sharing.share),
        "scattered": Workload(
            "every second page equal",
            [Scattered(pages["scattered"], rank) for rank in range(2)],
            partial(sharing.scattered, goal=pages["scattered"] // 2),
        ),
        "unique": Workload(
            "no page equal", [own_random(pages["unique"], 0)], sharing.unique, most_rounds=_FEW
        ),
        "fills": Workload("zeros and 0xff", [Fills(pages["fills"])], sharing.share),
        "churn": Workload(
            "rewritten by the first, a scan a second", twins("churn"), writing.churn, most_rounds=_FEW
        ),
        "break": Workload(
            "two equal, one not: first writes",
            [*twins("break"), own_random(pages["break"], 0)],
            writing.first_writes,
        ),
        "unmerge": Workload("all merged, then run=2", twins("unmerge"), sharing.unmerge),
        "many": Workload("all pages equal", twins("many", _NR_MANY), sharing.many, most_rounds=_FEW),
        "half": Workload("half as many", twins("many", _NR_MANY // 2), sharing.many, most_rounds=_FEW),
        "asleep": Workload(
            "at the default pace, then idle", twins("asleep"), alone.asleep, _DEFAULT_PACE, (KSMEMU,), 1
        ),
        "fingerprint": Workload(
            "read by all CPUs", twins("fingerprint", 1), alone.fingerprint, {}, (KSMEMU,)
        ),
    }
