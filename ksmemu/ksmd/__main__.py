"""`python -m ksmemu.ksmd`: the scanner process. People start it with `ksmemu start` or ksmemu.Ksmd."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import resource
import sys
from collections.abc import Callable

import click

from ksmemu import _core, features
from ksmemu import policy as policies
from ksmemu.control.setup import Setup
from ksmemu.instance import Claim, Instance
from ksmemu.ksmd.daemon import Daemon, stop_on_signals

NICE = 5
"""As the kernel's ksmd."""


def _tunables(settings: tuple[str, ...]) -> dict[str, int]:
    pairs = (setting.partition("=") for setting in settings)
    return {name: int(value) for name, _, value in pairs}


def _raise_descriptor_limit() -> None:
    """A worker takes four descriptors, a space one: the usual soft limit of 1024 is soon reached."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve(
    new_claim: Callable[[], Claim],
    tunables: dict[str, int],
    new_daemon: Callable[[Instance], Daemon],
    ready: int,
    lifeline: int | None,
) -> None:
    _core.keep_memory()
    os.umask(0o077)  # figures are this user's, in whatever directory
    with contextlib.ExitStack() as undo:
        claim = new_claim()
        undo.callback(claim.release)
        claim.redirect_stderr()
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s ksmd[%(process)d] %(levelname)s %(message)s"
        )
        daemon = new_daemon(claim.instance)
        undo.callback(daemon.close)
        for name, value in tunables.items():
            daemon.set(name, value)
        daemon.take_over(claim.former)
        stop_on_signals(daemon)
        if lifeline is not None:
            daemon.stop_on(lifeline)
        os.nice(NICE)
        _raise_descriptor_limit()
        os.write(ready, f"ready {os.getpid()}\n".encode())
        os.close(ready)
        daemon.serve()


@click.command()
@click.option("--dir", "directory", required=True, help="Instance directory.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A tunable.")
@click.option("--ready-fd", type=int, required=True, help="Told one line: ready, or what failed.")
@click.option("--lifeline-fd", type=int, help="ksmd stops when its other end is closed.")
@click.option(
    "--tracker",
    type=click.Choice(["written", "checksum"]),
    default=features.tracker,
    help="How to learn of writes; default: the best that the kernel has.",
)
@click.option("--with", "names", multiple=True, metavar="NAME", help="What a Setup has besides.")
@click.option("--policy", default=policies.DEFAULT, help="What to try to merge, and when.")
def main(  # noqa: PLR0913, PLR0917 (the options)
    directory: str,
    settings: tuple[str, ...],
    ready_fd: int,
    lifeline_fd: int | None,
    tracker: str,
    names: tuple[str, ...],
    policy: str,
) -> None:
    """Scan the memory of the workers that attach, and merge what is equal."""
    setup = Setup(policy=policy, **dict.fromkeys(names, True))
    try:
        features.require()
        if setup.fuse:
            features.require_fuse()
        tracks = tracker == "written" and not policies.load(policy).reads_all
        new_daemon = functools.partial(Daemon, setup=setup, tracks=tracks)
        new_claim = functools.partial(Instance.resolve(directory).claim, all_users=setup.all_users)
        _serve(new_claim, _tunables(settings), new_daemon, ready_fd, lifeline_fd)
    except OSError as error:
        text = (error.strerror or str(error)).replace("\n", "; ")
        with contextlib.suppress(OSError):  # ready already: then the log has it
            os.write(ready_fd, f"error {error.errno or errno.EIO} {text}\n".encode())
        logging.getLogger(__name__).critical("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
