"""Ask the ksmd of an instance a question over its control socket; an answer changes nothing."""

from __future__ import annotations

import errno
import json
import os

from ksmemu import wire
from ksmemu.errors import KsmError, NotRunningError, error_from_errno
from ksmemu.instance import Instance

_ANSWER_SECONDS = 60.0
"""ksmd answers between two slices of a scan; it may look at every page of the processes in question."""


def ask(instance: Instance, question: dict[str, object]) -> object:
    """Return the answer to a question that is answered in JSON; errors as those of ask_bytes()."""
    return json.loads(ask_bytes(instance, question))


def ask_bytes(instance: Instance, question: dict[str, object]) -> bytes:
    """Return the answer as it came.

    Raises:
        NotRunningError, ForeignInstanceError: as Instance.connect().
        KsmError: EPROTO: whoever answers is no ksmd of this version. ETIMEDOUT: no answer. What ksmd says
            besides.
    """
    with instance.connect() as control:
        control.settimeout(_ANSWER_SECONDS)
        try:
            wire.send_control(control, question)
            reply, fds = wire.receive_control(control)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise NotRunningError(instance.directory) from None
        except TimeoutError:
            text = f"the ksmd of {instance.directory} does not answer: is it stopped?"
            raise KsmError(errno.ETIMEDOUT, text) from None
        except wire.WireError as error:
            raise KsmError(errno.EPROTO, f"what serves {instance.directory} is no ksmd: {error}") from None
    return _read(reply, fds)


def _read(reply: dict[str, object], fds: list[int]) -> bytes:
    number = reply.get("errno")
    try:
        if isinstance(number, int):
            raise error_from_errno(number, str(reply.get("text")))
        if len(fds) != 1:
            raise KsmError(errno.EPROTO, "ksmd answers without an answer")
        with os.fdopen(fds.pop(), "rb") as file:
            return file.read()
    finally:
        for fd in fds:
            os.close(fd)
