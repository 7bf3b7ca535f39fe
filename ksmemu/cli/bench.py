"""`ksmemu bench`: workloads on ksmemu and on the kernel's own KSM, side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from ksmemu.bench import kernel_ksm, plot, report
from ksmemu.bench.engine import KERNEL, KSMEMU
from ksmemu.bench.rounds import measure, nr_runs
from ksmemu.bench.workloads import SIZES, workloads
from ksmemu.cli.options import integer, json_option, policy_option
from ksmemu.cli.output import echo_json, progress


class Size(click.ParamType[tuple[str, int]]):
    """NAME=MIB of a workload."""

    name = "NAME=MIB"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return (name, MiB)."""
        name, _, text = str(value).partition("=")
        if name not in SIZES:
            self.fail(f"no size {name!r}: there are {', '.join(SIZES)}", param, ctx)
        if not (text.isdecimal() and int(text)):
            self.fail(f"{value!r} is not NAME=MIB", param, ctx)
        return name, int(text)


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(short_help="Compare ksmemu with the kernel's own KSM on workloads.")
@click.argument("names", nargs=-1, metavar="[WORKLOAD]...")
@click.option("--rounds", default=3, type=integer(1), show_default=True, help="Rounds of each.")
@click.option("--size", "sizes", multiple=True, type=Size(), help="MiB of each worker of a workload.")
@click.option("--image", "images", multiple=True, type=_FILE, help="Raw memory image for `images`.")
@click.option("--alone", is_flag=True, help="Leave the kernel's own KSM alone.")
@policy_option("Compare ksmemu with what it is by another policy.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Draw it to a PNG file.")
@json_option
def bench(  # noqa: PLR0913, PLR0917 (an option each)
    names: Sequence[str],
    rounds: int,
    sizes: Sequence[tuple[str, int]],
    images: Sequence[Path],
    alone: bool,  # noqa: FBT001 (click passes it by name)
    policy: str | None,
    picture: Path | None,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Run workloads on ksmemu and, as root, on the kernel's own KSM; all, or those that are named.

    Both scan at full speed. Only ratios say something: more than 1 means that the second one costs less.
    """
    known = workloads({**SIZES, **dict(sizes)}, images)
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no workload {unknown[0]!r}: there are {', '.join(known)}")
    if picture is not None:
        plot.require()
    pair = (KERNEL, KSMEMU) if policy is None else (KSMEMU, policy)
    engines = [KSMEMU] if policy is None and (alone or not kernel_ksm.is_there()) else list(pair)
    if not as_json:
        _echo_head(engines, pair, rounds)
    found = {}
    for name in names or known:
        with progress(name, nr_runs(known[name], engines, rounds)) as advance:
            found[name] = report.summarise(measure(known[name], engines, rounds, advance))
        if not as_json:
            click.echo("\n".join(report.block(f"{name}: {known[name]}", found[name], pair)))
    if picture is not None:
        plot.draw(found, pair, picture)
    if as_json:
        figures = {name: {label: f.as_json() for label, f in of.items()} for name, of in found.items()}
        about = {name: str(known[name]) for name in found}
        echo_json({"kernel": os.uname().release, "cpus": _nr_cpus(), "about": about, "figures": figures})


def _echo_head(engines: Sequence[str], pair: Sequence[str], rounds: int) -> None:
    click.echo(f"Linux {os.uname().release}, {_nr_cpus()} CPUs, rounds: {rounds}; median (min to max)")
    if engines == [KSMEMU]:
        click.echo("ksmemu alone: the kernel's own KSM takes CONFIG_KSM, root, and no --alone")
    click.echo(report.heading(pair))


def _nr_cpus() -> int:
    return len(os.sched_getaffinity(0))
