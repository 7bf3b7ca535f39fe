"""`ksmemu start`: a ksmd that goes on by itself."""

from __future__ import annotations

import click

from ksmemu.cli.options import Setting, directory_option, setup_options, usage_errors
from ksmemu.cli.output import waiting
from ksmemu.control.ksmd import start_detached
from ksmemu.control.setup import Setup
from ksmemu.instance import Instance


@click.command(short_help="Start ksmd in the background.")
@directory_option
@click.argument("settings", nargs=-1, type=Setting(), metavar="[NAME=VALUE]...")
@setup_options
def start(directory: str | None, settings: tuple[tuple[str, int], ...], policy: str, **setup: bool) -> None:
    """Start ksmd in the background, with tunables set as given."""
    with usage_errors(), waiting("starting"):
        pid = start_detached(directory, dict(settings), Setup(policy=policy, **setup))
    click.echo(f"ksmd {pid} serves {Instance.resolve(directory).directory}")
