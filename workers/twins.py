"""A worker whose spaces hold the same pages: of n equal ones, n - 1 are saved, also those of another twins.

$ python -m workers.twins
ready 4117
holds
twin 1009 twin 1009
"""

from __future__ import annotations

import click

from ksmemu.bench.content import Random
from ksmemu.cli.command import run
from ksmemu.cli.options import integer
from workers import base
from workers.base import Worker


@base.program
@base.pages_option(1009, text="How many pages each.")
@click.option("--twins", type=integer(1), default=2, show_default=True, metavar="N", help="Spaces.")
def main(worker: Worker, pages: int, twins: int) -> None:
    """Hold the same pages in several address spaces, each page unlike the others."""
    for _ in range(twins):
        worker.map(pages, "twin").fill(Random(pages))
        worker.holds["twin"] += pages
    worker.obey()


if __name__ == "__main__":
    run(main, "twins")
