"""The one place where an error of a command becomes a line on standard error and an exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ksmemu.errors import KernelLacksError

DONE, FAILED, USAGE, KERNEL_LACKS = 0, 1, 2, 3


class NotThereError(click.UsageError):
    """What a command cannot do without is not there; the message says what to do."""


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit; what it returns is the status if it is a number."""
    try:
        ended = command.main(arguments, prog_name=name, standalone_mode=False)
        sys.exit(ended if isinstance(ended, int) else DONE)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else name
        text = " ".join(error.format_message().split()).rstrip(".")
        click.echo(f"{where}: {text}{'' if isinstance(error, NotThereError) else '; see --help'}", err=True)
        sys.exit(USAGE)
    except KernelLacksError as error:
        click.echo(f"{name}: {error.strerror}", err=True)
        sys.exit(KERNEL_LACKS)
    except BrokenPipeError:  # whoever listened has gone: nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        click.echo(f"{name}: {one_line(error)}", err=True)
    except click.Abort:
        click.echo(f"{name}: interrupted", err=True)
    sys.exit(FAILED)


def one_line(error: OSError) -> str:
    """Return what an error says, in one line."""
    place = f"{error.filename}: " if error.filename else ""
    return place + "; ".join((error.strerror or str(error)).splitlines())
