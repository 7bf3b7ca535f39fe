"""The four workers of `ksmemu demo`, driven by a pipe each."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import multiprocess

from ksmemu.cli.demo_worker import work
from ksmemu.errors import KsmError

_END_SECONDS = 5.0


class Crew:
    """The workers, and the pipe to each."""

    def __init__(self, directory: str, files: Sequence[Path], nr_workers: int) -> None:
        context = multiprocess.get_context("spawn")
        self._pipes: list[Any] = []  # multiprocess has no types
        self._processes: list[Any] = []
        # Ctrl-C is for this process, which then closes the pipes: its children inherit the deaf ear.
        listening = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for rank in range(nr_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, directory, rank, files))
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        signal.signal(signal.SIGINT, listening)

    @property
    def pids(self) -> list[int]:
        """The worker processes."""
        return [process.pid for process in self._processes]

    def answers(self) -> list[Any]:
        """Return the next answer of every worker."""
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise KsmError(errno.ECHILD, "a worker ended too early") from None

    def ask(self, command: str) -> list[Any]:
        """Give all workers a command, and return their answers."""
        with contextlib.suppress(BrokenPipeError):  # answers() says what happened
            for pipe in self._pipes:
                pipe.send(command)
        return self.answers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_END_SECONDS)
            process.kill()
