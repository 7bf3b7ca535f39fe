"""Ask the ksmd of an instance for the figures of one's own security domains."""

from __future__ import annotations

from typing import TypedDict, cast

from ksmemu import wire
from ksmemu.control.ask import ask
from ksmemu.instance import Instance


class SpaceFigures(TypedDict):
    """An address space: [start, end), and how many of its pages have each Look by the books, in its order."""

    start: int
    end: int
    looks: list[int]


class WorkerFigures(TypedDict):
    """A process in one domain."""

    pid: int
    domain: str
    spaces: list[SpaceFigures]


class Figures(TypedDict):
    """What ksmd tells a user; errors as those of ask(). Counters by the name of the domain, and by theirs."""

    full_scans: int
    seconds: float
    """Since ksmd began."""
    cpu_seconds: float
    """Of ksmd since then."""
    domains: dict[str, dict[str, int]]
    workers: list[WorkerFigures]


def figures(instance: Instance) -> Figures:
    """Return the counters of each domain of this user's that has workers; of all, if ksmd is his."""
    return cast("Figures", ask(instance, {"figures": wire.VERSION}))
