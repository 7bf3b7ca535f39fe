"""From rounds to medians, ratios and lines of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import TypedDict

from ksmemu.bench.engine import KERNEL, KSMEMU
from ksmemu.bench.rounds import Rounds

_COSTS = ("_s", "_ms", "_us", "_ns")
_NAME_WIDTH, _CELL_WIDTH, _RATIO_WIDTH = 21, 22, 14


class Spread(TypedDict):
    """What the rounds of one engine gave."""

    median: float
    min: float
    max: float
    rounds: list[float]


class Figure(TypedDict, total=False):
    """One figure of one workload. The ratio is there where both engines have a cost."""

    kernel: Spread
    ksmemu: Spread
    ratio: float


def summarise(rounds: Rounds) -> dict[str, Figure]:
    """Return each figure of a workload by name.

    The ratio is kernel / ksmemu, the median of those of the rounds: what ran side by side is compared.
    """
    names = dict.fromkeys(name for found in rounds.values() for figures in found for name in figures)
    return {name: _figure(name, rounds) for name in names}


def _figure(name: str, rounds: Rounds) -> Figure:
    found = {
        engine: [figures[name] for figures in several]
        for engine, several in rounds.items()
        if several and name in several[0]
    }
    figure: Figure = {}
    if KERNEL in found:
        figure["kernel"] = _spread(found[KERNEL])
    if KSMEMU in found:
        figure["ksmemu"] = _spread(found[KSMEMU])
    if len(found) == 2 and is_cost(name):
        pairs = list(zip(found[KERNEL], found[KSMEMU], strict=True))
        if all(own > 0 for _, own in pairs):
            figure["ratio"] = median(kernel / own for kernel, own in pairs)
    return figure


def is_cost(name: str) -> bool:
    """Whether less of a figure is better, so that a ratio says something."""
    return name.endswith(_COSTS)


def _spread(values: Sequence[float]) -> Spread:
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def heading() -> str:
    """Return the line above the table."""
    return _line("", "kernel", "ksmemu", "kernel/ksmemu")


def block(title: str, figures: Mapping[str, Figure]) -> Iterator[str]:
    """Yield the lines of one workload: median (min to max) of each engine, and the ratio."""
    yield title
    for label, figure in figures.items():
        ratio = f"{figure['ratio']:.3g}" if "ratio" in figure else ""
        yield _line(f"  {label}", _cell(figure.get("kernel")), _cell(figure.get("ksmemu")), ratio)
    left = figures.get("left_pages")
    if left and left["ksmemu"]["max"]:
        yield "  (vm.max_map_count ended it early: ksmemu shared less than it could)"


def _line(name: str, kernel: str, own: str, ratio: str) -> str:
    return f"{name:<{_NAME_WIDTH}}{kernel:>{_CELL_WIDTH}}{own:>{_CELL_WIDTH}}{ratio:>{_RATIO_WIDTH}}".rstrip()


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return ""
    middle, low, high = (number(spread[name]) for name in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low}-{high})"


def number(value: float) -> str:
    """Return three digits, and all of a number of more than that."""
    return f"{value:.0f}" if abs(value) >= 1000 or value == 0 else f"{value:.3g}"
