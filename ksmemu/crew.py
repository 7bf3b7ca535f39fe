"""Processes that own memory for a demonstration or a benchmark, driven by a pipe each."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Callable, Sequence
from typing import Any, Self

import multiprocess
from multiprocess import forkserver

from ksmemu.errors import KsmError

_END_SECONDS = 5.0
_PRELOAD = ["ksmemu.bench.worker", "ksmemu.cli.demo_worker"]
"""What the server of forks has imported: a member starts in milliseconds."""


def _start_server(context: Any) -> None:
    """Start the server of forks, if it does not run yet.

    Ctrl-C is for this process, which then closes the pipes: its children inherit the deaf ear. Nothing more
    is started in that state, since a Ctrl-C that comes meanwhile is lost.
    """
    context.set_forkserver_preload(_PRELOAD)
    listening = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, listening)


class Crew:
    """The members, and the pipe to each; leaving the context ends them.

    Args:
        work: runs in each member with its end of the pipe first, until the pipe closes.
        arguments: what each member gets besides.
    """

    def __init__(self, work: Callable[..., None], arguments: Sequence[tuple[object, ...]]) -> None:
        context = multiprocess.get_context("forkserver")
        _start_server(context)
        self._pipes: list[Any] = []  # multiprocess has no types
        self._processes: list[Any] = []
        try:
            for given in arguments:
                self._start(context, work, given)
        except BaseException:
            self.__exit__()
            raise

    def _start(self, context: Any, work: Callable[..., None], given: tuple[object, ...]) -> None:
        ours, theirs = context.Pipe()
        self._pipes.append(ours)
        # A daemon: after a Ctrl-C that comes before the context is entered, our exit ends it.
        process = context.Process(target=work, args=(theirs, *given), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        """The member processes."""
        return [process.pid for process in self._processes]

    def answers(self) -> list[Any]:
        """Return the next answer of every member."""
        return [self.answer_of(rank) for rank in range(len(self._pipes))]

    def tell(self, command: object) -> None:
        """Give all members a command; answers() has what comes of it."""
        with contextlib.suppress(BrokenPipeError):  # answers() says what happened
            for pipe in self._pipes:
                pipe.send(command)

    def ask(self, command: object) -> list[Any]:
        """Give all members a command, and return their answers."""
        self.tell(command)
        return self.answers()

    def tell_one(self, rank: int, command: object) -> None:
        """Give one member a command; answer_of() has what comes of it."""
        with contextlib.suppress(BrokenPipeError):
            self._pipes[rank].send(command)

    def has_answered(self, rank: int, seconds: float) -> bool:
        """Wait so long for the answer of one member; whether there is one, or an end."""
        return bool(self._pipes[rank].poll(seconds))

    def answer_of(self, rank: int) -> Any:
        """Return the next answer of one member."""
        try:
            return self._pipes[rank].recv()
        except EOFError:
            raise KsmError(errno.ECHILD, "a worker ended too early") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(_END_SECONDS)
            process.kill()
