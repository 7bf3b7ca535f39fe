"""`ksmemu exec`: run a program that knows only /sys/kernel/mm/ksm on an instance.

    ksmemu ─▶ unshare ─▶ sh: mount --bind, compare inodes ─▶ [unshare: the caller's own ids] ─▶ CMD

Each arrow is an execve(): the command has the pid, the terminal and the descriptors of its caller, and
signals and exit status need no forwarding. Python 3.11 has neither unshare() nor mount(), util-linux
has both.

An ordinary user may mount only in a user namespace in which he is root. The command gets a second one
inside it, where he is himself again: it has no capability, and cannot take the mount away.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

import click

from ksmemu import domain_key, features
from ksmemu.cli.options import directory_option, domain_option
from ksmemu.control.ksmd import connect

_LAY_OVER = """
why=$(mount --bind "$1" "$2" 2>&1)
for file in "$1"/*; do
    [ "$file" -ef "$2/${file##*/}" ] && continue
    echo "ksmemu: $1 does not lie over $2, nothing was run: ${why%%
*}" >&2
    exit 1
done
cd "$PWD"
shift 2
exec "$@"
"""
"""Run in the new namespace with CONTROL KSM CMD...; what counts is not what mount said, but that each
file is the same by device and inode: else the command could steer the kernel's own KSM. So could it from
a working directory below the mount: `cd` finds the one that lies over it."""


@click.command(
    "exec",
    short_help="Run a command that sees the control files in /sys.",
    context_settings={"allow_interspersed_args": False},
)
@directory_option
@domain_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD...")
def exec_(directory: str | None, domain: str | None, command: tuple[str, ...]) -> NoReturn:
    """Run a command for which the control files lie in /sys/kernel/mm/ksm.

    Only the command and what it starts see them there; the kernel's own KSM goes on untouched. The exit
    status is the command's, 127 if there is none of this name, 126 if it cannot be run.
    """
    with connect(directory) as ksmd:
        control = ksmd.control
    features.require_exec()
    if domain is not None:
        os.environ[domain_key.VARIABLE] = domain
    _become(_in_private_mounts(control, command))


def _in_private_mounts(control: Path, command: tuple[str, ...]) -> list[str]:
    """Return the command that runs another one with the control files in the kernel's place."""
    inner: list[str] = []
    if os.geteuid() != 0:
        inner = ["unshare", "--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}", "--"]
    lay_over = ["sh", "-c", _LAY_OVER, "ksmemu", os.fspath(control), os.fspath(features.KSM)]
    return [*features.private_mounts(), *lay_over, *inner, *command]


def _become(command: list[str]) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and its children would too
    os.execvp(command[0], command)  # noqa: S606 (that is the point)
