"""`ksmemu start`: a ksmd that goes on by itself."""

from __future__ import annotations

import click

from ksmemu.cli.options import Setting, directory_option, usage_errors
from ksmemu.control.ksmd import start_detached
from ksmemu.instance import Instance


@click.command()
@directory_option
@click.argument("settings", nargs=-1, type=Setting(), metavar="[NAME=VALUE]...")
@click.option("--events", is_flag=True, help="Write events to sys/kernel/tracing/trace.")
@click.option("--rfc2009", is_flag=True, help="Behave as the patches of May 2009 had it, in all and every.")
def start(
    directory: str | None, settings: tuple[tuple[str, int], ...], *, events: bool, rfc2009: bool
) -> None:
    """Start ksmd in the background, with tunables set as given."""
    with usage_errors():
        pid = start_detached(directory, dict(settings), events=events, rfc2009=rfc2009)
    click.echo(f"ksmd {pid} serves {Instance.resolve(directory).directory}")
