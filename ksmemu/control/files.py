"""Which files a control directory holds: those of Linux 6.18, or those of the patches of 2009."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ksmemu.control.counters import COUNTERS, STATS, Counter
from ksmemu.control.tunables import ACTIONS, TUNABLES, Action, Tunable, parse_u32, parse_ulong, within
from ksmemu.instance import Instance


@dataclass(frozen=True, slots=True)
class Files:
    """What a control directory holds, by name."""

    tunables: Mapping[str, Tunable]
    actions: Mapping[str, Action]
    counters: Mapping[str, Counter]
    stats: Mapping[str, Counter]
    """In a folder of their own."""
    refuses: bool = True
    """Whether a bad store is an error. In 2009 nothing happened, and nobody was told."""


LINUX = Files(TUNABLES, ACTIONS, COUNTERS, STATS)
"""The files of Linux 6.18, merge_pid and unmerge_pid, and counters of ksmemu's own."""

_ENABLE = Tunable("enable", 0, "1: write events, 0: do not", within(0, 1, of=parse_ulong))
TRACING = Files({"enable": _ENABLE}, {}, {}, {})
"""The control file of events, in a directory of its own, as in tracefs."""

_TUNABLES_2009 = (
    Tunable("run", 0, "0 stop and unmerge all, 1 merge", within(0, 1)),
    Tunable("pages_to_scan", 200, "pages before a sleep", parse_u32),
    Tunable("sleep", 20000, "between two batches, in us", parse_u32),
    Tunable("max_kernel_pages", 0, "frames, at most; 0: no limit", parse_ulong),
)
_COUNTERS_2009 = (
    Counter("kernel_pages_allocated", "frames of the pool in use", "Linux 6.18 names it pages_shared"),
    Counter("pages_shared", "pages saved by sharing them", "Linux 6.18 names it pages_sharing"),
)

RFC_2009 = Files(
    tunables={tunable.name: tunable for tunable in _TUNABLES_2009},
    actions=ACTIONS,
    counters={counter.name: counter for counter in _COUNTERS_2009},
    stats={**STATS, "full_scans": COUNTERS["full_scans"]},
    refuses=False,
)
"""The files of May 2009. How often everything was scanned they did not say: that is ksmemu's own here.

Source: "[PATCH 0/5] ksm - dynamic page sharing driver for linux v4", 20 April 2009, and "[PATCH 0/4] RFC -
ksm api change into madvise", 14 May 2009, both by Izik Eidus; the values at the start are ours.
"""


def files_of(instance: Instance) -> Files:
    """Return what the directory of a running ksmd holds."""
    return RFC_2009 if (instance.control / "kernel_pages_allocated").exists() else LINUX
