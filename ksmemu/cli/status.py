"""`ksmemu status`: what is saved, and every figure behind it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ksmemu.cli.options import directory_option, json_option
from ksmemu.cli.output import echo_json, echo_lines, size
from ksmemu.control.figures import Figures, figures
from ksmemu.control.files import LINUX, Files
from ksmemu.control.ksmd import RunningKsmd, connect
from ksmemu.control.tunables import Tunable
from ksmemu.errors import ForeignInstanceError
from ksmemu.instance import Instance
from ksmemu.units import PAGE_SIZE


@click.command(short_help="Show the memory saved, counters and tunables.")
@directory_option
@json_option
def status(directory: str | None, as_json: bool) -> None:  # noqa: FBT001 (click passes it by name)
    """Show the memory saved, then counters and tunables; of another user's ksmd, of one's own domains."""
    instance = Instance.resolve(directory)
    try:
        ksmd = connect(directory)
    except ForeignInstanceError:
        _show_own(instance, figures(instance), as_json=as_json)
    else:
        _show_all(ksmd, as_json=as_json)


def _show_own(instance: Instance, found: Figures, *, as_json: bool) -> None:
    domains = found["domains"]
    saved_bytes = PAGE_SIZE * sum(d["pages_sharing"] + d["ksm_zero_pages"] for d in domains.values())
    place = str(instance.directory)
    if as_json:
        echo_json({"saved_bytes": saved_bytes, "directory": place, **found})
        return
    click.echo(f"{size(saved_bytes)} saved in your domains")
    click.echo(f"the ksmd that serves {place} has completed {found['full_scans']} full scans")
    for name, counters in domains.items():
        click.echo(f"\ndomain {name}")
        known = {**LINUX.counters, **LINUX.stats}
        echo_lines((counter, counters[counter], known[counter].meaning) for counter in counters)


def _show_all(ksmd: RunningKsmd, *, as_json: bool) -> None:
    with ksmd:
        tunables = {name: ksmd.read(name) for name in ksmd.files.tunables}
        counters, stats = ksmd.counters(), ksmd.stats()
        merged_pids = ksmd.merged_pids()
        place, pid, files = str(ksmd.directory), ksmd.pid, ksmd.files
    saved = ("pages_sharing", "ksm_zero_pages") if files is LINUX else ("pages_shared",)
    saved_bytes = sum(counters[name] for name in saved) * PAGE_SIZE
    if as_json:
        echo_json(
            {
                "saved_bytes": saved_bytes,
                "directory": place,
                "pid": pid,
                "merged_pids": merged_pids,
                "tunables": tunables,
                "counters": counters,
                "stats": stats,
            }
        )
        return
    click.echo(f"{size(saved_bytes)} saved")
    click.echo(f"{size(stats['unmerge_bytes'])} needed if all that is merged is written to")
    click.echo(f"ksmd {pid} serves {place}")
    if merged_pids:
        click.echo(f"merged from outside: {' '.join(map(str, merged_pids))}")
    echo_lines(_rows(files, tunables | counters | stats))
    if over := stats["pages_over_budget"]:
        click.echo(
            f"\n{size(over * PAGE_SIZE)} stay unmerged because a worker is near its limit of\n"
            "mappings: sysctl vm.max_map_count=262144 makes room."
        )


def _rows(files: Files, values: dict[str, int]) -> Iterator[tuple[str, object, str]]:
    for table in (files.tunables, files.counters, files.stats):
        yield "", "", ""
        for name, entry in table.items():
            shown = entry.show(values[name]) if isinstance(entry, Tunable) else values[name]
            yield name, shown, entry.meaning
