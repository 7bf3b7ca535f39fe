"""The picture of a benchmark: what each engine costs, side by side. Needs matplotlib."""

from __future__ import annotations

import errno
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from ksmemu.bench.report import Figure, is_cost, number
from ksmemu.errors import KsmError

_BAR = 0.4
_COLOURS = ("tab:gray", "tab:green")


def require() -> None:
    """Raise KsmError (ENOPKG) where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        raise KsmError(errno.ENOPKG, "--plot needs matplotlib: pip install 'ksmemu[plot]'")


def draw(found: Mapping[str, Mapping[str, Figure]], pair: Sequence[str], path: Path) -> None:
    """Draw the costs of all workloads to a PNG file: medians as bars, min to max as lines, ratios in words.

    Args:
        found: figures by workload and name.
        pair: the two engines.
        path: is overwritten.
    """
    from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 (an extra; see require())

    rows = [
        (f"{workload}  {name}", figure)
        for workload, figures in found.items()
        for name, figure in figures.items()
        if is_cost(name)
    ]
    canvas = Canvas(figsize=(9, 1.2 + 0.4 * len(rows)), layout="constrained")
    axes = canvas.add_subplot()
    for row, (_, figure) in enumerate(rows):
        for place, engine in enumerate(pair):
            if (spread := figure.spreads.get(engine)) is not None:
                low, high = spread["median"] - spread["min"], spread["max"] - spread["median"]
                at = row + (place - 0.5) * _BAR
                axes.barh(at, spread["median"], _BAR, color=_COLOURS[place], xerr=[[low], [high]])
        if figure.ratio is not None:
            axes.text(1.01, row, number(figure.ratio), transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    canvas.savefig(path, format="png", dpi=120)
