"""What is really mapped: /proc/self/maps, the truth that no journal of ours replaces."""

from __future__ import annotations

from ksmemu.units import Range


def not_of(inode: int, start: int, end: int) -> list[Range]:
    """Return what is mapped in [start, end) from anything but the object with this inode.

    Inside advised memory that is what was merged: frames of the pool, and zeros. Neighbours are joined.
    """
    found: list[Range] = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            bounds, _, _, _, line_inode, *_ = line.split(maxsplit=5)
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if high <= start or int(line_inode) == inode:
                continue
            if low >= end:
                break
            low, high = max(low, start), min(high, end)
            if found and found[-1].end == low:
                found[-1] = Range(found[-1].start, high)
            else:
                found.append(Range(low, high))
    return found
