"""What to scan first, what may merge and what does: one small interface, and three ways to fill it.

    Policy.order ─▶ scan ─▶ harvest ─ Policy.candidates ─▶ checksum ─▶ match ─ Policy.chosen ─▶ merge

A policy decides nothing but what to try, and when: whatever it says, pages are compared byte by byte before
they merge, and counters stay what they mean. Runs in: ksmd, one instance for each security domain.
`ksmemu start --policy NAME` takes one of POLICIES, or `MODULE:CLASS` for one of your own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Space:
    """An address space, as a full scan finds it when it begins.

    Attributes:
        number: ascends in the order in which spaces came.
        nr_pages: that are mergeable, and hold data, as far as scans have seen them.
        nr_merged: those of them that are merged.
        find_new: looks for data that came since the last scan; returns how many pages no scan has seen.
    """

    number: int
    nr_pages: int
    nr_merged: int
    find_new: Callable[[], int]


@dataclass(frozen=True, slots=True)
class Seen:
    """Pages of one space that are scanned together; each mask has an entry for each of them.

    Attributes:
        written: written since the scan before.
        quiet: not written for one full scan, not merged, and not read since.
        skipped: left out this time (smart_scan).
        find_new: returns which no scan has seen before.
    """

    written: Mask
    quiet: Mask
    skipped: Mask
    find_new: Callable[[], Mask]


class Policy:
    """The default, *written*: spaces in turn; what the kernel says was not written for one full scan merges.

    Attributes:
        reads_all: whether writes are found by reading every page in every scan, and not asked of the kernel.
    """

    reads_all = False

    def order(self, spaces: Sequence[Space]) -> Sequence[Space]:
        """Return spaces, which come by number, in the order in which to scan them: each once."""
        return spaces

    def candidates(self, seen: Seen) -> Mask:
        """Return which pages to read now, and to look for an equal of: no others than new and quiet ones."""
        return seen.quiet

    def chosen(self, nr_equal: Counts) -> Mask:
        """Return which contents to merge of those that no frame holds yet.

        Args:
            nr_equal: how many pages are to share a frame of each content: 2 to max_page_sharing.
        """
        return np.ones(len(nr_equal), dtype=np.bool_)


class Checksum(Policy):
    """The kernel's plain rule: a page whose checksum is that of the scan before may merge. All are read."""

    reads_all = True


class Hints(Policy):
    """An advice is a hint that there is something to share: what was just advised is read at once, and first.

    Then come the spaces that had most to share so far. What is advised before it is filled gains nothing, and
    is read once more than by the default.
    """

    def order(self, spaces: Sequence[Space]) -> Sequence[Space]:
        """Return those with new pages first, then by the part that is merged."""
        return sorted(spaces, key=lambda s: (-s.find_new(), -s.nr_merged / max(s.nr_pages, 1), s.number))

    def candidates(self, seen: Seen) -> Mask:
        """Return what is new or quiet."""
        return seen.quiet | seen.find_new()


DEFAULT = "written"
POLICIES: Mapping[str, type[Policy]] = {DEFAULT: Policy, "checksum": Checksum, "hints": Hints}


def load(name: str) -> type[Policy]:
    """Return one of POLICIES, or the class that `MODULE:CLASS` names.

    Raises:
        ValueError: there is none.
    """
    if name in POLICIES:
        return POLICIES[name]
    module, colon, kind = name.partition(":")
    if not colon:
        raise ValueError(f"no policy {name!r}: there are {', '.join(POLICIES)}, and MODULE:CLASS")
    try:
        found = getattr(importlib.import_module(module), kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no policy {name!r}: {error}") from None
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ValueError(f"no policy {name!r}: it is no ksmemu.policy.Policy")  # noqa: TRY004 (of a name)
    return found
