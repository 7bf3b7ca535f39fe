"""Orders and reports between ksmd and agents: core/wire.h in Python. A test compares the two.

The order socket carries one message a datagram, in native byte order. Pages are counted from the start of
the space. The control socket carries JSON, with descriptors beside it.
"""

from __future__ import annotations

import array
import enum
import json
import socket
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

from ksmemu import _core

VERSION: Final = _core.WIRE_VERSION
ORDER_MAX_PAGES: Final = _core.ORDER_MAX_PAGES
FRAME_ZERO: Final = (1 << 64) - 1
"""The frame of a run of zeros: the kernel's zero page, not the pool."""

ORDER: Final = struct.Struct("=IIQII")
"""kind, space, id, epoch, nr_runs; runs follow."""
REPORT: Final = struct.Struct("=IIQIIQ")
"""kind, space, id, epoch, nr_spans, frozen_ns; spans follow."""
NOTE: Final = np.dtype([("start", "u8"), ("end", "u8"), ("kind", "u4"), ("value", "u4")])
"""What an agent is to tell the next ksmd, in addresses."""
RUN: Final = np.dtype([("page", "u8"), ("frame", "u8"), ("nr_pages", "u4"), ("join", "u4")])
SPAN: Final = np.dtype([("page", "u8"), ("nr_pages", "u8"), ("error", "i4"), ("value", "u4")])
REPORT_MAX_BYTES: Final = REPORT.size + ORDER_MAX_PAGES * SPAN.itemsize

MAX_NODES: Final = 1024
"""NUMA nodes are below this. Source: MAX_NUMNODES, as usual distributions configure it."""

CONTROL_MAX_BYTES: Final = 4096
CONTROL_MAX_FDS: Final = 4


class OrderKind(enum.IntEnum):
    """What ksmd orders; see core/wire.h."""

    MERGE = 1
    REHOME = 2
    RENEW = 3


class ReportKind(enum.IntEnum):
    """What an agent reports; see core/wire.h."""

    OUTCOME = 1
    ADVISED = 2
    UNADVISED = 3
    UNMAPPED = 4
    CLOSED = 5
    UNSHAREABLE = 6
    REFUSED = 7
    BOUND = 8
    MAPPED = 9
    RESUMED = 10
    FORKED = 11
    INHERITED = 12


class WireError(ValueError):
    """The other side sent something that is not of the protocol."""


def pack_order(kind: OrderKind, space: int, order_id: int, epoch: int, runs: npt.NDArray[np.void]) -> bytes:
    """Return the message of an order; `runs` is of dtype RUN."""
    return ORDER.pack(kind, space, order_id, epoch, len(runs)) + runs.tobytes()


def unpack_report(
    message: bytes,
) -> tuple[ReportKind, int, int, int, int, npt.NDArray[np.void]]:
    """Return kind, space, order id, epoch, frozen_ns and spans (dtype SPAN); WireError on garbage."""
    if len(message) < REPORT.size or (len(message) - REPORT.size) % SPAN.itemsize:
        raise WireError(f"a report of {len(message)} bytes")
    kind, space, order_id, epoch, nr_spans, frozen_ns = REPORT.unpack_from(message)
    spans = np.frombuffer(message, SPAN, offset=REPORT.size)
    if len(spans) != nr_spans:
        raise WireError(f"a report of {nr_spans} spans that holds {len(spans)}")
    try:
        return ReportKind(kind), space, order_id, epoch, frozen_ns, spans
    except ValueError as error:
        raise WireError(str(error)) from None


def send_control(sock: socket.socket, body: dict[str, object], fds: tuple[int, ...] = ()) -> None:
    """Send one control message with descriptors beside it."""
    socket.send_fds(sock, [json.dumps(body).encode()], list(fds))


def receive_with_fds(sock: socket.socket, max_bytes: int, flags: int = 0) -> tuple[bytes, list[int], int]:
    """As socket.recv_fds(), which ignores its flags: descriptors must not outlive an exec."""
    fds = array.array("i")
    room = socket.CMSG_LEN(CONTROL_MAX_FDS * fds.itemsize)
    message, ancillary, flags, _ = sock.recvmsg(max_bytes, room, socket.MSG_CMSG_CLOEXEC | flags)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return message, list(fds), flags


def receive_control(sock: socket.socket) -> tuple[dict[str, object], list[int]]:
    """Receive one control message: its body and the descriptors, now the caller's.

    Raises:
        EOFError: the other side is gone. WireError: garbage; its descriptors are closed.
    """
    message, fds, flags = receive_with_fds(sock, CONTROL_MAX_BYTES)
    try:
        if not message:
            raise EOFError
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise WireError("a control message that is too long")
        body = json.loads(message)
        if not isinstance(body, dict):
            raise WireError("a control message that is no object")
    except BaseException as error:
        for fd in fds:
            socket.close(fd)
        if isinstance(error, (UnicodeDecodeError, json.JSONDecodeError, RecursionError)):
            raise WireError("a control message that is no JSON") from None
        raise
    return body, fds
