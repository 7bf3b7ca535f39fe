"""A sample: the figures of an instance at one moment; and what went on between two of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ksmemu.control.figures import Figures, figures
from ksmemu.instance import Instance
from ksmemu.units import PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Sample:
    """Figures, and when they were true.

    Attributes:
        at: seconds since 1970.
        figures: of the domains of which this user may know.
    """

    at: float
    figures: Figures

    def total(self, name: str) -> int:
        """Return a counter, summed over the domains."""
        return sum(counters[name] for counters in self.figures["domains"].values())

    @property
    def saved_bytes(self) -> int:
        """What is saved, as `ksmemu status` has it."""
        return PAGE_SIZE * (self.total("pages_sharing") + self.total("ksm_zero_pages"))

    def beginning(self) -> Sample:
        """Return the sample of the moment when ksmd began: nothing was there."""
        seconds = self.figures["seconds"]
        nothing: Figures = {"full_scans": 0, "seconds": 0.0, "cpu_seconds": 0.0, "domains": {}, "workers": []}
        return Sample(self.at - seconds, nothing)


def take(instance: Instance) -> Sample:
    """Return a sample of now; errors as those of control.figures.figures()."""
    return Sample(time.time(), figures(instance))


def samples(instance: Instance, interval: float) -> Iterator[Sample]:
    """Yield a sample each interval (in seconds), the first one at once; errors as those of take()."""
    due = time.monotonic()
    while True:
        yield take(instance)
        now = time.monotonic()
        due = max(due + interval, now)
        time.sleep(due - now)


@dataclass(frozen=True, slots=True)
class Between:
    """What went on between two samples of one instance."""

    before: Sample
    after: Sample

    @property
    def seconds(self) -> float:
        """How long it was, by ksmd's clock."""
        return max(self.after.figures["seconds"] - self._since("seconds"), 1e-9)

    @property
    def cpu_percent(self) -> float:
        """CPU of ksmd, in per cent of one CPU."""
        return 100 * (self.after.figures["cpu_seconds"] - self._since("cpu_seconds")) / self.seconds

    def per_second(self, name: str) -> float:
        """Return how fast a counter rose that never falls. Domains come and go: each counts for itself."""
        then = {} if self._is_another_ksmd else self.before.figures["domains"]
        now = self.after.figures["domains"]
        risen = (
            counters[name] - (then[domain][name] if domain in then else 0) for domain, counters in now.items()
        )
        return sum(max(0, rise) for rise in risen) / self.seconds

    @property
    def _is_another_ksmd(self) -> bool:
        return self.after.figures["seconds"] < self.before.figures["seconds"]

    def _since(self, name: str) -> float:
        if self._is_another_ksmd:
            return 0.0
        return self.before.figures["seconds" if name == "seconds" else "cpu_seconds"]
