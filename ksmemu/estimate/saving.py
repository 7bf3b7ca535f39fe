"""Step 3: what merging these fingerprints would save, by the rules of KSM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ksmemu.estimate.fingerprint import GONE, Fingerprints
from ksmemu.units import PAGE_SIZE

Counts = npt.NDArray[np.int64]
_CHUNK = 1 << 17
"""Fingerprints looked at together: what is made of them takes memory."""


@dataclass(frozen=True, slots=True)
class Saving:
    """Pages. Those of zeros are apart from the rest.

    Attributes:
        pages: that were looked at.
        zero_pages: those of them that hold zeros: none is needed with use_zero_pages.
        distinct: contents of the rest.
        pages_shared, pages_sharing: what the counters of these names would be with use_zero_pages.
        zero_frames, zeros_sharing: what those of zeros would add to them without it.
    """

    pages: int
    zero_pages: int
    distinct: int
    pages_shared: int
    pages_sharing: int
    zero_frames: int
    zeros_sharing: int

    @property
    def saved_bytes(self) -> int:
        """Return what is saved without the pages of zeros."""
        return self.pages_sharing * PAGE_SIZE

    @property
    def saved_with_zeros_bytes(self) -> int:
        """Return what is saved with use_zero_pages."""
        return (self.pages_sharing + self.zero_pages) * PAGE_SIZE


def saving(fingerprints: Fingerprints, zero: int, limit: int) -> Saving:
    """Sort fingerprints, in place, and return what merging them would save.

    Args:
        zero: the fingerprint of a page of zeros.
        limit: max_page_sharing: pages that share a frame, 2 or more.
    """
    fingerprints.sort()
    low = int(fingerprints.searchsorted(np.uint64(zero)))
    high = int(fingerprints.searchsorted(np.uint64(zero), side="right"))
    end = int(fingerprints.searchsorted(np.uint64(GONE)))
    distinct = shared = sharing = 0
    for part in (fingerprints[:low], fingerprints[high:end]):
        for sizes in _group_sizes(part):
            frames, merged = _merge(sizes, limit)
            distinct += len(sizes)
            shared += frames
            sharing += merged - frames
    zero_frames, merged = _merge(np.array([high - low]), limit)
    return Saving(end, high - low, distinct, shared, sharing, zero_frames, merged - zero_frames)


def _group_sizes(ordered: Fingerprints) -> Iterator[Counts]:
    """Yield how many pages hold each content, for some contents at a time."""
    at = 0
    while at < len(ordered):
        end = min(at + _CHUNK, len(ordered))
        end = int(ordered.searchsorted(ordered[end - 1], side="right"))
        part = ordered[at:end]
        edges = np.flatnonzero(part[1:] != part[:-1]) + 1
        yield np.diff(edges, prepend=0, append=len(part))
        at = end


def _merge(sizes: Counts, limit: int) -> tuple[int, int]:
    """Return frames, and the pages that share them: the last of n pages is alone if n % limit == 1."""
    rest = sizes % limit
    frames = sizes // limit + (rest >= 2)
    return int(frames.sum()), int((sizes - (rest == 1)).sum())
