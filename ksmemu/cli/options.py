"""What several verbs take from the command line."""

from __future__ import annotations

import click

from ksmemu.control.tunables import TUNABLES
from ksmemu.errors import KsmError

directory_option = click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Instance directory; else $KSMEMU_DIR, or one of the user's own.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


class Setting(click.ParamType[tuple[str, int]]):
    """NAME=VALUE of a tunable, checked before anything is done."""

    name = "NAME=VALUE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return (name, value); the usage error says what is allowed."""
        name, equals, text = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        if name not in TUNABLES:
            self.fail(f"no tunable {name!r}: there are {', '.join(TUNABLES)}", param, ctx)
        try:
            return name, TUNABLES[name].parse(text)
        except KsmError as refusal:
            self.fail(f"{name}={text}: {refusal.strerror}", param, ctx)
