"""The command line: one file per verb, and the one place where an error becomes an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from ksmemu.cli.bench import bench
from ksmemu.cli.check import check
from ksmemu.cli.demo import demo
from ksmemu.cli.exec import exec_
from ksmemu.cli.explain import explain
from ksmemu.cli.report import report
from ksmemu.cli.set import set_
from ksmemu.cli.start import start
from ksmemu.cli.status import status
from ksmemu.cli.stop import stop
from ksmemu.cli.top import top
from ksmemu.cli.watch import watch
from ksmemu.errors import KernelLacksError

DONE, FAILED, USAGE, KERNEL_LACKS = 0, 1, 2, 3


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ksmemu")
def commands() -> None:
    """Kernel Samepage Merging in user space: real memory, really merged.

    Exit status: 0 done, 1 failed, 2 usage, 3 the kernel lacks something; of exec, the command's own.
    """


for verb in (start, stop, status, watch, top, report, explain, set_, exec_, check, demo, bench):
    commands.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit; an error is one line on standard error."""
    try:
        ended = commands.main(arguments, prog_name="ksmemu", standalone_mode=False)
        sys.exit(ended if isinstance(ended, int) else DONE)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "ksmemu"
        click.echo(f"{where}: {error.format_message()}", err=True)
        sys.exit(USAGE)
    except KernelLacksError as error:
        click.echo(f"ksmemu: {error.strerror}", err=True)
        sys.exit(KERNEL_LACKS)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        click.echo(f"ksmemu: {place}{error.strerror or error}", err=True)
    except click.Abort:
        click.echo("ksmemu: interrupted", err=True)
    sys.exit(FAILED)
