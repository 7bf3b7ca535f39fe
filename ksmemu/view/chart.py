"""The charts of a report, each drawn on axes that it is given. Needs matplotlib.

Report.html and report.png show the same charts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ksmemu.control.look import Look
from ksmemu.control.page_map import PageMap
from ksmemu.view import sharing
from ksmemu.view.cells import COLOURS, cells
from ksmemu.view.record import Run
from ksmemu.view.sample import Between

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP_COLUMNS, MAP_CELLS = 128, 128 * 48
_MIB = 1 << 20
_MOST_LABELS = 40
"""Numbers in the cells of a matrix can be read up to so many workers."""

_FRAMES_COLOUR = "#1f6e1a"
_KINDS = {
    "pages_sharing": ("saved", COLOURS[Look.MERGED]),
    "pages_shared": ("shared frames", _FRAMES_COLOUR),
    "pages_unshared": ("unique", COLOURS[Look.OWN]),
    "pages_volatile": ("volatile", COLOURS[Look.VOLATILE]),
    "ksm_zero_pages": ("zero page", COLOURS[Look.ZERO]),
}
_RATES = {
    "pages_scanned": ("looked at", "#777777"),
    "merges": ("merged", COLOURS[Look.MERGED]),
    "pages_broken": ("broken", COLOURS[Look.BROKEN]),
}

Draw = Callable[["Axes", Run], None]


def savings(axes: Axes, run: Run) -> None:
    """Saved memory over time."""
    seconds = _seconds(run)
    saved = [sample.saved_bytes / _MIB for sample in run.samples]
    axes.fill_between(seconds, saved, color=COLOURS[Look.MERGED], alpha=0.25)
    axes.plot(seconds, saved, color=COLOURS[Look.MERGED], marker="." if len(saved) < 30 else "")
    _label(axes, "Saved memory", "seconds", "MiB")


def pages(axes: Axes, run: Run) -> None:
    """What the counters of pages say, over time."""
    for name, (words, colour) in _KINDS.items():
        values = [sample.total(name) for sample in run.samples]
        axes.plot(_seconds(run), values, color=colour, label=words, marker="." if len(values) < 30 else "")
    _label(axes, "Pages", "seconds", "pages")
    _name_lines(axes)


def rates(axes: Axes, run: Run) -> None:
    """What happens in a second, and the CPU that it takes."""
    betweens = [Between(*two) for two in zip(run.samples, run.samples[1:], strict=False)]
    betweens = betweens or [Between(run.samples[0].beginning(), run.samples[0])]
    ends = [between.after.at - run.samples[0].at for between in betweens]
    for name, (words, colour) in _RATES.items():
        values = [between.per_second(name) for between in betweens]
        axes.plot(ends, values, color=colour, label=words, marker="." if len(ends) < 30 else "")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    cpu = sum(between.cpu_percent * between.seconds for between in betweens)
    mean = cpu / sum(between.seconds for between in betweens)
    _label(axes, f"Pages a second; ksmd took {mean:.0f}% of a CPU", "seconds", "pages/s")
    _name_lines(axes)


def run_lengths(axes: Axes, run: Run) -> None:
    """How long the runs of merged pages are: each is a mapping."""
    highest, nr = sharing.by_power(sharing.run_lengths(run.maps.spaces))
    _bars(axes, highest, nr, COLOURS[Look.MERGED])
    _label(axes, f"{nr.sum()} runs of merged pages", "pages in a run, at most", "runs")


def sharers(axes: Axes, run: Run) -> None:
    """How many pages show a frame."""
    highest, nr = sharing.by_power(sharing.sharers(run.maps.spaces))
    _bars(axes, highest, nr, _FRAMES_COLOUR)
    _label(axes, f"{nr.sum()} frames", "pages that name a frame, at most", "frames")


def matrix(axes: Axes, run: Run) -> None:
    """Who shares with whom."""
    both = sharing.matrix(run.maps.spaces)
    workers = sharing.workers(run.maps.spaces)
    names = [label(run, pid) for pid, _ in workers]
    shown = np.where(np.eye(len(both), dtype=bool), np.nan, both.astype(float))
    most = np.nanmax(shown, initial=0)
    if len(both):
        axes.imshow(shown, cmap="Greens", vmin=0, vmax=max(most, 1))
    if 0 < len(names) <= _MOST_LABELS:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
        axes.set_yticks(range(len(names)), names, fontsize="small")
        size = max(4, 10 - len(names) / 5)
        for (row, column), nr in np.ndenumerate(both):
            colour = "white" if row != column and nr > most * 0.6 else "black"
            weight = "bold" if row == column else "normal"
            axes.text(
                column, row, str(nr), ha="center", va="center", fontsize=size, color=colour, weight=weight
            )
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_title("Frames that two processes share (bold: that one shows)", fontsize="medium")


def page_map(space: PageMap) -> tuple[npt.NDArray[np.uint8], str]:
    """Return (picture, what a cell of it is): red, green and blue of each cell, by row and column."""
    looks, pages_a_cell = cells(space, MAP_CELLS)
    columns = min(MAP_COLUMNS, len(looks))
    grid = np.full(-(-len(looks) // columns) * columns, len(Look))
    grid[: len(looks)] = looks
    each = "a page" if pages_a_cell == 1 else f"{pages_a_cell} pages"
    return _rgb()[grid.reshape(-1, columns)], f"{columns} cells a row, each {each}"


CHARTS: tuple[Draw, ...] = (savings, pages, rates, sharers, run_lengths, matrix)
"""All that are drawn of a run, but for the page maps."""


def label(run: Run, pid: int) -> str:
    """Name a process."""
    return f"{pid} {run.names.get(pid, '')}".rstrip()


def _seconds(run: Run) -> list[float]:
    return [sample.at - run.samples[0].at for sample in run.samples]


def _bars(axes: Axes, highest: list[int], nr: sharing.Counts, colour: str) -> None:
    bars = axes.bar([str(number) for number in highest] or [""], nr if len(nr) else [0], color=colour)
    axes.bar_label(bars, fontsize="small")
    axes.margins(y=0.15)


def _label(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x, fontsize="small")
    axes.set_ylabel(y, fontsize="small")
    axes.tick_params(labelsize="small")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _name_lines(axes: Axes) -> None:
    """Below, where no line can run through the names."""
    axes.legend(fontsize="small", frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _rgb() -> npt.NDArray[np.uint8]:
    """Return red, green and blue of each Look, and of the paper."""
    hexes = [*(COLOURS[look] for look in Look), "#ffffff"]
    return np.array([list(bytes.fromhex(text.removeprefix("#"))) for text in hexes], dtype=np.uint8)
