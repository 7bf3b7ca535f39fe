"""The scan-time advisor: choose pages_to_scan so that a full scan takes advisor_target_scan_time.

Integer arithmetic throughout, as the kernel's: the same inputs give the same pages_to_scan. As there,
advisor_min_pages_to_scan is where it starts, not a lower limit.

Source: scan_time_advisor(), mm/ksm.c.
"""

from __future__ import annotations

from dataclasses import dataclass

_NEW_WEIGHT = 30
"""Per cent of the last change in the moving average."""
_MIN_CPU_PERCENT = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """The tunables: seconds, per cent of one CPU, pages."""

    target_scan_time: int
    max_cpu: int
    max_pages_to_scan: int


@dataclass(frozen=True, slots=True)
class Advisor:
    """What is remembered of the full scan before; a new one knows nothing."""

    change_percent: int = 0
    scan_seconds: int = 0
    cpu_percent: int = 0

    def advise(
        self, limits: Limits, pages_to_scan: int, scan_millisecs: int, cpu_millisecs: int
    ) -> tuple[Advisor, int]:
        """Return what to remember, and the next pages_to_scan, after a full scan of that length and cost."""
        seconds = max(1, scan_millisecs // 1000)
        cpu_percent = max(1, cpu_millisecs * 100 // (seconds * 1000))
        factor = max(1, limits.target_scan_time * 100 // seconds)
        change = max(1, seconds * 100 // (self.scan_seconds or seconds))
        change = (self.change_percent * (100 - _NEW_WEIGHT) + change * _NEW_WEIGHT) // 100
        pages = pages_to_scan * 100 // factor * change // 100
        a_percent = max(1, pages_to_scan // cpu_percent)
        pages = max(min(pages, a_percent * limits.max_cpu), a_percent * _MIN_CPU_PERCENT)
        pages = min(pages, limits.max_pages_to_scan)
        return Advisor(change, seconds, cpu_percent), pages
