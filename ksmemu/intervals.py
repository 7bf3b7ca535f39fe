"""A map from intervals to values: split where a part changes, joined where neighbours are equal."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Interval(Generic[V]):
    """Half-open [start, end) with what holds there."""

    start: int
    end: int
    value: V

    def __len__(self) -> int:
        return self.end - self.start


class IntervalMap(Generic[V]):
    """Disjoint intervals in ascending order. Neighbours that touch have different values."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._items: list[Interval[V]] = []

    def __iter__(self) -> Iterator[Interval[V]]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def overlapping(self, start: int, end: int) -> list[Interval[V]]:
        """Return what lies in [start, end), clipped to it; nothing lies in an empty range."""
        if start >= end:
            return []
        first = max(bisect_right(self._starts, start) - 1, 0)
        last = bisect_left(self._starts, end)
        return [
            Interval(max(item.start, start), min(item.end, end), item.value)
            for item in self._items[first:last]
            if item.end > start
        ]

    def put(self, start: int, end: int, value: V | None) -> None:
        """Let `value` hold in [start, end) instead of what held there; None: nothing holds there."""
        if start >= end:
            return
        first = max(bisect_left(self._starts, start) - 1, 0)  # the one before may touch
        last = bisect_right(self._starts, end)
        touched = self._items[first:last]
        before = [Interval(i.start, min(i.end, start), i.value) for i in touched if i.start < start]
        after = [Interval(max(i.start, end), i.end, i.value) for i in touched if i.end > end]
        here = [] if value is None else [Interval(start, end, value)]
        new = self._joined([*before, *here, *after])
        self._items[first:last] = new
        self._starts[first:last] = [item.start for item in new]

    def gap(self, length: int, start: int, end: int) -> int | None:
        """Return where the first `length` free units of [start, end) begin, or None."""
        at = start
        for item in self._items:
            if min(item.start, end) - at >= length:
                return at
            at = max(at, item.end)
        return at if end - at >= length else None

    @staticmethod
    def _joined(items: list[Interval[V]]) -> list[Interval[V]]:
        joined: list[Interval[V]] = []
        for item in items:
            if joined and joined[-1].end == item.start and joined[-1].value == item.value:
                joined[-1] = Interval(joined[-1].start, item.end, item.value)
            else:
                joined.append(item)
        return joined
