"""A worker that rewrites its pages all the time, with few contents: what has merged breaks, and merges again.

$ python -m workers.churn --pages 499 --pace 2000
ready 4117
verify
ok
"""

from __future__ import annotations

import random
import time

import click
import numpy as np

from ksmemu.bench.content import WORDS, PageArray, Random
from ksmemu.cli.command import run
from ksmemu.cli.options import integer
from workers import base
from workers.base import Worker
from workers.memory import Memory

_NR_CONTENTS = 7
_STEP_SECONDS = 0.01


class Churn:
    """Pages, each of one of a few contents, and how many of them are rewritten in a second."""

    def __init__(self, memory: Memory, pace: int) -> None:
        self._memory, self._pace = memory, pace
        self._contents: PageArray = np.empty((_NR_CONTENTS, WORDS), np.uint64)
        Random(_NR_CONTENTS).fill(self._contents)
        self._since = time.monotonic()
        self._owed = 0.0
        for page in range(memory.nr_pages):
            self._write(page, page % _NR_CONTENTS)

    def step(self) -> None:
        """Write what is due; what a long pause would have taken is forgotten."""
        now = time.monotonic()
        self._owed += min(now - self._since, 2 * _STEP_SECONDS) * self._pace
        self._since = now
        while self._owed >= 1:
            self._write(random.randrange(self._memory.nr_pages), random.randrange(_NR_CONTENTS))  # noqa: S311
            self._owed -= 1

    def _write(self, page: int, number: int) -> None:
        self._memory.put(page, self._contents[number].data)


@base.program
@base.pages_option(499)
@click.option("--pace", type=integer(1), default=1000, show_default=True, help="Pages a second.")
def main(worker: Worker, pages: int, pace: int) -> None:
    """Rewrite pages at random, each with one of seven contents."""
    churn = Churn(worker.map(pages, "churn"), pace)
    worker.holds["churning"] = pages
    worker.obey(churn.step, _STEP_SECONDS)


if __name__ == "__main__":
    run(main, "churn")
