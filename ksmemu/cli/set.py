"""`ksmemu set`: store tunables."""

from __future__ import annotations

import click

from ksmemu.cli.options import Setting, directory_option
from ksmemu.control.ksmd import connect


@click.command("set")
@directory_option
@click.argument("settings", nargs=-1, required=True, type=Setting(), metavar="NAME=VALUE...")
def set_(directory: str | None, settings: tuple[tuple[str, int], ...]) -> None:
    """Store tunables, in the order given; return once ksmd obeys them."""
    with connect(directory) as ksmd:
        for name, value in settings:
            ksmd.write(name, value)
