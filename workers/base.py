"""What every worker program shares: make mergeable memory, fill it, verify its own bytes, obey lines.

A worker prints `ready PID` once its memory is as it should be, then answers each line on its standard
input with exactly one line. A line that it cannot obey is answered `error: …` and changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

import click

from ksmemu import MADV_MERGEABLE, MADV_UNMERGEABLE
from ksmemu.cli.options import directory_option, domain_option, integer
from workers import lines
from workers.lines import BadLineError, Command, words
from workers.memory import Memory

P = ParamSpec("P")
T = TypeVar("T", bound=Callable[..., object])

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
"""The type of an argument that is a file to load."""

_ADVICE = {"on": MADV_MERGEABLE, "off": MADV_UNMERGEABLE}

LINES = """
    \b
    holds                what its pages are: names, and how many pages
    verify               ok, or which page does not hold what was written to it
    stop, go             write nothing by itself any more; go on
    sum                  sha256 of the memory, all pages in order
    read PAGE            the bytes of a page, in hexadecimal digits
    write PAGE HEXBYTES  write from the start of a page
    advise on|off        mergeable, or everything home again
    quit                 as the end of the input
"""
"""Of every worker; the help of each ends with them."""


class Worker:
    """The memory of one worker program, and the lines that it obeys; leaving the context closes it.

    Page numbers count over all its memory. `holds` says of what kind the pages are.
    """

    def __init__(self, directory: str | None, domain: str | None) -> None:
        self.holds: Counter[str] = Counter()
        self._directory, self._domain = directory, domain
        self._memories: list[Memory] = []
        self._is_stopped = False

    def map(self, nr_pages: int, name: str) -> Memory:
        """Return new memory, a space of its own; errors as those of Memory."""
        memory = Memory(nr_pages, name, self._directory, self._domain)
        self._memories.append(memory)
        return memory

    def obey(
        self,
        step: Callable[[], None] = lambda: None,
        seconds: float | None = None,
        besides: Mapping[str, Command] | None = None,
    ) -> None:
        """Say `ready PID`, then answer lines until `quit` or the end of the input.

        Args:
            step: what the worker does by itself, between two lines, until it is stopped.
            seconds: from one step to the next, None: only after a line.
            besides: commands that other workers do not have, or answer otherwise.
        """

        def unless_stopped() -> float | None:
            if self._is_stopped:
                return None
            step()
            return seconds

        lines.obey({**self.commands(), **(besides or {})}, unless_stopped)

    def commands(self) -> dict[str, Command]:
        """Return what every worker obeys."""
        return {
            "holds": self._say_holds,
            "verify": self._verify,
            "stop": self._stop,
            "go": self._go,
            "sum": self._sum,
            "read": self._read,
            "write": self._write,
            "advise": self._advise,
        }

    def _say_holds(self, *given: str) -> str:
        words(0, "holds", given)
        return " ".join(f"{name} {nr}" for name, nr in self.holds.items())

    def _verify(self, *given: str) -> str:
        words(0, "verify", given)
        first = 0
        for memory in self._memories:
            for page in memory.lost_pages():
                return f"error: page {first + page} does not hold what was written to it"
            first += memory.nr_pages
        return "ok"

    def _stop(self, *given: str) -> str:
        words(0, "stop", given)
        self._is_stopped = True
        return "ok"

    def _go(self, *given: str) -> str:
        words(0, "go", given)
        self._is_stopped = False
        return "ok"

    def _sum(self, *given: str) -> str:
        words(0, "sum", given)
        digest = hashlib.sha256()
        for memory in self._memories:
            with memory.space.view(memory.space.start, memory.space.size) as view:
                digest.update(view)
        return digest.hexdigest()

    def _read(self, *given: str) -> str:
        memory, page = self._find(*words(1, "read PAGE", given))
        return memory.read(page).hex()

    def _write(self, *given: str) -> str:
        number, digits = words(2, "write PAGE HEXBYTES", given)
        memory, page = self._find(number)
        content = lines.page_bytes(digits)
        if not memory.is_intact(page):
            raise BadLineError(f"page {number} does not hold what was written to it")
        memory.put(page, content + memory.read(page)[len(content) :])
        return "ok"

    def _advise(self, *given: str) -> str:
        (word,) = words(1, "advise on|off", given)
        if word not in _ADVICE:
            raise BadLineError("usage: advise on|off")
        for memory in self._memories:
            memory.space.madvise_all(_ADVICE[word])
        return "ok"

    def _find(self, word: str) -> tuple[Memory, int]:
        page = lines.number(word, sum(memory.nr_pages for memory in self._memories))
        for memory in self._memories:
            if page < memory.nr_pages:
                return memory, page
            page -= memory.nr_pages
        raise AssertionError("unreachable: the number was checked")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for memory in self._memories:
            memory.space.close()


def program(main: Callable[Concatenate[Worker, P], None]) -> click.Command:
    """Make a command of a function that fills a worker and then calls its obey()."""

    @wraps(main)
    def command(directory: str | None, domain: str | None, *args: P.args, **kwargs: P.kwargs) -> None:
        with Worker(directory, domain) as worker:
            main(worker, *args, **kwargs)

    epilog = "It obeys lines on its standard input:\n" + LINES
    settings = {"help_option_names": ["-h", "--help"]}
    return click.command(context_settings=settings, epilog=epilog)(directory_option(domain_option(command)))


def pages_option(nr: int, name: str = "--pages", text: str = "How many pages.") -> Callable[[T], T]:
    """Return an option that takes a number of pages."""
    return click.option(name, type=integer(1), default=nr, show_default=True, metavar="N", help=text)
