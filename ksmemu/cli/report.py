"""`ksmemu report`: one page, or one picture, of an instance or of a recorded run."""

from __future__ import annotations

from pathlib import Path

import click

from ksmemu.cli.options import directory_option, number, require_extra, usage_errors
from ksmemu.cli.output import progress, waiting
from ksmemu.control.page_map import page_maps
from ksmemu.instance import Instance
from ksmemu.view import record
from ksmemu.view import report as view
from ksmemu.view.record import Run, name_of
from ksmemu.view.sample import samples

_NEEDED = {".html": ("matplotlib", "jinja2"), ".png": ("matplotlib",)}
_NR_SAMPLES = 50


@click.command(short_help="Write a report, a page or a picture.")
@directory_option
@click.option("--from", "recorded", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              metavar="RECORD", help="Of a run that `watch --record` wrote.")  # fmt: skip
@click.option("--seconds", type=number(0.1), default=3.0, show_default=True, help="Look so long.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def report(directory: str | None, recorded: Path | None, seconds: float, file: Path) -> None:
    """Write a report to FILE, a page (.html) or a picture (.png), that needs nothing beside it.

    Savings over time, page maps, how long runs are and how many share a frame, who shares with whom, the
    most shared contents.
    """
    if file.suffix not in _NEEDED:
        raise click.UsageError(f"{file} must end in {' or '.join(_NEEDED)}")
    require_extra("report", *_NEEDED[file.suffix])
    instance = Instance.resolve(directory)
    if recorded is not None:
        with usage_errors():
            run, title = record.read(recorded), str(recorded)
    else:
        run, title = _looked_at(instance, seconds), str(instance.directory)
    with waiting("drawing"):
        if file.suffix == ".html":
            file.write_text(view.html(run, title))
        else:
            view.png(run, title, file)
    click.echo(file)


def _looked_at(instance: Instance, seconds: float) -> Run:
    """Look at an instance for so long; errors as those of sample.take() and page_maps()."""
    found = []
    with progress("looking", _NR_SAMPLES) as advance:
        for sample in samples(instance, seconds / _NR_SAMPLES):
            found.append(sample)
            advance(1)
            if len(found) >= _NR_SAMPLES:
                break
    maps = page_maps(instance)
    return Run(found, maps, {space.pid: name_of(space.pid) for space in maps.spaces})
