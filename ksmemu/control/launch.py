"""Start a scanner process and wait until it serves.

How the two halves meet:

    parent                                        ksmd
    python -m ksmemu.ksmd --dir D --set N=V … ──▶ claims D, makes the control files, listens
    await_ready() ◀─ ready pipe ──────────────── `ready PID` or `error ERRNO text`
    holds the lifeline ─────────────────────────▶ stops at its end: a killed parent leaves no ksmd
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import IO

from ksmemu.control.files import LINUX, RFC_2009, Files
from ksmemu.control.setup import Setup
from ksmemu.errors import KsmError, error_from_errno
from ksmemu.instance import Instance

MODULE = "ksmemu.ksmd"
"""What a scanner process runs."""

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_TAIL_BYTES = 1 << 16


def launch(
    instance: Instance, tunables: Mapping[str, int], setup: Setup, lifeline: int | None = None
) -> subprocess.Popen[bytes]:
    """Start ksmd, in a session of its own, and return it once it serves.

    Args:
        instance: where it is to serve.
        tunables: values other than the defaults.
        setup: how it is to work.
        lifeline: reading end of a pipe; ksmd stops when nobody holds the writing end. None: it
            goes on without its parent.
    Raises:
        ValueError: an unknown tunable or a value it cannot have; nothing was started.
        KsmError: and its subclasses, as ksmd reported it; ksmd has gone.
    """
    files = RFC_2009 if setup.rfc2009 else LINUX
    settings = [f"--set={name}={checked(files, name, value)}" for name, value in tunables.items()]
    ready, ready_in_ksmd = os.pipe()
    inherited = [ready_in_ksmd] if lifeline is None else [ready_in_ksmd, lifeline]
    command = [
        sys.executable,
        "-m",
        MODULE,
        "--dir",
        os.fspath(instance.directory),
        *settings,
    ]
    command += [f"--ready-fd={ready_in_ksmd}"]
    command += setup.options()
    command += [] if lifeline is None else [f"--lifeline-fd={lifeline}"]
    with os.fdopen(ready, "rb", buffering=0) as pipe, tempfile.TemporaryFile() as early_stderr:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=early_stderr,  # until ksmd has a log
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C is for whoever started it
                # Else numpy starts a thread for each other CPU, which spins for a while: ksmd needs none.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        finally:
            os.close(ready_in_ksmd)
        try:
            _await_ready(pipe, process, instance, early_stderr)
        except BaseException:
            end(process)
            raise
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a ksmd to stop, and kill it if it does not; it is reaped."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def checked(files: Files, name: str, value: int) -> int:
    """Return the value that the tunable would take; ValueError says what is allowed."""
    if name not in files.tunables:
        raise ValueError(f"no tunable {name!r}: there are {', '.join(files.tunables)}")
    tunable = files.tunables[name]
    try:
        return tunable.parse(tunable.word(int(value)))
    except KsmError as refusal:
        raise ValueError(f"{name}={value}: {refusal.strerror}") from None


def last_log_line(instance: Instance, about: str = "") -> str:
    """Return the last line of ksmd.log that has this text in it, or nothing."""
    with contextlib.suppress(OSError), instance.log_file.open("rb") as log:
        return _last_line(log, about)
    return ""


def _await_ready(
    pipe: IO[bytes], process: subprocess.Popen[bytes], instance: Instance, stderr: IO[bytes]
) -> None:
    line = _read_line(pipe)
    if line is None:
        raise KsmError(errno.ETIMEDOUT, f"ksmd did not come up in {_READY_SECONDS:.0f} s")
    match line.split(maxsplit=2):
        case ["ready", _]:
            return
        case ["error", number, text]:
            raise error_from_errno(int(number), text.rstrip())
        case _:
            raise KsmError(errno.ECHILD, _obituary(process, instance, stderr))


def _obituary(process: subprocess.Popen[bytes], instance: Instance, stderr: IO[bytes]) -> str:
    status = process.wait(_STOP_SECONDS)
    said = _last_line(stderr) or last_log_line(instance) or "it said nothing"
    return f"ksmd ended with status {status} before it served: {said}"


def _read_line(pipe: IO[bytes]) -> str | None:
    """Return the first line, less if the other end closes before; None after _READY_SECONDS."""
    deadline = time.monotonic() + _READY_SECONDS
    line = b""
    while not line.endswith(b"\n"):
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        if not (more := pipe.read(4096)):
            break
        line += more
    return line.decode(errors="replace")


def _last_line(file: IO[bytes], about: str = "") -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    lines = file.read().decode(errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if about in line), "")
