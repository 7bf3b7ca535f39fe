"""`ksmemu top`: an instance on a full screen."""

from __future__ import annotations

import sys

import click

from ksmemu.cli.command import NotThereError
from ksmemu.cli.options import directory_option, number, require_extra
from ksmemu.control.figures import figures
from ksmemu.instance import Instance


@click.command(short_help="Show memory saved, processes and page maps on a full screen.")
@directory_option
@click.argument("interval", type=number(0.1), default=1.0, required=False)
def top(directory: str | None, interval: float) -> None:
    """Show memory saved, processes and page maps on a full screen, anew every INTERVAL seconds (1).

    The cursor selects a process; `s` shows the next of its spaces, `q` ends.
    """
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise NotThereError("a terminal is needed: `ksmemu watch` works in a pipe")
    require_extra("tui", "textual")
    from ksmemu.view.screen import Screen  # noqa: PLC0415 (an extra)

    instance = Instance.resolve(directory)
    figures(instance)  # says what is wrong before there is a screen
    screen = Screen(instance, interval)
    screen.run()
    if screen.failure is not None:
        raise screen.failure
