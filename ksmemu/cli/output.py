"""How figures are shown: sizes, aligned lines of at most 80 columns, JSON."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import click

_UNITS = ("KiB", "MiB", "GiB", "TiB")
_NAME_WIDTH = 25
_VALUE_WIDTH = 16
_SHORT_S = 1.0
"""What takes no longer needs no progress bar."""


def size(nr_bytes: int) -> str:
    """Return an amount of memory for people: `1.9 GiB`."""
    if abs(nr_bytes) < 1024:
        return f"{nr_bytes} B"
    power = min((abs(nr_bytes).bit_length() - 1) // 10, len(_UNITS))
    return f"{nr_bytes / 1024**power:.1f} {_UNITS[power - 1]}"


def echo_lines(rows: Iterable[tuple[str, object, str]]) -> None:
    """Print a line per (name, value, meaning)."""
    for name, value, meaning in rows:
        click.echo(f"{name:<{_NAME_WIDTH}} {value:>{_VALUE_WIDTH}}  {meaning}".rstrip())


def echo_json(figures: Mapping[str, object]) -> None:
    """Print one JSON object on one line."""
    click.echo(json.dumps(figures))


@contextlib.contextmanager
def progress(label: str, length: int) -> Iterator[Callable[[int], None]]:
    """Yield what moves a progress bar, on standard error: of a terminal only, and after the first second."""
    if not sys.stderr.isatty():
        yield lambda _steps: None
        return
    started = time.monotonic()
    with click.progressbar(length=length, label=label, width=0, file=sys.stderr, hidden=True) as bar:

        def advance(steps: int) -> None:
            bar.hidden = time.monotonic() - started < _SHORT_S
            bar.update(steps)

        yield advance
