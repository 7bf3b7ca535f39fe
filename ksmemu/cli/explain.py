"""`ksmemu explain`: why memory is not merged, and what to do about it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import click

from ksmemu.cli.options import Address, directory_option, integer, json_option
from ksmemu.cli.output import echo_json, size, waiting
from ksmemu.control.explain import explain as ask
from ksmemu.control.reasons import (
    SILENT,
    STOPPED,
    TEXTS,
    Explained,
    ExplainedPage,
    ExplainedSpace,
    ExplainedWorker,
    Reason,
    Row,
)
from ksmemu.domain_key import Key
from ksmemu.instance import Instance
from ksmemu.units import PAGE_SIZE

_COLUMNS = 80
_WHERE_WIDTH = 47
_REASON_WIDTH = max(len(reason.words) for reason in Reason)


@click.command(short_help="Say why memory is not merged.")
@directory_option
@json_option
@click.argument("pid", type=integer(1), required=False)
@click.argument("address", type=Address(), required=False)
def explain(directory: str | None, as_json: bool, pid: int | None, address: int | None) -> None:  # noqa: FBT001 (click passes it by name)
    """Say why memory is not merged: of all processes, of PID by range, or of the page at ADDRESS."""
    with waiting("looking"):
        found = ask(Instance.resolve(directory), pid, address)
    if as_json:
        echo_json(_figures(found))
        return
    if found["stopped"]:
        click.echo(f"nothing is scanned: {found['stopped']}\n  {STOPPED[found['stopped']]}")
    if not found["workers"]:
        click.echo("nobody has joined: no process has advised any memory")
    for line in _lines(found):
        click.echo(line)


def _figures(found: Explained) -> dict[str, object]:
    """Return the answer with names for everything in it."""
    workers = [
        {**worker, "spaces": [_space_figures(space) for space in worker["spaces"]]}
        for worker in found["workers"]
    ]
    return {**found, "workers": workers}


def _space_figures(space: ExplainedSpace) -> dict[str, object]:
    names = ("start", "end", "reason", "pages", "sharers")
    ranges = [dict(zip(names, row, strict=True)) | {"reason": Reason(row[2]).words} for row in space["rows"]]
    return {"start": space["start"], "end": space["end"], "node": space["node"], "ranges": ranges}


def _lines(found: Explained) -> Iterator[str]:
    for worker in found["workers"]:
        if not found["page"]:
            head = f"pid {worker['pid']}{_domain(worker)}: "
            yield from _wrapped(head, _totals(worker["totals"]) or ["no data"])
        if worker["silent"]:
            yield f"pid {worker['pid']}: {worker['silent']}"
            yield f"  {SILENT[worker['silent']]}"
        rows = [row for space in worker["spaces"] for row in space["rows"]]
        if rows:
            yield f"{'RANGE':<{_WHERE_WIDTH}} {'REASON':<{_REASON_WIDTH}} {'PAGES':>11}"
        yield from map(_row_line, rows)
    if found["page"]:
        yield from _page_lines(found["page"])
    yield from _legend(found)


def _domain(worker: ExplainedWorker) -> str:
    """Name the domain, unless it is the one that this user has by default."""
    return f" in {worker['domain']}" if worker["domain"] != str(Key(os.geteuid())) else ""


def _totals(totals: dict[str, int]) -> list[str]:
    return [f"{reason} {nr} ({size(nr * PAGE_SIZE)})" for reason, nr in totals.items()]


def _wrapped(head: str, parts: Iterable[str]) -> Iterator[str]:
    """Yield the parts behind the head, none of them cut, in lines that begin below each other."""
    line, is_first = head, True
    for part in parts:
        if not is_first and len(line) + len(part) + 3 > _COLUMNS:
            yield f"{line},"
            line, is_first = " " * len(head), True
        line += part if is_first else f", {part}"
        is_first = False
    yield line


def _row_line(row: Row) -> str:
    start, end, code, nr, sharers = row
    where = f"[{start:#x}, {end:#x}) ({size(end - start)})"
    reason = Reason(code).words + (f" x{sharers}" if sharers else "")
    return f"{where:<{_WHERE_WIDTH}} {reason:<{_REASON_WIDTH}} {nr:>11}"


def _pages(nr: int) -> str:
    return f"{nr} page{'s' * (nr != 1)}"


def _page_lines(page: ExplainedPage) -> Iterator[str]:
    known = [page["state"]]
    if page["age"]:
        known += [f"visits: {page['age']} so far", f"{page['skips']} to skip"]
    if page["sharers"]:
        known.append(f"{_pages(page['sharers'])} share its frame")
    elif page["dups"]:
        known.append(f"frames of its content: {len(page['dups'])}")
        known.append(f"each shared by {min(page['dups'])} to {max(page['dups'])} pages")
    elif page["compared"]:
        known.append(f"no partner among {_pages(page['compared'])}")
    return _wrapped(f"page {page['address']:#x}: ", known)


def _legend(found: Explained) -> Iterator[str]:
    """Yield what each reason that occurs means, and on a line of its own what to do."""
    there = {Reason(row[2]) for worker in found["workers"] for s in worker["spaces"] for row in s["rows"]}
    totals = {reason for worker in found["workers"] for reason in worker["totals"]}
    there |= {reason for reason in Reason if reason.words in totals and not found["page"]}
    if there:
        yield ""
    for reason in sorted(there):
        yield f"{reason.words:<{_REASON_WIDTH}} {TEXTS[reason].meaning}"
        if TEXTS[reason].remedy:
            yield f"{'':<{_REASON_WIDTH}}   {TEXTS[reason].remedy}"
