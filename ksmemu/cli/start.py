"""`ksmemu start`: a ksmd that goes on by itself."""

from __future__ import annotations

import click

from ksmemu.cli.options import Setting, directory_option
from ksmemu.control.ksmd import start_detached
from ksmemu.instance import Instance


@click.command()
@directory_option
@click.argument("settings", nargs=-1, type=Setting(), metavar="[NAME=VALUE]...")
@click.option("--fuse", is_flag=True, help="Serve the control files by FUSE: bad values are refused.")
def start(
    directory: str | None,
    settings: tuple[tuple[str, int], ...],
    fuse: bool,  # noqa: FBT001 (click passes it by name)
) -> None:
    """Start ksmd in the background, with tunables set as given."""
    pid = start_detached(directory, fuse=fuse, **dict(settings))
    click.echo(f"ksmd {pid} serves {Instance.resolve(directory).directory}")
