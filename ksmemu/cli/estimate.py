"""`ksmemu estimate`: what merging would save, without merging."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from ksmemu.cli.options import integer, json_option
from ksmemu.cli.output import echo_json, progress, size
from ksmemu.estimate.fingerprint import Fingerprinter
from ksmemu.estimate.saving import Saving, saving
from ksmemu.estimate.source import Source, open_file, open_process
from ksmemu.units import PAGE_SIZE

_NAME_WIDTH = 28
_NUMBER = re.compile("[0-9]{1,18}")


@click.command(short_help="Say what merging would save, without merging.")
@click.argument("names", nargs=-1, required=True, metavar="FILE|PID...")
@click.option(
    "--max-page-sharing", default=256, type=integer(2), show_default=True, help="Pages on one frame."
)
@json_option
def estimate(names: Sequence[str], max_page_sharing: int, as_json: bool) -> None:  # noqa: FBT001 (by name)
    """Say what merging would save, without merging: of raw images, and of processes.

    A number is a process; a file of that name is ./NUMBER. Of a process its anonymous pages are read, as they
    are now. Each line is of one alone; the last is of all together, and of what they share with each other.
    """
    with contextlib.ExitStack() as undo:
        sources = [undo.enter_context(_open(name)) for name in names]
        if not (nr_pages := sum(source.nr_pages for source in sources)):
            raise click.UsageError("there is no page to look at")
        fingerprinter = Fingerprinter()
        with progress("reading", nr_pages) as advance:
            everything, parts = fingerprinter.take(sources, advance)
    alone = [saving(part, fingerprinter.zero, max_page_sharing) for part in parts]
    across = saving(everything, fingerprinter.zero, max_page_sharing)
    if as_json:
        _echo_json(sources, alone, across, max_page_sharing)
    else:
        _echo_table(sources, alone, across, max_page_sharing)


def _open(name: str) -> Source:
    try:
        return open_process(int(name)) if _NUMBER.fullmatch(name) else open_file(Path(name))
    except OSError as error:
        text = error.strerror or str(error)
        raise click.UsageError(f"{_shown(name)}: {text}" if error.filename else text) from None


def _shown(name: str) -> str:
    """Return what can be printed of a name: a file and a process may have any bytes in theirs."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


def _figures(found: Saving) -> dict[str, int]:
    saved = {"saved_bytes": found.saved_bytes, "saved_with_zeros_bytes": found.saved_with_zeros_bytes}
    return asdict(found) | saved


def _echo_json(sources: Sequence[Source], alone: Sequence[Saving], across: Saving, limit: int) -> None:
    each = [
        {
            "name": source.name,
            "left_out": source.left_out,
            "tail_bytes": len(source.tail),
            **_figures(found),
        }
        for source, found in zip(sources, alone, strict=True)
    ]
    echo_json({"max_page_sharing": limit, "each": each, "together": _figures(across)})


def _echo_table(sources: Sequence[Source], alone: Sequence[Saving], across: Saving, limit: int) -> None:
    click.echo(_line("", "memory", "zeros", "saved", "and with zeros"))
    for source, found in zip(sources, alone, strict=True):
        click.echo(_row(_shown(source.name), found))
    click.echo(_row("all together", across))
    frames = f"{across.pages_shared:,} frames for {across.pages_shared + across.pages_sharing:,} pages"
    click.echo(f"\nwith max_page_sharing {limit}: {frames}")
    click.echo(f"with zeros: use_zero_pages; without it they take {across.zero_frames:,} frames more")
    for source in sources:
        name = _short(_shown(source.name))
        for reason, nr in source.left_out.items():
            click.echo(f"{name}: left out, {reason}: {size(nr * PAGE_SIZE)}")
        if source.tail:
            click.echo(f"{name}: the last {len(source.tail)} bytes are a page, filled up with zeros")


def _short(name: str) -> str:
    return name if len(name) < _NAME_WIDTH else f"{name[: _NAME_WIDTH - 2]}…"


def _row(name: str, found: Saving) -> str:
    zeros = f"{100 * found.zero_pages / max(found.pages, 1):.0f} %"
    memory, *saved = map(size, (found.pages * PAGE_SIZE, found.saved_bytes, found.saved_with_zeros_bytes))
    return _line(_short(name), memory, zeros, *saved)


def _line(name: str, memory: str, zeros: str, saved: str, with_zeros: str) -> str:
    return f"{name:<{_NAME_WIDTH}}{memory:>12}{zeros:>8}{saved:>14}{with_zeros:>16}".rstrip()
