"""The VMAs inside an address space: what is mapped where, and what was advised.

They split and join as the kernel's do when advice changes (the RFC's handle_vmas).
"""

from __future__ import annotations

from dataclasses import dataclass
from mmap import PROT_READ, PROT_WRITE

import numpy as np

from ksmemu.intervals import Interval, IntervalMap


@dataclass(frozen=True, slots=True)
class Flags:
    """What is the same all over one VMA."""

    mergeable: bool = False
    """VM_MERGEABLE: the last advice."""
    own: bool = False
    """In the own object. False: ordinary memory, never advised so far."""
    from_outside: bool = False
    """Mergeable because merge_pid asked for it; the process itself has said nothing."""
    refused: bool = False
    """The process has said MADV_UNMERGEABLE: merge_pid leaves it alone."""
    unshareable: bool = False
    """No longer mergeable, as in 2009: what was merged stays so, and ksmd may still order it home."""
    prot: int = PROT_READ | PROT_WRITE
    """What the application may do: the PROT_* of mprotect()."""
    node: int = 0
    """The simulated NUMA node it is on."""


Vma = Interval[Flags]


class VmaMap(IntervalMap[Flags]):
    """All VMAs of one address space, by address."""

    def mergeable(self) -> bytes:
        """Return where ksmd's orders are obeyed, the mergeable ranges, as pairs of uint64 for the core."""
        bounds: list[int] = []
        for vma in self:
            if not (vma.value.mergeable or vma.value.unshareable):
                continue
            if bounds and bounds[-1] == vma.start:
                bounds[-1] = vma.end
            else:
                bounds += (vma.start, vma.end)
        return np.array(bounds, dtype=np.uint64).tobytes()

    def protections(self) -> bytes:
        """Return where not all is allowed: triples of uint64 (start, end, PROT_*), as the core takes them."""
        ranges = IntervalMap[int]()
        for vma in self:
            if vma.value.prot != PROT_READ | PROT_WRITE:
                ranges.put(vma.start, vma.end, vma.value.prot)
        return np.array([(item.start, item.end, item.value) for item in ranges], dtype=np.uint64).tobytes()
