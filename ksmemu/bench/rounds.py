"""The rounds of one workload: the engines take turns, so that both meet the same weather."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ksmemu.bench.engine import KERNEL, KSMEMU, started
from ksmemu.bench.figures import Figures
from ksmemu.bench.workloads import Workload

Rounds = Mapping[str, Sequence[Figures]]
"""By engine; round n of one engine ran beside round n of the other."""


def nr_runs(workload: Workload, engines: Sequence[str], nr_rounds: int) -> int:
    """Return how often measure() runs a workload."""
    return min(nr_rounds, workload.most_rounds) * sum(name in workload.engines for name in engines)


def measure(
    workload: Workload, engines: Sequence[str], nr_rounds: int, advance: Callable[[int], None]
) -> Rounds:
    """Run a workload nr_rounds times on each engine, at full speed; every other time the second one begins.

    Args:
        advance: is told of each run that has ended.

    Raises:
        OSError: an engine could not be started, or did not reach what was to be reached.
    """
    found: dict[str, list[Figures]] = {
        name: [] for name in engines if (KERNEL if name == KERNEL else KSMEMU) in workload.engines
    }
    # One more than there are: the kernel notices the end of a scan only when it looks for the next page.
    tunables = {"pages_to_scan": workload.nr_pages + 1, "sleep_millisecs": 0, **workload.tunables}
    for number in range(min(nr_rounds, workload.most_rounds)):
        for name in list(found)[:: -1 if number % 2 else 1]:
            with started(name, **tunables) as engine:
                found[name].append(workload.run(engine, workload.contents))
            advance(1)
    return found
