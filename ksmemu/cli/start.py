"""`ksmemu start`: a ksmd that goes on by itself."""

from __future__ import annotations

import click

from ksmemu.cli.options import Setting, directory_option, usage_errors
from ksmemu.control.ksmd import start_detached
from ksmemu.instance import Instance


@click.command()
@directory_option
@click.argument("settings", nargs=-1, type=Setting(), metavar="[NAME=VALUE]...")
@click.option("--fuse", is_flag=True, help="Serve the control files by FUSE: bad values are refused.")
@click.option("--rfc2009", is_flag=True, help="Behave as the patches of May 2009 had it, in all and every.")
def start(
    directory: str | None,
    settings: tuple[tuple[str, int], ...],
    fuse: bool,  # noqa: FBT001 (click passes it by name)
    rfc2009: bool,  # noqa: FBT001
) -> None:
    """Start ksmd in the background, with tunables set as given."""
    with usage_errors():
        pid = start_detached(directory, dict(settings), fuse=fuse, rfc2009=rfc2009)
    click.echo(f"ksmd {pid} serves {Instance.resolve(directory).directory}")
