"""A worker that forks: parent and children share what none of them has written, and each keeps its own.

$ python -m workers.forker --children 2
ready 4117
holds
common 1009; child 4120: common 884 own 125; child 4121: common 884 own 125
verify
ok
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Self

import click

from ksmemu.bench.content import Random, own_random
from ksmemu.cli.command import run
from ksmemu.cli.options import integer
from workers import base
from workers.base import Worker

_OWN_PART = 8
"""A child writes every so manieth of the pages: a row of them, another one for each child."""

_FOR_ALL = ("holds", "verify", "advise")


class Child:
    """A forked worker, which obeys its parent as that obeys lines on its standard input."""

    def __init__(self, pid: int, lines: int, answers: int) -> None:
        self.pid = pid
        self._lines = os.fdopen(lines, "w", buffering=1)
        self._answers = os.fdopen(answers)
        if not self.answer().startswith("ready"):
            self.end()
            raise OSError(errno.ECHILD, "a child ended too early")

    @classmethod
    def fork(cls, siblings: list[Self]) -> Self | None:
        """Return the child to its parent, and None to the child, whose lines now come from the parent."""
        (lines_in, lines_out), (answers_in, answers_out) = os.pipe(), os.pipe()
        if pid := os.fork():
            os.close(lines_in)
            os.close(answers_out)
            return cls(pid, lines_out, answers_in)
        while siblings:  # or their input would never end
            siblings.pop().close()
        os.dup2(lines_in, 0)
        os.dup2(answers_out, 1)
        for fd in (lines_in, lines_out, answers_in, answers_out):
            os.close(fd)
        return None

    def ask(self, line: str) -> str:
        """Return the answer to a line."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, as there will be no answer
            self._lines.write(line + "\n")
        return self.answer()

    def answer(self) -> str:
        """Return the next answer; that of a child that has ended is an error."""
        return self._answers.readline().rstrip("\n") or "error: it has ended"

    def close(self) -> None:
        """Let go of its pipes."""
        with contextlib.suppress(BrokenPipeError):
            self._lines.close()
        self._answers.close()

    def end(self) -> None:
        """Let it end, and wait for that."""
        self.close()
        os.waitpid(self.pid, 0)


def _asked_of_all(name: str, own: Callable[..., str], children: list[Child]) -> Callable[..., str]:
    """Return a command that parent and children obey; the first error is the answer of all."""

    def command(*given: str) -> str:
        answers = [own(*given)]
        for child in children:
            answer = child.ask(" ".join((name, *given)))
            if answer.startswith("error: "):
                return f"error: child {child.pid}: {answer.removeprefix('error: ')}"
            if answer != "ok":
                answers.append(f"child {child.pid}: {answer}")
        return "; ".join(answers)

    return command


@base.program
@base.pages_option(1009)
@click.option("--children", type=integer(1, 100), default=2, show_default=True, metavar="N")
def main(worker: Worker, pages: int, children: int) -> None:
    """Fill memory and fork: each child writes an eighth of its pages.

    `holds`, `verify` and `advise` are for all of them, the other lines for the parent alone.
    """
    memory = worker.map(pages, "common")
    memory.fill(Random(pages))
    worker.holds["common"] = pages
    own = max(pages // _OWN_PART, 1)
    family: list[Child] = []
    try:
        for rank in range(children):
            child = Child.fork(family)
            if child is None:
                memory.fill(own_random(own, rank), rank % (pages // own) * own)
                worker.holds.update(common=-own, own=own)
                worker.obey()
                return
            family.append(child)
        ours = worker.commands()
        worker.obey(besides={name: _asked_of_all(name, ours[name], family) for name in _FOR_ALL})
    finally:
        for child in family:
            child.end()


if __name__ == "__main__":
    run(main, "forker")
