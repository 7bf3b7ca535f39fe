"""`ksmemu watch`: a line of figures each interval, as vmstat(8) has them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from ksmemu.cli.options import directory_option, integer, json_option, number
from ksmemu.cli.output import echo_json, short, size
from ksmemu.instance import Instance
from ksmemu.view.record import Recorder
from ksmemu.view.sample import Between, Sample, samples

_WIDTHS = {
    "SAVED": 10,
    "SHARED": 7,
    "SHARING": 8,
    "UNSHARED": 9,
    "VOLATILE": 9,
    "SCANS": 6,
    "SEEN/s": 8,
    "MERGED/s": 9,
    "BROKEN/s": 9,
    "CPU%": 5,
}
"""80 columns together."""
_PIPE_LINES = 24


@click.command(short_help="Show figures, a line each interval.")
@directory_option
@json_option
@click.option("--record", "path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write down what `report --from FILE` shows.")  # fmt: skip
@click.argument("interval", type=number(0.01), required=False)
@click.argument("count", type=integer(1), required=False)
def watch(
    directory: str | None,
    as_json: bool,  # noqa: FBT001 (click passes it by name)
    path: Path | None,
    interval: float | None,
    count: int | None,
) -> None:
    """Show figures every INTERVAL seconds, COUNT times, or until it is interrupted; without both, once.

    Pages, but for SAVED; those with /s happened in each second since the line before, in the first line
    since ksmd began. CPU% is ksmd's, of one CPU.
    """
    instance = Instance.resolve(directory)
    many = samples(instance, interval or 1.0)
    lines: Iterator[Sample] = itertools.islice(many, count if interval else 1)
    with contextlib.ExitStack() as undo:
        if path is not None:
            recorder = undo.enter_context(Recorder(path, instance))
            lines = map(recorder.added, lines)
        try:
            _show(lines, as_json=as_json)
        except KeyboardInterrupt:
            click.echo()


def _show(lines: Iterator[Sample], *, as_json: bool) -> None:
    for nr, between in enumerate(_betweens(lines)):
        if as_json:
            echo_json(_figures(between))
            continue
        if nr % max(shutil.get_terminal_size((80, _PIPE_LINES)).lines - 2, 1) == 0:
            click.echo("".join(f"{name:>{width}}" for name, width in _WIDTHS.items()))
        click.echo(_line(between))


def _betweens(samples: Iterator[Sample]) -> Iterator[Between]:
    before: Sample | None = None
    for sample in samples:
        yield Between(before or sample.beginning(), sample)
        before = sample


def _line(between: Between) -> str:
    now = between.after
    texts = (
        size(now.saved_bytes),
        *(
            short(now.total(name))
            for name in ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")
        ),
        short(now.figures["full_scans"]),
        *(short(round(between.per_second(name))) for name in ("pages_scanned", "merges", "pages_broken")),
        f"{between.cpu_percent:.0f}",
    )
    return "".join(f"{text:>{width}}" for text, width in zip(texts, _WIDTHS.values(), strict=True))


def _figures(between: Between) -> dict[str, object]:
    now = between.after
    return {
        "at": now.at,
        "saved_bytes": now.saved_bytes,
        "pages_scanned_per_second": between.per_second("pages_scanned"),
        "merges_per_second": between.per_second("merges"),
        "pages_broken_per_second": between.per_second("pages_broken"),
        "cpu_percent": between.cpu_percent,
        **now.figures,
    }
