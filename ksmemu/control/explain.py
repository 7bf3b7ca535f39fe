"""Ask the ksmd of an instance why memory is not merged."""

from __future__ import annotations

import errno
import json
import os
from typing import cast

from ksmemu import wire
from ksmemu.control.reasons import Explained
from ksmemu.errors import KsmError, NotRunningError, error_from_errno
from ksmemu.instance import Instance

_ANSWER_SECONDS = 60.0
"""ksmd answers between two slices of a scan; it looks at every page of the processes in question."""


def explain(instance: Instance, pid: int | None = None, address: int | None = None) -> Explained:
    """Return why the memory of a process, or of all that joined, is not merged.

    Args:
        pid: None: of every process the totals only.
        address: an address of that process: only the range around it, and what is known of its page.

    Raises:
        NotRunningError, ForeignInstanceError: as Instance.connect().
        KsmError: ESRCH: no such process, or ksmd knows no memory of it. EFAULT: the address is in no space
            that was advised. EPROTO: whoever answers is no ksmd of this version. ETIMEDOUT: no answer.
    """
    with instance.connect() as control:
        control.settimeout(_ANSWER_SECONDS)
        try:
            wire.send_control(control, {"explain": wire.VERSION, "pid": pid, "address": address})
            reply, fds = wire.receive_control(control)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise NotRunningError(instance.directory) from None
        except TimeoutError:
            text = f"the ksmd of {instance.directory} does not answer: is it stopped?"
            raise KsmError(errno.ETIMEDOUT, text) from None
        except wire.WireError as error:
            raise KsmError(errno.EPROTO, f"what serves {instance.directory} is no ksmd: {error}") from None
    return _read(reply, fds)


def _read(reply: dict[str, object], fds: list[int]) -> Explained:
    number = reply.get("errno")
    try:
        if isinstance(number, int):
            raise error_from_errno(number, str(reply.get("text")))
        if len(fds) != 1:
            raise KsmError(errno.EPROTO, "ksmd answers without an answer")
        with os.fdopen(fds.pop(), "rb") as file:
            return cast("Explained", json.load(file))
    finally:
        for fd in fds:
            os.close(fd)
