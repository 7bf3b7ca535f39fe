"""A worker that does nothing: its pages merge and stay merged, and nothing wakes it.

$ python -m workers.idle
ready 4117
"""

from __future__ import annotations

from ksmemu.bench.content import Random
from ksmemu.cli.command import run
from workers import base
from workers.base import Worker


@base.program
@base.pages_option(1009)
def main(worker: Worker, pages: int) -> None:
    """Hold the pages that every idle worker holds, and sleep."""
    worker.map(pages, "idle").fill(Random(pages))
    worker.holds["idle"] = pages
    worker.obey()


if __name__ == "__main__":
    run(main, "idle")
