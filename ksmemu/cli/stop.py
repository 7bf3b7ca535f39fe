"""`ksmemu stop`: end a ksmd."""

from __future__ import annotations

import click

from ksmemu.cli.options import directory_option
from ksmemu.cli.output import waiting
from ksmemu.control.ksmd import connect


@click.command(short_help="Stop ksmd; what is merged stays merged.")
@directory_option
def stop(directory: str | None) -> None:
    """Stop ksmd and wait until it has gone; what is merged stays merged."""
    with connect(directory) as ksmd:
        with waiting("stopping"):
            ksmd.stop()
        click.echo(f"ksmd {ksmd.pid} has stopped")
