"""The command line: one file per verb; command.py makes an exit status of an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import click

from ksmemu.cli.bench import bench
from ksmemu.cli.check import check
from ksmemu.cli.command import run
from ksmemu.cli.demo import demo
from ksmemu.cli.estimate import estimate
from ksmemu.cli.exec import exec_
from ksmemu.cli.explain import explain
from ksmemu.cli.metrics import metrics
from ksmemu.cli.report import report
from ksmemu.cli.set import set_
from ksmemu.cli.start import start
from ksmemu.cli.status import status
from ksmemu.cli.stop import stop
from ksmemu.cli.top import top
from ksmemu.cli.watch import watch


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ksmemu")
def commands() -> None:
    """Kernel Samepage Merging in user space: real memory, really merged.

    Exit status: 0 done, 1 failed, 2 usage, 3 the kernel lacks something; of exec, the command's own.
    """


for verb in (
    start,
    stop,
    status,
    watch,
    top,
    report,
    explain,
    set_,
    exec_,
    check,
    demo,
    bench,
    estimate,
    metrics,
):
    commands.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit; an error is one line on standard error."""
    run(commands, "ksmemu", arguments)
