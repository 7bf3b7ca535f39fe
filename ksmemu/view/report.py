"""The report of a run: a page that needs nothing beside it, or a picture. Needs matplotlib, and jinja2."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ksmemu.cli.output import size
from ksmemu.control.counters import COUNTERS, STATS
from ksmemu.control.look import Look
from ksmemu.control.page_map import Content, PageMap
from ksmemu.units import PAGE_SIZE
from ksmemu.view import chart, sharing
from ksmemu.view.cells import COLOURS
from ksmemu.view.record import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_SPACES = 16
"""Page maps of so many spaces are drawn: those with the most data."""


_MEANINGS = {name: counter.meaning for name, counter in {**COUNTERS, **STATS}.items() if name != "full_scans"}
"""Of what is counted in each domain."""


_FLAT = 16
"""A map of fewer rows is stretched."""


def spaces_drawn(run: Run) -> list[PageMap]:
    """Return the spaces whose page maps are drawn."""
    return sorted(run.maps.spaces, key=lambda space: -int(space.counts()[Look.OWN :].sum()))[:MOST_SPACES]


def recount(run: Run) -> dict[str, int]:
    """Return what the page maps say of the counters."""
    looks = sharing.counts(run.maps.spaces)
    frames = sharing.sharers(run.maps.spaces)
    return {
        "pages_shared": len(frames),
        "pages_sharing": int(frames.sum()) - len(frames),
        "ksm_zero_pages": int(looks[Look.ZERO]),
        **{f"pages_{look.word}": int(looks[look]) for look in Look if look is not Look.ABSENT},
    }


def html(run: Run, title: str) -> str:
    """Return the page."""
    from jinja2 import Environment  # noqa: PLC0415 (an extra)

    template = Environment(autoescape=True).from_string((files(__package__) / "report.html").read_text())
    last, looks = run.samples[-1], sharing.counts(run.maps.spaces).tolist()
    counters = {name: last.total(name) for name in _MEANINGS}
    numbers = {
        "saved_bytes": last.saved_bytes,
        "full_scans": last.figures["full_scans"],
        "counters": counters,
        "recount": recount(run),
        "workers": sharing.workers(run.maps.spaces),
        "matrix": sharing.matrix(run.maps.spaces).tolist(),
    }
    shown = spaces_drawn(run)
    return template.render(
        title=title,
        saved=size(last.saved_bytes),
        began=_time(run.samples[0].at),
        ended=_time(last.at),
        nr_samples=len(run.samples),
        full_scans=last.figures["full_scans"],
        counters=[(name, value, _MEANINGS[name]) for name, value in counters.items()],
        looks=[
            (look.word, COLOURS[look], nr, size(nr * PAGE_SIZE)) for look, nr in zip(Look, looks, strict=True)
        ],
        charts=[_chart(draw, run) for draw in chart.CHARTS],
        maps=[(_space_title(run, space), _space_counts(space), *_map(space)) for space in shown],
        nr_left_out=len(run.maps.spaces) - len(shown),
        contents=[_content(content) for content in run.maps.contents],
        numbers=json.dumps(numbers),
    )


def png(run: Run, title: str, path: Path) -> None:
    """Draw all charts, and the page maps, to a PNG file; it is overwritten."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (an extra)

    shown = spaces_drawn(run)
    rows = -(-len(chart.CHARTS) // 2)
    map_rows = -(-len(shown) // 2)
    canvas = Figure(figsize=(12, 3.6 * rows + 2.4 * map_rows), layout="constrained")
    canvas.suptitle(f"{size(run.samples[-1].saved_bytes)} saved · {title}")
    grid = canvas.add_gridspec(rows + map_rows, 2, height_ratios=[3.6] * rows + [2.4] * map_rows)
    for at, draw in enumerate(chart.CHARTS):
        draw(canvas.add_subplot(grid[at // 2, at % 2]), run)
    for at, space in enumerate(shown):
        axes = canvas.add_subplot(grid[rows + at // 2, at % 2])
        picture, cell = chart.page_map(space)
        axes.imshow(picture, interpolation="nearest", aspect="equal" if len(picture) > _FLAT else "auto")
        axes.set_axis_off()
        axes.set_title(f"{_space_title(run, space)}\n{cell}", fontsize="small")
    if shown:
        canvas.legend(handles=_legend(), loc="outside lower center", ncols=len(Look), frameon=False)
    canvas.savefig(path, format="png", dpi=100)


def _legend() -> list[object]:
    from matplotlib.patches import Patch  # noqa: PLC0415 (an extra)

    return [Patch(color=COLOURS[look], label=look.word) for look in Look]


def _chart(draw: chart.Draw, run: Run) -> str:
    return _svg(lambda axes: draw(axes, run), 5.6, 3.4)


def _map(space: PageMap) -> tuple[str, str]:
    """Return a page map as PNG in base64, a point a cell, and what a cell is."""
    from matplotlib.image import imsave  # noqa: PLC0415 (an extra)

    picture, cell = chart.page_map(space)
    file = io.BytesIO()
    imsave(file, picture, format="png")
    return base64.b64encode(file.getvalue()).decode(), cell


def _svg(draw: Callable[[Axes], None], width: float, height: float) -> str:
    """Return what is drawn on axes, as SVG to put into a page; text stays text, escaped."""
    import matplotlib as mpl  # noqa: PLC0415 (an extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    about = dict.fromkeys(("Date", "Creator", "Type", "Format"))
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        canvas = Figure(figsize=(width, height), layout="constrained")
        draw(canvas.add_subplot())
        file = io.StringIO()
        canvas.savefig(file, format="svg", metadata=about)
    text = file.getvalue()
    return text[text.index("<svg") :]


def _space_title(run: Run, space: PageMap) -> str:
    return f"{chart.label(run, space.pid)} [{space.start:#x}, {space.end:#x}) {size(space.end - space.start)}"


def _space_counts(space: PageMap) -> str:
    counts = space.counts()
    return ", ".join(f"{look.word} {counts[look]}" for look in Look if counts[look])


def _content(content: Content) -> tuple[int, int, str, str, str, str]:
    """Return pages, frames, saved memory, domain, bytes and text of a content."""
    head = bytes.fromhex(content["head"])
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in head)
    if content["is_fill"]:
        text = "zeros" if not head.strip(b"\0") else f"all {head[0]:#04x}"
    saved = size((content["pages"] - content["frames"]) * PAGE_SIZE)
    return content["pages"], content["frames"], saved, content["domain"], head.hex(" "), text


def _time(at: float) -> str:
    return dt.datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
