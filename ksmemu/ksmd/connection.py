"""What workers say: they join, register spaces, report. One that talks garbage spoils only itself."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt

from ksmemu import wire
from ksmemu.domain_key import Key, is_label, stands_for_many
from ksmemu.ksmd import forked, handed, merge, rehome, takeover
from ksmemu.ksmd.ancestor import Ancestor
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.place import MAX_PAGES
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.worker import Worker
from ksmemu.units import PAGE_SIZE
from ksmemu.wire import OrderKind, ReportKind, WireError

if TYPE_CHECKING:
    from ksmemu.ksmd.domains import Domains

log = logging.getLogger(__name__)

_SO_PEERPIDFD = 77
"""Source: <asm-generic/socket.h>, Linux 6.5."""
_UCRED = struct.Struct("iII")
_LIMIT = 1 << 47
_MAX_NUMBER = (1 << 32) - 1


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
    domains: Domains,
    control: socket.socket,
    body: dict[str, object],
    fds: list[int],
    terms: Mapping[str, bool],
) -> Worker:
    """Make a client a worker, if its first message asks for that. One that resumes hands its pool over.

    Args:
        control: its connection; after an error the caller's still.
        body, fds: the message. The descriptors belong to the worker, or are closed.
        terms: what the worker is told besides, how this ksmd works.

    Raises:
        WireError, OSError: it is none; ESTALE: it resumes with another pool than the domain has by now;
            EPERM: nobody can say whose it is.
    """
    with contextlib.ExitStack() as undo:
        for fd in fds:
            undo.callback(os.close, fd)
        pid, key = _check_hello(control, body, fds, terms)
        domain = domains.of(key)
        if "resumes" in body and any(
            worker.is_same_process(pid) and not worker.has_parted() for worker in domains.workers()
        ):
            raise WireError("a worker that resumes, and is one of ours still")
        held, given = _holder_for(domains, domain, body, fds[2:])
        if given:
            undo.callback(os.close, held)
        failed = undo.enter_context(contextlib.ExitStack())
        pidfd = _peer_pidfd(control, pid)
        failed.callback(os.close, pidfd)
        order = failed.enter_context(socket.socket(fileno=os.dup(fds[0])))
        pagemap = os.dup(fds[1])
        failed.callback(os.close, pagemap)
        worker = Worker(
            pid,
            key,
            pidfd=pidfd,
            control=control,
            order=order,
            pagemap=pagemap,
            holder=given or _number(body, "holder"),
            nr_unheard=_number(body, "resumes") if "resumes" in body else 0,
            is_forked=body.get("forked") is True,
            merge_any=body.get("merge_any") is True,
            refuses=body.get("refuses") is True,
        )
        worker.count_mappings()
        reply: dict[str, object] = {"holder": worker.holder, "pool_bytes": domain.pool.nr_bytes, **terms}
        wire.send_control(control, reply, (domain.pool.read_only(), held) if given else ())
        failed.pop_all()
    return worker


def enter(domain: Domain, worker: Worker) -> None:
    """Count a worker that has joined among those of its domain."""
    domain.workers.append(worker)
    if not worker.nr_unheard:
        _know(domain, worker)


def _know(domain: Domain, worker: Worker) -> None:
    """A worker has said all that it maps."""
    worker.hear_all()
    domain.pool.known.add(worker.holder)


def _check_hello(
    control: socket.socket, body: dict[str, object], fds: list[int], terms: Mapping[str, bool]
) -> tuple[int, Key]:
    """Return the pid of a client and its domain: its user from the kernel, its label from what it says."""
    if body.get("hello") != wire.VERSION or not 2 <= len(fds) <= 2 + ("resumes" in body):
        raise WireError(f"a hello of another version than {wire.VERSION}, or no hello")
    if not stat.S_ISSOCK(os.fstat(fds[0]).st_mode):
        raise WireError("an order socket that is none")
    pid, uid = peer(control)
    if stands_for_many(uid):
        raise PermissionError(errno.EPERM, f"the user of pid {pid} is not known in this user namespace")
    label = body.get("domain", "")
    if not isinstance(label, str) or not is_label(label):
        raise WireError("a domain that is none")
    if not handed.is_pagemap(fds[1], pid):
        raise WireError("a pagemap of another process")
    if "resumes" in body:
        if _number(body, "resumes") < 0:
            raise WireError("a worker with less than no space")
        if any(body.get(name) != value for name, value in terms.items()):
            raise WireError("a worker of a ksmd that worked otherwise")
    return pid, Key(uid, label)


def _holder_for(domains: Domains, domain: Domain, body: dict[str, object], fds: list[int]) -> tuple[int, int]:
    """Return (descriptor, holder) to give to a worker; holder is 0 where it has that already."""
    if not fds:
        return domain.pool.give()
    others = (other for other in domains if other is not domain)
    if not takeover.takes_pool(domain, others, fds[0], _number(body, "holder")):
        raise OSError(errno.ESTALE, "another pool than that of this ksmd")
    return fds[0], 0


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
    """Read a worker's request on the control socket: a space to register (returned), or its flags.

    Args:
        everywhere: the spaces of all domains, which share what room there is; None: its user may have
            no other descriptor.

    Raises:
        WireError: garbage. EOFError: the worker has closed its control socket. NoRoomError: it was told.
    """
    body, fds = wire.receive_control(worker.control)
    merge_any, refuses = body.get("merge_any"), body.get("refuses")
    if isinstance(merge_any, bool) and isinstance(refuses, bool) and not fds:
        worker.merge_any, worker.refuses = merge_any, refuses
        wire.send_control(worker.control, {})
        return None
    if isinstance(said := body.get("ancestor"), dict):
        _add_ancestor(domain, worker, said, fds, may_hold=everywhere is not None)
        wire.send_control(worker.control, {})
        return None
    return _register(domain, worker, space_id, everywhere, (body, fds))


def _add_ancestor(
    domain: Domain, worker: Worker, said: dict[str, object], fds: list[int], *, may_hold: bool
) -> None:
    """A worker that resumes tells what its space has shown since a fork; descriptors are closed, or kept."""
    with contextlib.ExitStack() as undo:
        for fd in fds:
            undo.callback(os.close, fd)
        space, number, holder = (_number(said, name) for name in ("space", "number", "holder"))
        slot = worker.slot(space)
        if slot is None or len(fds) != 1 or not worker.nr_unheard or number in slot.ancestors:
            raise WireError("an ancestor of nothing, or one that there is already")
        forked.check_ancestor(domain, slot, fds[0], number, holder)
        if not may_hold:
            _refuse_space(worker, errno.EMFILE, SHARE_USED)
        undo.pop_all()
    slot.await_all_of(forked.add_ancestor(domain, slot, fds[0], number), holder)


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
        number, start, size = (_number(space, name) for name in ("id", "start", "size"))
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
        if not 0 <= number <= _MAX_NUMBER or worker.slot(number) is not None:
            raise WireError(f"space {number}, which there is already")
        handed.check_object(domain, fds[0], size)
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
        slot = MmSlot(space_id, start, nr_pages, fds[0], worker.pagemap, node, number=number)
        wire.send_control(worker.control, {})
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


def _has_room(everywhere: Iterable[MmSlot], file: int, size: int) -> bool:
    """Whether every hole of every own object in this file system could be written: else SIGBUS threatens."""
    system = os.fstatvfs(file)
    if not system.f_blocks:
        return True
    device = os.fstat(file).st_dev
    promised = sum(slot.hole_bytes() for slot in everywhere if slot.is_on(device))
    return promised + size <= system.f_bavail * system.f_frsize


def report(domain: Domain, worker: Worker, may_hold: Callable[[], bool]) -> None:
    """Read one report of a worker's agent and enter it into the books.

    Args:
        may_hold: whether its user may have another descriptor: a fork brings one.

    Raises:
        WireError: garbage, or a descriptor too many. EOFError: the agent is gone.
        BlockingIOError: there is no report.
    """
    message, fds, _ = wire.receive_with_fds(worker.order, wire.REPORT_MAX_BYTES + 1, socket.MSG_DONTWAIT)
    if not message:
        raise EOFError
    worker.heard_at = time.monotonic()
    with contextlib.ExitStack() as undo:
        for fd in fds:
            undo.callback(os.close, fd)
        if fds and not may_hold():
            raise WireError(SHARE_USED)
        _enter_report(domain, worker, message, fds)
        undo.pop_all()


def _enter_report(domain: Domain, worker: Worker, message: bytes, fds: list[int]) -> None:
    """Enter a report; descriptors that came with it are closed after an error, otherwise they are used up."""
    kind, number, order_id, epoch, frozen_ns, spans = wire.unpack_report(message)
    if kind is ReportKind.OUTCOME and not fds:
        domain.stats.freeze_max_ns = max(domain.stats.freeze_max_ns, frozen_ns)
        _outcome(domain, worker, (number, order_id), epoch, spans)
        return
    slot = worker.slot(number)
    if slot is None:
        raise WireError(f"a report of space {number}, which there is not")
    if fds and kind is not ReportKind.FORKED:
        raise WireError("descriptors with a report that has none")
    slot.epoch = epoch
    if kind is ReportKind.FORKED:
        forked.divide(domain, slot, order_id, spans, fds)
    elif kind is ReportKind.INHERITED:
        forked.inherited(domain, slot, spans)
    elif kind is ReportKind.MAPPED or kind is ReportKind.RESUMED:
        _resume(domain, worker, slot, kind, spans)
    else:
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
    number, order_id = named
    order = worker.orders.get(order_id)
    if order is None or order.slot.number != number:
        raise WireError(f"the outcome of order {order_id}, which is not under way in space {number}")
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


def _resume(
    domain: Domain, worker: Worker, slot: MmSlot, kind: ReportKind, spans: npt.NDArray[np.void]
) -> None:
    if not worker.nr_unheard and (kind is ReportKind.MAPPED or not slot.unheard):
        raise WireError("a worker that resumes again")
    if kind is ReportKind.MAPPED:
        takeover.mapped(domain, slot, spans)
        return
    slot.hear()
    if worker.nr_unheard:
        worker.nr_unheard -= 1
        if not worker.nr_unheard:
            _know(domain, worker)
    takeover.drop_orphans(domain)


def _change(domain: Domain, slot: MmSlot, kind: ReportKind, spans: npt.NDArray[np.void]) -> None:
    for span in spans:
        start, nr = int(span["page"]), int(span["nr_pages"])
        end = start + nr
        if end > slot.nr_pages:
            raise WireError(f"pages up to {end} of a space of {slot.nr_pages}")
        if kind is ReportKind.BOUND:
            if int(span["value"]) >= wire.MAX_NODES:
                raise WireError(f"pages on node {span['value']}")
            domain.bind(slot, start, end, int(span["value"]))
            continue
        slot.refused.put(start, end, True if kind is ReportKind.REFUSED else None)
        if kind is ReportKind.ADVISED:
            slot.advised.put(start, end, True)
            slot.known_surplus = None
            domain.count_left(slot, slot.rmap.tracked(start, end))
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


def part(domain: Domain, worker: Worker) -> list[tuple[Ancestor, int]]:
    """Forget a worker that lives: it is a stranger now, so nothing that it shows is freed.

    Returns:
        The ancestors that it shows, and its names there, until it is dead or has said what it shows.
    """
    domain.pool.known.discard(worker.holder)
    strange = [*worker.strange]
    worker.strange.clear()
    for slot in worker.slots:
        strange += slot.become_strange()
    reap(domain, worker)
    return strange


def reap(domain: Domain, worker: Worker) -> None:
    """A worker is dead: its mappings are gone, so every frame it held loses a reference, now."""
    for slot in list(worker.slots):
        domain.forget(slot, 0, slot.nr_pages)
        remove(domain, slot)
    for order in worker.orders.values():
        merge.abandon(domain, order)
    worker.orders.clear()
    worker.hear_all()
    domain.workers.remove(worker)
    domain.pool.known.discard(worker.holder)
    worker.close()
    takeover.drop_orphans(domain)
