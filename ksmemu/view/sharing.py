"""Who shares what, counted from page maps: nothing here is a figure of ksmd's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ksmemu.control.look import Look
from ksmemu.control.page_map import NO_FRAME, PageMap

Worker = tuple[int, str]
"""A pid, and a domain."""
Counts = npt.NDArray[np.int64]

_FRAMES_AT_ONCE = 1 << 16


def workers(spaces: Iterable[PageMap]) -> list[Worker]:
    """Return who has the spaces, by domain and pid."""
    found = {(space.pid, space.domain) for space in spaces}
    return sorted(found, key=lambda worker: (worker[1], worker[0]))


def counts(spaces: Iterable[PageMap]) -> Counts:
    """Return how many pages have each Look."""
    return sum((space.counts() for space in spaces), np.zeros(len(Look), dtype=np.int64))


def sharers(spaces: Sequence[PageMap]) -> Counts:
    """Return for each frame how many pages name it."""
    found = [_frames(one) for one in _domains(spaces)]
    return np.concatenate([np.empty(0, np.int64), *(np.unique(f, return_counts=True)[1] for f in found)])


def matrix(spaces: Sequence[PageMap]) -> Counts:
    """Return for each two of workers() how many frames both name; on the diagonal, how many one does."""
    who = {worker: at for at, worker in enumerate(workers(spaces))}
    found = np.zeros((len(who), len(who)), dtype=np.int64)
    for domain in _domains(spaces):
        frames = _frames(domain)
        owners = np.repeat([who[s.pid, s.domain] for s in domain], [len(_frames([s])) for s in domain])
        pairs = np.unique(frames * len(who) + owners)
        for part in _by_frames(pairs // len(who), pairs % len(who)):
            found += _both(*part, len(who))
    return found


def _by_frames(frames: Counts, owners: Counts) -> Iterator[tuple[Counts, Counts]]:
    """Yield numbers of frames from 0, and their owners, for some frames at a time."""
    numbers = np.unique(frames, return_inverse=True)[1]
    for first in range(0, int(numbers.max(initial=-1)) + 1, _FRAMES_AT_ONCE):
        low, high = np.searchsorted(numbers, [first, first + _FRAMES_AT_ONCE])
        yield numbers[low:high] - first, owners[low:high]


def _both(frames: Counts, owners: Counts, nr_workers: int) -> Counts:
    shows = np.zeros((int(frames[-1]) + 1, nr_workers), dtype=np.float32)  # exact up to 2**24
    shows[frames, owners] = 1
    both: Counts = (shows.T @ shows).astype(np.int64)
    return both


def run_lengths(spaces: Iterable[PageMap]) -> Counts:
    """Return the length of each run: neighbours that show neighbouring frames, or one frame (ladders)."""
    return np.concatenate([np.empty(0, np.int64), *map(_run_lengths, spaces)])


def _run_lengths(space: PageMap) -> Counts:
    merged = space.looks == Look.MERGED
    pages, frames = space.pages[merged], space.frames[merged].astype(np.int64)
    ahead = np.diff(frames)
    breaks = (np.diff(pages) != 1) | ((ahead != 0) & (ahead != 1))
    ends = np.append(np.flatnonzero(breaks) + 1, len(pages))
    return np.diff(ends, prepend=0)[: len(pages)]


def by_power(numbers: Counts) -> tuple[list[int], Counts]:
    """Return (highest, counts) of a histogram with bins up to 1, 2, 4, 8, and so on."""
    powers = np.ceil(np.log2(np.maximum(numbers, 1))).astype(np.int64)
    counts = np.bincount(powers)
    return [1 << power for power in range(len(counts))], counts


def _domains(spaces: Sequence[PageMap]) -> list[list[PageMap]]:
    """Return the spaces of each domain: frames of two domains may have one number."""
    return [[s for s in spaces if s.domain == name] for name in sorted({s.domain for s in spaces})]


def _frames(spaces: Sequence[PageMap]) -> Counts:
    columns = [space.frames[space.frames != NO_FRAME] for space in spaces]
    return np.concatenate([np.empty(0, np.int64), *columns]).astype(np.int64)
