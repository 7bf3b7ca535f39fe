"""`ksmemu check`: what this kernel can do."""

from __future__ import annotations

import textwrap
from dataclasses import asdict

import click

from ksmemu.cli.options import json_option
from ksmemu.cli.output import echo_json
from ksmemu.features import Feature, probe, probe_exec, required, tracker


@click.command(short_help="Say what this kernel has of what ksmemu needs.")
@json_option
def check(as_json: bool) -> int:  # noqa: FBT001 (click passes it by name)
    """Say for each kernel facility whether it is there, what follows, and how to get it."""
    possible = not required(probe())
    features = (*probe(), *probe_exec())
    if as_json:
        echo_json(
            {
                "possible": possible,
                "tracker": tracker(),
                "features": [asdict(feature) for feature in features],
            }
        )
    else:
        for feature in features:
            _echo(feature)
    return 0 if possible else 3


def _echo(feature: Feature) -> None:
    answer = click.style("yes", fg="green") if feature.ok else click.style("no ", fg="red")
    click.echo(f"{answer}  {textwrap.fill(str(feature), 75, subsequent_indent=' ' * 5)}")
