"""What a benchmark changes in the kernel is put back, also when the benchmark is killed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ksmemu.bench import guard_process
from ksmemu.errors import KsmError

_SECONDS = 60.0
"""Unmerging everything is part of it."""

Store = tuple[str, str]
"""A file and the text that is written to it."""


@contextlib.contextmanager
def guarded(stores: Sequence[Store], *fds: int) -> Iterator[None]:
    """Make these stores, in this order, when the context is left or this process ends.

    Args:
        stores: what puts everything back.
        fds: descriptors that stay open until then, for a lock that is held as long.

    Raises:
        KsmError: EIO: one of them failed; its text was written to standard error.
    """
    with subprocess.Popen(
        [sys.executable, "-I", "-S", guard_process.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=fds,
        start_new_session=True,  # Ctrl-C is not for it
    ) as process:
        assert process.stdin is not None  # noqa: S101 (for mypy: it is PIPE)
        assert process.stdout is not None  # noqa: S101
        process.stdin.write(json.dumps(stores) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise KsmError(errno.EIO, "the process that puts things back has not started")
        try:
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            code = process.wait(_SECONDS)
        if code:
            raise KsmError(errno.EIO, "what was changed in the kernel was not put back")


@contextlib.contextmanager
def raised(path: Path, least: int) -> Iterator[None]:
    """Raise a number that the kernel keeps in a file for a while, where we may."""
    before = int(path.read_text())
    with contextlib.ExitStack() as stack:
        if before < least and os.access(path, os.W_OK):
            stack.enter_context(guarded([(str(path), f"{before}\n")]))
            path.write_text(f"{least}\n")
        yield
