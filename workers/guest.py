"""A worker like a virtual machine: a small operating system's page cache, heap, free memory, and a log.

The page cache is of files of this machine, and equal in all guests; so is what is free, which is zeros. Heaps
are unlike each other, and so are logs, which grow until their room is full.

$ python -m workers.guest --number 1
ready 4117
holds
cache 512 free 256 heap 256 log 3
"""

from __future__ import annotations

import click

from ksmemu.bench.guests import Guest
from ksmemu.cli.command import run
from ksmemu.cli.options import integer
from ksmemu.units import PAGE_SIZE
from workers import base
from workers.base import Worker
from workers.memory import Memory

_LOG_PART = 8
"""The room for the log is so small a part of the memory besides it."""
_STEP_SECONDS = 0.02
_LINES = 12


class Log:
    """Lines, a few each step, from a page of the memory on."""

    def __init__(self, worker: Worker, memory: Memory, first: int, number: int) -> None:
        self._worker, self._memory, self._number = worker, memory, number
        self._page, self._text, self._nr_lines = first, b"", 0

    def step(self) -> None:
        """Append some lines, while there is room."""
        if self._page == self._memory.nr_pages:
            return
        if not self._text:
            self._worker.holds["log"] += 1
        for _ in range(_LINES):
            self._nr_lines += 1
            self._text += f"guest-{self._number} cron[{self._nr_lines}]: nothing to do\n".encode()
        self._memory.put(self._page, self._text[:PAGE_SIZE])
        if len(self._text) >= PAGE_SIZE:
            self._page, self._text = self._page + 1, b""


@base.program
@base.pages_option(1024, text="Without the log.")
@click.option("--number", type=integer(0), default=0, show_default=True, metavar="N", help="Which guest.")
def main(worker: Worker, pages: int, number: int) -> None:
    """Be one of several guests: half of the memory is page cache, a quarter is free, a quarter heap."""
    guest = Guest(pages, number)
    memory = worker.map(pages + max(pages // _LOG_PART, 1), f"guest-{number}")
    memory.fill(guest)
    worker.holds.update(cache=guest.nr_common, free=guest.nr_zeros, heap=guest.nr_own, log=0)
    worker.obey(Log(worker, memory, pages, number).step, _STEP_SECONDS)


if __name__ == "__main__":
    run(main, "guest")
