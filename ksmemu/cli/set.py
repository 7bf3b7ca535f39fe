"""`ksmemu set`: store tunables."""

from __future__ import annotations

import click

from ksmemu.cli.options import Setting, directory_option, usage_errors
from ksmemu.cli.output import waiting
from ksmemu.control.ksmd import connect


@click.command("set", short_help="Store tunables.")
@directory_option
@click.argument("settings", nargs=-1, required=True, type=Setting(), metavar="NAME=VALUE...")
def set_(directory: str | None, settings: tuple[tuple[str, int], ...]) -> None:
    """Store tunables, in the order given; return once ksmd obeys them.

    merge_pid=PID and unmerge_pid=PID are stored alike.
    """
    with connect(directory) as ksmd, usage_errors():
        for name, value in settings:
            with waiting(f"{name}={value}"):
                ksmd.write(name, value)
