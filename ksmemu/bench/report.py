"""From rounds to medians, ratios and lines of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

from ksmemu.bench.rounds import Rounds

_COSTS = ("_s", "_ms", "_us", "_ns")
_NAME_WIDTH, _CELL_WIDTH, _RATIO_WIDTH = 21, 22, 14


class Spread(TypedDict):
    """What the rounds of one engine gave."""

    median: float
    min: float
    max: float
    rounds: list[float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one workload.

    Attributes:
        spreads: by engine.
        ratio: of the first engine to the second; None: one of them has none, or it is no cost.
    """

    spreads: Mapping[str, Spread]
    ratio: float | None

    def as_json(self) -> dict[str, object]:
        """Return it by the names of the engines, and `ratio`."""
        return {**self.spreads, **({} if self.ratio is None else {"ratio": self.ratio})}


def summarise(rounds: Rounds) -> dict[str, Figure]:
    """Return each figure of a workload by name.

    The ratio is the median of those of the rounds: what ran side by side is compared.
    """
    names = dict.fromkeys(name for found in rounds.values() for figures in found for name in figures)
    return {name: _figure(name, rounds) for name in names}


def _figure(name: str, rounds: Rounds) -> Figure:
    found = {
        engine: [figures[name] for figures in several]
        for engine, several in rounds.items()
        if several and name in several[0]
    }
    ratio = None
    if len(found) == 2 and is_cost(name):
        pairs = list(zip(*found.values(), strict=True))
        if all(own > 0 for _, own in pairs):
            ratio = median(other / own for other, own in pairs)
    return Figure({engine: _spread(values) for engine, values in found.items()}, ratio)


def is_cost(name: str) -> bool:
    """Whether less of a figure is better, so that a ratio says something."""
    return name.endswith(_COSTS)


def _spread(values: Sequence[float]) -> Spread:
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def heading(pair: Sequence[str]) -> str:
    """Return the line above the table of two engines."""
    first, second = pair
    ratio = f"{first}/{second}"
    return _line("", first, second, ratio if len(ratio) < _RATIO_WIDTH else "ratio")


def block(title: str, figures: Mapping[str, Figure], pair: Sequence[str]) -> Iterator[str]:
    """Yield the lines of one workload: median (min to max) of each of two engines, and the ratio."""
    yield title
    for label, figure in figures.items():
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3g}"
        first, second = (_cell(figure.spreads.get(engine)) for engine in pair)
        yield _line(f"  {label}", first, second, ratio)
    left = figures.get("left_pages")
    if left and any(spread["max"] for spread in left.spreads.values()):
        yield "  (vm.max_map_count ended it early: ksmemu shared less than it could)"


def _line(name: str, first: str, second: str, ratio: str) -> str:
    return (
        f"{name:<{_NAME_WIDTH}}{first:>{_CELL_WIDTH}}{second:>{_CELL_WIDTH}}{ratio:>{_RATIO_WIDTH}}".rstrip()
    )


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return ""
    middle, low, high = (number(spread[name]) for name in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def number(value: float) -> str:
    """Return three digits, and all of a number of more than that."""
    return f"{value:.0f}" if abs(value) >= 1000 or value == 0 else f"{value:.3g}"
