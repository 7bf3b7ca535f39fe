"""`ksmemu status`: what is saved, and every figure behind it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ksmemu.cli.options import directory_option, json_option
from ksmemu.cli.output import echo_json, echo_lines, size
from ksmemu.control.files import LINUX, Files
from ksmemu.control.ksmd import connect
from ksmemu.control.tunables import Tunable
from ksmemu.units import PAGE_SIZE


@click.command()
@directory_option
@json_option
def status(directory: str | None, as_json: bool) -> None:  # noqa: FBT001 (click passes it by name)
    """Show the memory saved, then counters and tunables."""
    with connect(directory) as ksmd:
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
