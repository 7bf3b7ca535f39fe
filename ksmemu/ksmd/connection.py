"""What workers say: they join, register spaces, report. One that talks garbage spoils only itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ksmemu import wire
from ksmemu.domain_key import Key, is_label, stands_for_many
from ksmemu.ksmd import merge, rehome
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import MAX_PAGES
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.worker import Worker
from ksmemu.units import PAGE_SIZE
from ksmemu.wire import OrderKind, ReportKind, WireError

log = logging.getLogger(__name__)

_SO_PEERPIDFD = 77
"""Source: <asm-generic/socket.h>, Linux 6.5."""
_UCRED = struct.Struct("iII")
_LIMIT = 1 << 47


SHARE_USED = "its user holds as many descriptors of ksmd as he may"


class NoRoomError(Exception):
    """There is no room for a space: in the file system of its own object, or in ksmd for its user."""


def refuse(control: socket.socket, number: int, text: str) -> None:
    """Tell a client why it is not served."""
    try:
        wire.send_control(control, {"errno": number, "text": text})
    except OSError:
        log.info("a client left before it heard: %s", text)


def peer(control: socket.socket) -> tuple[int, int]:
    """Return pid and uid of whoever connected, as the kernel knows them."""
    pid, uid, _ = _UCRED.unpack(control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def join(
    control: socket.socket,
    body: dict[str, object],
    fds: list[int],
    pool_of: Callable[[Key], tuple[int, int]],
    terms: Mapping[str, bool],
) -> Worker:
    """Make a client a worker, if its first message asks for that.

    Args:
        control: its connection; after an error the caller's still.
        body, fds: the message. The descriptors belong to the worker, or are closed.
        pool_of: returns for a domain the descriptor for workers, and its size in bytes.
        terms: what the worker is told besides, how this ksmd works.

    Raises:
        WireError, OSError: it is none. PermissionError: nobody can say whose it is.
    """
    try:
        if body.get("hello") != wire.VERSION or len(fds) != 2:
            raise WireError(f"a hello of another version than {wire.VERSION}, or no hello")
        if not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
            raise WireError("an order socket that is none")
        pid, key = _domain_of(control, body)
        if Path(f"/proc/self/fd/{fds[1]}").readlink() != Path(f"/proc/{pid}/pagemap"):
            raise WireError("a pagemap of another process")
        descriptor, nr_bytes = pool_of(key)
        pidfd = _peer_pidfd(control, pid)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    worker = Worker(pid, key, pidfd, control, socket.socket(fileno=fds[0]), fds[1])
    try:
        worker.count_mappings()
        wire.send_control(control, {"pool_bytes": nr_bytes, **terms}, (descriptor,))
    except BaseException:
        worker.close()
        raise
    return worker


def _domain_of(control: socket.socket, body: dict[str, object]) -> tuple[int, Key]:
    """Return the pid of a client and its domain: its user from the kernel, its label from what it says."""
    pid, uid = peer(control)
    if stands_for_many(uid):
        raise PermissionError(errno.EPERM, f"the user of pid {pid} is not known in this user namespace")
    label = body.get("domain", "")
    if not isinstance(label, str) or not is_label(label):
        raise WireError("a domain that is none")
    return pid, Key(uid, label)


def _peer_pidfd(control: socket.socket, pid: int) -> int:
    try:
        return control.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return os.pidfd_open(pid)


def answer(
    domain: Domain, worker: Worker, space_id: int, everywhere: Iterable[MmSlot] | None
) -> MmSlot | None:
    """Read a worker's request on the control socket: a space to register (returned), a node, or its flags.

    Args:
        everywhere: the spaces of all domains, which share what room there is; None: no other may come.

    Raises:
        WireError: garbage. EOFError: the worker has closed its control socket. NoRoomError: it was told.
    """
    body, fds = wire.receive_control(worker.control)
    merge_any, refuses = body.get("merge_any"), body.get("refuses")
    if isinstance(merge_any, bool) and isinstance(refuses, bool) and not fds:
        worker.merge_any, worker.refuses = merge_any, refuses
        wire.send_control(worker.control, {})
        return None
    if "node" in body and not fds:
        _set_node(domain, worker, body["node"])
        wire.send_control(worker.control, {})
        return None
    return _register(domain, worker, space_id, everywhere, (body, fds))


def _set_node(domain: Domain, worker: Worker, said: object) -> None:
    if not isinstance(said, dict):
        raise WireError("a node that is none")
    space_id, start, end, node = (_number(said, name) for name in ("space", "start", "end", "node"))
    slot = domain.slots.get(space_id)
    if slot is None or domain.owner[space_id] is not worker:
        raise WireError(f"the node of space {space_id}, which is not this worker's")
    if not 0 <= start < end <= slot.nr_pages or not 0 <= node < wire.MAX_NODES:
        raise WireError(f"pages [{start}, {end}) of a space of {slot.nr_pages} on node {node}")
    domain.bind(slot, start, end, node)


def _number(body: dict[str, object], name: str) -> int:
    number = body.get(name)
    if not isinstance(number, int):
        raise WireError(f"{name} is no number")
    return number


def _register(
    domain: Domain,
    worker: Worker,
    space_id: int,
    everywhere: Iterable[MmSlot] | None,
    message: tuple[dict[str, object], list[int]],
) -> MmSlot:
    body, fds = message
    try:
        space = body.get("space")
        if not isinstance(space, dict) or len(fds) != 1:
            raise WireError("no space")
        start, size = _number(space, "start"), _number(space, "size")
        node = _number(space, "node") if "node" in space else 0
        nr_pages = size // PAGE_SIZE
        is_aligned = start % PAGE_SIZE == 0 and size % PAGE_SIZE == 0
        if (
            not is_aligned
            or start < 0
            or not 0 <= node < wire.MAX_NODES
            or not 0 < nr_pages <= MAX_PAGES
            or start + size > _LIMIT
        ):
            raise WireError(f"a space at {start:#x} of {size} bytes")
        _check_own(worker, fds[0], size)
        if everywhere is None:
            _refuse_space(worker, errno.EMFILE, SHARE_USED)
        elif not _has_room(everywhere, fds[0], size):
            text = "the file system of the own object cannot hold all that was promised"
            _refuse_space(worker, errno.ENOSPC, text)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fds[0])
        slot = MmSlot(space_id, start, nr_pages, fds[0], worker.pagemap, node)
        wire.send_control(worker.control, {"space": space_id})
        undo.pop_all()
    worker.slots.append(slot)
    domain.slots[space_id] = slot
    domain.owner[space_id] = worker
    if domain.events.is_on:
        domain.events.enter(slot, worker.pid)
    return slot


def _refuse_space(worker: Worker, number: int, text: str) -> NoReturn:
    wire.send_control(worker.control, {"errno": number, "text": text})
    raise NoRoomError(text)


def _check_own(worker: Worker, own: int, size: int) -> None:
    """Refuse what is not shared memory of the worker's own user.

    ksmd shows nobody what it reads there; but what a worker was merely let read is not its memory to merge.

    Raises:
        WireError: it is refused.
    """
    try:
        fcntl.fcntl(own, fcntl.F_GET_SEALS)  # shared memory alone has seals; no file system is asked
    except OSError:
        raise WireError("an own object that is no shared memory") from None
    found = os.fstat(own)
    if not stat.S_ISREG(found.st_mode) or found.st_size < size:
        raise WireError("an own object that is none")
    if found.st_uid != worker.key.uid:
        raise WireError(f"an own object of uid {found.st_uid}")


def _has_room(everywhere: Iterable[MmSlot], own: int, size: int) -> bool:
    """Whether every hole of every own object in this file system could be written: else SIGBUS threatens."""
    system = os.fstatvfs(own)
    if not system.f_blocks:
        return True
    device = os.fstat(own).st_dev
    promised = sum(slot.hole_bytes() for slot in everywhere if slot.is_on(device))
    return promised + size <= system.f_bavail * system.f_frsize


def report(domain: Domain, worker: Worker) -> None:
    """Read one report of a worker's agent and enter it into the books.

    Raises:
        WireError: garbage. EOFError: the agent is gone. BlockingIOError: there is none.
    """
    message = worker.order.recv(wire.REPORT_MAX_BYTES + 1, socket.MSG_DONTWAIT)
    if not message:
        raise EOFError
    worker.heard_at = time.monotonic()
    kind, space_id, order_id, epoch, frozen_ns, spans = wire.unpack_report(message)
    if kind is ReportKind.OUTCOME:
        domain.stats.freeze_max_ns = max(domain.stats.freeze_max_ns, frozen_ns)
        _outcome(domain, worker, (space_id, order_id), epoch, spans)
        return
    slot = domain.slots.get(space_id)
    if slot is None or domain.owner[space_id] is not worker:
        raise WireError(f"a report of space {space_id}, which is not this worker's")
    slot.epoch = epoch
    _change(domain, slot, kind, spans)


_ENTER = {
    OrderKind.MERGE: merge.outcome,
    OrderKind.RENEW: rehome.renewed,
    OrderKind.REHOME: rehome.outcome,
}


def _outcome(
    domain: Domain, worker: Worker, named: tuple[int, int], epoch: int, spans: npt.NDArray[np.void]
) -> None:
    """Enter the outcome of an order, named by its space and id; the space may have been closed since."""
    space_id, order_id = named
    order = worker.orders.get(order_id)
    if order is None or order.slot.id != space_id:
        raise WireError(f"the outcome of order {order_id}, which is not under way in space {space_id}")
    order.slot.epoch = epoch
    if int(spans["nr_pages"].astype(object).sum()) != len(order.pages):
        raise WireError(f"an outcome of order {order_id} with other pages than the order's")
    del worker.orders[order_id]
    errors = np.repeat(spans["error"], spans["nr_pages"].astype(np.int64))
    _ENTER[order.kind](domain, order, errors)
    if domain.rules.is_unmerging and order.kind is not OrderKind.REHOME:
        states = order.slot.rmap.state[order.pages]
        late = (states == State.MERGED) | (states == State.ZERO)
        rehome.order(domain, order.slot, order.pages[late])


def _change(domain: Domain, slot: MmSlot, kind: ReportKind, spans: npt.NDArray[np.void]) -> None:
    for span in spans:
        start, nr = int(span["page"]), int(span["nr_pages"])
        end = start + nr
        if end > slot.nr_pages:
            raise WireError(f"pages up to {end} of a space of {slot.nr_pages}")
        slot.refused.put(start, end, True if kind is ReportKind.REFUSED else None)
        if kind is ReportKind.ADVISED:
            slot.advised.put(start, end, True)
            slot.known_surplus = None
            left = slot.rmap.tracked(start, end)
            slot.rmap.move(left[slot.rmap.state[left] == State.LEFT], State.MERGED)
        elif kind is ReportKind.UNSHAREABLE:
            slot.advised.put(start, end, None)
        elif kind is not ReportKind.REFUSED:
            slot.advised.put(start, end, None)
            domain.forget(slot, start, end)
    if kind is ReportKind.CLOSED:
        domain.forget(slot, 0, slot.nr_pages)
        remove(domain, slot)


def remove(domain: Domain, slot: MmSlot) -> None:
    """Drop a space that is gone. Its pages were forgotten."""
    worker = domain.owner.pop(slot.id)
    worker.slots.remove(slot)
    del domain.slots[slot.id]
    if domain.events.is_on:
        domain.events.exit(slot)
    slot.close()


def reap(domain: Domain, worker: Worker) -> None:
    """A worker is dead: its mappings are gone, so every frame it held loses a reference, now."""
    for slot in list(worker.slots):
        domain.forget(slot, 0, slot.nr_pages)
        remove(domain, slot)
    for order in worker.orders.values():
        merge.abandon(domain, order)
    worker.orders.clear()
    domain.workers.remove(worker)
    worker.close()
