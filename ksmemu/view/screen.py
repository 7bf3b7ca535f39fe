"""The full screen of `ksmemu top`. Needs textual.

    saved memory, pages and rates        figures, each interval
    a line for each process              figures; the cursor selects one
    the page map of one of its spaces    page_map, each interval

ksmd is asked on a thread, so the screen answers while ksmd does not.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rich.style import Style
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Sparkline, Static
from textual.worker import get_current_worker

from ksmemu.cli.output import short, size
from ksmemu.control.figures import SpaceFigures, WorkerFigures
from ksmemu.control.look import Look
from ksmemu.control.page_map import PageMap, page_maps
from ksmemu.errors import KsmError, NotRunningError
from ksmemu.instance import Instance
from ksmemu.units import PAGE_SIZE
from ksmemu.view.cells import COLOURS, LETTERS, cells
from ksmemu.view.record import name_of
from ksmemu.view.sample import Between, Sample, take

MAP_SHARE = 20
"""Page maps take at most so small a part of the time: ksmd does not scan while it looks at every page."""
_HISTORY = 300
_COLUMNS = ("PID", "NAME", "DOMAIN", "SPACES", "DATA", "MERGED", "ZERO", "OWN", "VOLATILE")
_RATES = {"seen": "pages_scanned", "merged": "merges", "broken": "pages_broken"}
_STYLES = {look: Style(color=COLOURS[look]) for look in Look}


@dataclass(frozen=True, slots=True)
class Place:
    """A space of a process: which it is is all that is kept of a selection."""

    pid: int
    domain: str
    start: int


class PageMapView(Static):
    """Draws a page map in as many cells as there is room for."""

    space: PageMap | None = None

    def show(self, space: PageMap | None) -> None:
        """Draw this one from now on; None: there is none."""
        self.space = space
        self.refresh()

    def render(self) -> Text:
        """Return the map, a character a cell, as high as it is."""
        width, height = self.size.width, self.size.height
        if self.space is None or not width * height:
            return Text("no address space is selected" if width else "")
        looks, pages_a_cell = cells(self.space, width * height)
        self.border_title = self._title(pages_a_cell)
        return _drawn(looks, width)

    def _title(self, pages_a_cell: int) -> str:
        assert self.space is not None  # noqa: S101 (for the type)
        where = f"{self.space.start:#x}, {size(self.space.end - self.space.start)}"
        each = "a page" if pages_a_cell == 1 else f"{pages_a_cell} pages"
        return f"pid {self.space.pid}: {where}; a cell is {each}"


def _drawn(looks: np.ndarray[tuple[int], np.dtype[np.uint8]], width: int) -> Text:
    """Return cells as text: letters differ, too, for whoever has no colours."""
    text = Text(no_wrap=True, end="")
    for row in range(0, len(looks), width):
        line = looks[row : row + width]
        breaks = np.flatnonzero(np.diff(line)) + 1
        for run in np.split(line, breaks):
            look = Look(run[0])
            text.append(LETTERS[look] * len(run), _STYLES[look])
        text.append("\n")
    return text


class Screen(App[None]):
    """The screen; failure says why it has ended by itself.

    Args:
        interval: seconds between two looks.
    """

    CSS = """
    Screen { overflow: hidden; }
    #head { height: 4; }
    #figures, #legend { text-wrap: nowrap; text-overflow: ellipsis; }
    #figures { width: 1fr; padding: 0 1; }
    Sparkline { width: 20%; height: 4; margin: 0 1; }
    DataTable { height: auto; max-height: 40%; min-height: 3; }
    PageMapView { height: 1fr; min-height: 3; border: round $primary; }
    #legend { height: auto; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"),
        ("s", "next_space", "Next space"),
    ]
    ENABLE_COMMAND_PALETTE = False
    TITLE = "ksmemu top"

    def __init__(self, instance: Instance, interval: float) -> None:
        super().__init__()
        self.failure: OSError | None = None
        self._instance = instance
        self._interval = interval
        self._sample: Sample | None = None
        self._saved: deque[float] = deque(maxlen=_HISTORY)
        self._place: Place | None = None
        self._asked: Place | None = None
        self._space: PageMap | None = None
        self._due = 0.0

    def compose(self) -> ComposeResult:
        """Yield what the screen consists of."""
        with Horizontal(id="head"):
            yield Static(id="figures")
            yield Sparkline([], id="saved")
        yield DataTable(cursor_type="row", cell_padding=1)
        yield PageMapView()
        yield Static(id="legend")
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        table = self.query_one(DataTable)
        for name in _COLUMNS:
            table.add_column(_cell(name, name), key=name)
        self.set_interval(self._interval, self._tick)
        self.look()

    def _tick(self) -> None:
        """Look again, but not while ksmd owes an answer."""
        if all(worker.is_finished for worker in self.workers):
            self.look()

    # ---- asking ------------------------------------------------------------------------------------

    @work(thread=True, exclusive=True, group="look")
    def look(self) -> None:
        """Ask ksmd, and show what it says. Runs in: a thread; nothing is shown from here."""
        asked = get_current_worker()
        try:
            sample = take(self._instance)
            sample.figures["workers"].sort(key=lambda worker: (worker["domain"], worker["pid"]))
            space = self._space_at(self._place or _first_place(sample.figures["workers"]))
        except OSError as error:
            self.call_from_thread(self._fail, error)
            return
        if not asked.is_cancelled:
            self.call_from_thread(self._show, sample, space)

    def _space_at(self, place: Place | None) -> PageMap | None:
        """Return a page map, or the one that there is, if it may not be asked for so soon."""
        now = time.monotonic()
        if place != self._asked or now >= self._due:
            self._space = _space(self._instance, place)
            self._asked, self._due = place, now + MAP_SHARE * (time.monotonic() - now)
        return self._space

    def _fail(self, error: OSError) -> None:
        self.failure = error
        self.exit()

    # ---- showing -----------------------------------------------------------------------------------

    def _show(self, sample: Sample, space: PageMap | None) -> None:
        between = Between(self._sample or sample.beginning(), sample)
        self._sample = sample
        if self._worker(_key(self._place)) is None:  # it has gone: now it is the first
            self._place = _first_place(sample.figures["workers"])
        self._saved.append(sample.saved_bytes)
        self.query_one("#figures", Static).update(_figures(between))
        self.query_one("#saved", Sparkline).data = list(self._saved)
        self._show_workers(sample.figures["workers"])
        self.query_one(PageMapView).show(space)
        legend = self.query_one("#legend", Static)
        legend.update(_legend(space, self.size.width - 2))

    def _show_workers(self, workers: list[WorkerFigures]) -> None:
        table = self.query_one(DataTable)
        rows = {f"{worker['pid']} {worker['domain']}": worker for worker in workers}
        for key in [row.value for row in table.rows if row.value not in rows]:
            table.remove_row(key or "")
        there = {row.value for row in table.rows}
        for key, worker in rows.items():
            texts = _row(worker)
            if key not in there:
                table.add_row(*texts, key=key)
                continue
            for column, text in zip(_COLUMNS, texts, strict=True):
                table.update_cell(key, column, text, update_width=True)
        if (key := _key(self._place)) in rows:
            table.move_cursor(row=table.get_row_index(key))

    # ---- selecting ---------------------------------------------------------------------------------

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the page map of the process under the cursor."""
        worker = self._worker(event.row_key.value)
        if worker is not None and _key(self._place) != event.row_key.value:
            self._select(worker, worker["spaces"][0])

    def action_next_space(self) -> None:
        """Show the next space of the same process."""
        worker = self._worker(_key(self._place))
        if worker is None or self._place is None:
            return
        starts = [space["start"] for space in worker["spaces"]]
        after = starts.index(self._place.start) + 1 if self._place.start in starts else 0
        self._select(worker, worker["spaces"][after % len(starts)])

    def _select(self, worker: WorkerFigures, space: SpaceFigures) -> None:
        self._place = Place(worker["pid"], worker["domain"], space["start"])
        self.look()

    def _worker(self, key: str | None) -> WorkerFigures | None:
        workers = self._sample.figures["workers"] if self._sample else []
        return next((worker for worker in workers if f"{worker['pid']} {worker['domain']}" == key), None)


def _key(place: Place | None) -> str:
    return f"{place.pid} {place.domain}" if place else ""


def _first_place(workers: list[WorkerFigures]) -> Place | None:
    if not workers:
        return None
    return Place(workers[0]["pid"], workers[0]["domain"], workers[0]["spaces"][0]["start"])


def _space(instance: Instance, place: Place | None) -> PageMap | None:
    """Return a page map; None if the space has gone, or there is none."""
    if place is None:
        return None
    try:
        found = page_maps(instance, place.pid, place.start).spaces
    except NotRunningError:
        raise
    except KsmError:
        return None
    return next((space for space in found if space.domain == place.domain), None)


def _figures(between: Between) -> Text:
    """Return four lines; what is saved comes first."""
    now, text = between.after, Text()
    text.append(f"{size(now.saved_bytes)} saved", "bold")
    text.append(f"   {size(now.total('pool_bytes'))} in the pool   CPU {between.cpu_percent:.0f}%\n")
    for line in (("pages_shared", "pages_sharing", "ksm_zero_pages"), ("pages_unshared", "pages_volatile")):
        text.append("   ".join(f"{name} {short(now.total(name))}" for name in line) + "\n")
    text.append("   ".join(f"{word} {short(round(between.per_second(n)))}/s" for word, n in _RATES.items()))
    text.append(f"   full_scans {now.figures['full_scans']}")
    return text


def _row(worker: WorkerFigures) -> list[Text]:
    looks = np.sum([space["looks"] for space in worker["spaces"]], axis=0).tolist()
    texts = (
        str(worker["pid"]),
        name_of(worker["pid"]),
        worker["domain"],
        str(len(worker["spaces"])),
        size(sum(looks[Look.OWN :]) * PAGE_SIZE),
        *(short(looks[look]) for look in (Look.MERGED, Look.ZERO, Look.OWN, Look.VOLATILE)),
    )
    return [_cell(name, text) for name, text in zip(_COLUMNS, texts, strict=True)]


def _cell(column: str, text: str) -> Text:
    """Return what a column says, its name or a figure, on the side where its figures are."""
    return Text(text, justify="left" if column in ("NAME", "DOMAIN") else "right")


def _legend(space: PageMap | None, width: int) -> Text:
    """Return what the letters mean, on two lines where one is too short."""
    counts = space.counts().tolist() if space is not None else [0] * len(Look)
    items = [
        Text.assemble((LETTERS[look], _STYLES[look]), f" {look.word} {short(counts[look])}") for look in Look
    ]
    line = Text("  ").join(items)
    half = len(items) // 2
    return (
        line
        if line.cell_len <= width
        else Text("\n").join(Text("  ").join(part) for part in (items[:half], items[half:]))
    )
