"""Step 4a: lay claims out: runs, windows, the mapping budget.

Neighbouring pages that are to show neighbouring frames are one run: one mapping, one mmap.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ksmemu import wire
from ksmemu.ksmd.ranges import Pages, expand
from ksmemu.ksmd.rmap import Rmap, State

Runs = npt.NDArray[np.void]
"""Of dtype wire.RUN."""

_PIECE = wire.ORDER_MAX_PAGES // 2
_JOIN_PAGES = 4
"""Short runs that lie this close are frozen together: one freeze costs more than the few pages between."""
_SHORT_PAGES = 2
"""Longer runs are quicker on their own: measured, runs of 8 pages with a page between."""
_RESERVE_SHARE = 8
"""This part of vm.max_map_count is left to the worker itself."""


def lay_out(pages: Pages, frames: npt.NDArray[np.uint64]) -> Runs:
    """Return the runs of ascending pages and their frames; wire.FRAME_ZERO continues itself."""
    ahead = np.diff(frames)  # wraps for descending frames, which is as good as any other break
    is_zero = frames == np.uint64(wire.FRAME_ZERO)
    same = is_zero[1:] & is_zero[:-1]
    next_frame = (ahead == 1) & ~is_zero[1:] & ~is_zero[:-1]  # frame 0 does not follow the zeros
    breaks = np.flatnonzero((np.diff(pages) != 1) | ~(same | next_frame)) + 1
    starts = np.concatenate([[0], breaks])
    ends = np.concatenate([breaks, [len(pages)]])
    runs = np.zeros(len(starts), dtype=wire.RUN)
    runs["page"], runs["frame"], runs["nr_pages"] = pages[starts], frames[starts], ends - starts
    return _cut(runs)


def _cut(runs: Runs) -> Runs:
    """Cut runs that are longer than half an order."""
    if not len(runs) or runs["nr_pages"].max() <= _PIECE:
        return runs
    nr_pieces = -(-runs["nr_pages"].astype(np.int64) // _PIECE)
    pieces = np.repeat(runs, nr_pieces)
    step = expand(np.stack([np.zeros_like(nr_pieces), nr_pieces], axis=1)) * _PIECE
    pieces["page"] += step.astype(np.uint64)
    in_pool = pieces["frame"] != np.uint64(wire.FRAME_ZERO)
    pieces["frame"][in_pool] += step[in_pool].astype(np.uint64)
    pieces["nr_pages"] = np.minimum(pieces["nr_pages"] - step, _PIECE)
    return pieces


def join(runs: Runs, rmap: Rmap) -> None:
    """Mark the short runs that share a freeze with the one before: the few pages between are all OWN."""
    ends = (runs["page"] + runs["nr_pages"]).astype(np.int64)
    starts = runs["page"].astype(np.int64)
    gaps = starts[1:] - ends[:-1]
    short = runs["nr_pages"] <= _SHORT_PAGES
    near = (gaps <= _JOIN_PAGES) & short[1:] & short[:-1]
    between = np.stack([ends[:-1][near], starts[1:][near]], axis=1)
    states = rmap.state[expand(between)]
    is_own = (states >= State.NEW) & (states <= State.UNSTABLE)
    before = np.concatenate([[0], np.cumsum(is_own)])
    last = np.cumsum(between[:, 1] - between[:, 0])
    owned = before[last] - before[last - (between[:, 1] - between[:, 0])]
    runs["join"][1:][near] = owned == gaps[near]


def orders(runs: Runs) -> Iterator[Runs]:
    """Yield the runs in stretches of at most wire.ORDER_MAX_PAGES pages."""
    lengths = runs["nr_pages"].astype(np.int64)
    key = (np.cumsum(lengths) - lengths) // _PIECE
    yield from np.split(runs, np.flatnonzero(np.diff(key)) + 1)


@functools.cache
def _limit_file() -> int:
    """Kept open: it is read for each order, and a descriptor may not be had for each."""
    return os.open("/proc/sys/vm/max_map_count", os.O_RDONLY | os.O_CLOEXEC)


def mapping_limit() -> int:
    """Return how many mappings a worker may have before ksmd stops adding some."""
    limit = int(os.pread(_limit_file(), 32, 0))
    return limit - limit // _RESERVE_SHARE


def longest(runs: Runs, nr: int) -> npt.NDArray[np.bool_]:
    """Choose the nr longest runs."""
    chosen = np.zeros(len(runs), dtype=np.bool_)
    chosen[np.argsort(-runs["nr_pages"].astype(np.int64), kind="stable")[: max(nr, 0)]] = True
    return chosen
