"""What several verbs take from the command line."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import TypeVar

import click

from ksmemu import domain_key, policy
from ksmemu.cli.command import NotThereError
from ksmemu.control.files import LINUX, RFC_2009
from ksmemu.control.tunables import Action, Tunable
from ksmemu.errors import KsmError

_TABLES: list[dict[str, Tunable | Action]] = [
    {**files.tunables, **files.actions} for files in (LINUX, RFC_2009)
]
_NAMES = dict.fromkeys(name for table in _TABLES for name in table)
"""Of all that some instance has; which one has what is known only there."""

_SETUP = {
    "fuse": "Serve the control files by FUSE: bad values are refused.",
    "rfc2009": "Behave as the patches of May 2009 had it.",
    "events": "Write events from the first scan on.",
    "all_users": "Serve every user; each has a security domain of his own.",
    "fills_only": "Merge only pages of zeros and of 0xff.",
    "secure": "Do not let the time of a write tell whether a page is shared.",
}
"""What a Setup decides."""

T = TypeVar("T", bound=Callable[..., object])

directory_option = click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Instance directory; else $KSMEMU_DIR, or one of the user's own.",
)


def number(least: float) -> click.FloatRange:
    """Return the type of a number that is at least so much."""
    kind = click.FloatRange(least)
    kind.name = "number"  # click calls it "float range", also to who gave another
    return kind


def integer(least: int, most: int | None = None) -> click.IntRange:
    """Return the type of an integer in bounds."""
    kind = click.IntRange(least, most)
    kind.name = "integer"
    return kind


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


class _Policy(click.ParamType[str]):
    """One of ksmemu.policy."""

    name = "NAME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it is."""
        try:
            policy.load(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def policy_option(text: str, default: str | None = None) -> Callable[[T], T]:
    """Add --policy."""
    return click.option("--policy", type=_Policy(), default=default, show_default=True, help=text)


def setup_options(command: T) -> T:
    """Add the options of a Setup."""
    names = f"{', '.join(policy.POLICIES)}, or MODULE:CLASS"
    command = policy_option(f"What to try to merge, and when: {names}.", policy.DEFAULT)(command)
    for name, text in reversed(_SETUP.items()):
        command = click.option(f"--{name.replace('_', '-')}", is_flag=True, help=text)(command)
    return command


class Address(click.ParamType[int]):
    """An address: decimal, or hexadecimal behind 0x."""

    name = "ADDRESS"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it as a number."""
        text = str(value).lower()
        try:
            address = int(text, 16 if text.startswith("0x") else 10)
        except ValueError:
            self.fail(f"{value!r} is no address: decimal, or 0x and hexadecimal", param, ctx)
        if not 0 <= address < 1 << 64:
            self.fail(f"{value} is no address: 64 bits at most", param, ctx)
        return address


class _Label(click.ParamType[str]):
    """A label of a security domain."""

    name = "LABEL"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it as it is."""
        try:
            return domain_key.checked_label(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


domain_option = click.option(
    "--domain", type=_Label(), metavar="LABEL", help="Merge only with the same; else $KSMEMU_DOMAIN, or none."
)


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
        known = [entry for table in _TABLES if (entry := table.get(name)) is not None]
        if not known:
            self.fail(f"no tunable {name!r}: there are {', '.join(_NAMES)}", param, ctx)
        try:
            return name, known[0].parse(text)
        except KsmError as refusal:
            self.fail(f"{name}={text}: {refusal.strerror}", param, ctx)


def require_extra(extra: str, *modules: str) -> None:
    """Refuse a command whose packages are missing."""
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise NotThereError(f"{missing[0]} is missing: pip install 'ksmemu[{extra}]'")


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """A value that this instance never takes was typed wrong."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None
