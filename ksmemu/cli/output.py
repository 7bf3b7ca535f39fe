"""How figures are shown: sizes, aligned lines of at most 80 columns, JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import click

_UNITS = ("KiB", "MiB", "GiB", "TiB")
_THOUSANDS = "kMGT"
_FIGURE_WIDTH = 42
"""Of a name and its value, at either end."""
_LINE_BEFORE_IS_GONE = "\033[A\033[K"
_SHORT_SECONDS = 1.0
"""What takes no longer needs no progress bar."""


def size(nr_bytes: int) -> str:
    """Return an amount of memory for people: `1.9 GiB`."""
    if abs(nr_bytes) < 1024:
        return f"{nr_bytes} B"
    power = min((abs(nr_bytes).bit_length() - 1) // 10, len(_UNITS))
    return f"{nr_bytes / 1024**power:.1f} {_UNITS[power - 1]}"


def short(number: int) -> str:
    """Return a number in at most five places, rounded down where it has more: `99999`, `123k`, `45.6M`."""
    if number < 100_000:
        return str(number)
    power = min((len(str(number)) - 1) // 3, len(_THOUSANDS))
    amount = number / 1000**power
    digits = str(int(amount)) if amount >= 100 else str(int(amount * 10) / 10)
    return digits + _THOUSANDS[power - 1]


def echo_lines(rows: Iterable[tuple[str, object, str]]) -> None:
    """Print a line per (name, value, meaning)."""
    for name, value, meaning in rows:
        click.echo(f"{name} {value:>{_FIGURE_WIDTH - len(name) - 1}}  {meaning}".rstrip())


def echo_json(figures: Mapping[str, object]) -> None:
    """Print one JSON object on one line."""
    click.echo(json.dumps(figures))


@contextlib.contextmanager
def progress(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """Yield what moves a progress bar, which comes after a second, and goes when all is done.

    It is on standard error, and only on a terminal: nobody else wants one.
    """
    if not sys.stderr.isatty():
        yield lambda _steps: None
        return
    started = time.monotonic()
    with click.progressbar(length=length, label=label, width=0, file=sys.stderr, hidden=True) as bar:

        def advance(steps: int) -> None:
            bar.hidden = time.monotonic() - started < _SHORT_SECONDS
            bar.update(steps)

        yield advance
    if not bar.hidden:
        click.echo(_LINE_BEFORE_IS_GONE, err=True, nl=False)


@contextlib.contextmanager
def waiting(label: str) -> Iterator[None]:
    """Show on a terminal that something goes on, if it takes longer than a second."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    pulse = threading.Thread(target=_pulse, args=(label, done))
    pulse.start()
    try:
        yield
    finally:
        done.set()
        pulse.join()


def _pulse(label: str, done: threading.Event) -> None:
    if done.wait(_SHORT_SECONDS):
        return
    with click.progressbar(itertools.count(), label=label, file=sys.stderr, show_pos=False) as bar:
        while not done.wait(0.1):
            bar.update(1)
    click.echo(_LINE_BEFORE_IS_GONE, err=True, nl=False)
