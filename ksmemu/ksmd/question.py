"""Answer whoever asks why memory is not merged: find the memory that is meant, look, send what was found.

control/explain.py -> question.py -> explain.py. The answer may be long, so it is JSON (reasons.Explained) in
a sealed memfd beside the reply.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ksmemu import wire
from ksmemu.control.reasons import Explained, ExplainedPage, ExplainedSpace, ExplainedWorker, Reason
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.explain import Partners, explain, partners
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.page_map import held
from ksmemu.ksmd.place import places
from ksmemu.ksmd.ranges import Pages, union
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.worker import Worker
from ksmemu.units import PAGE_SIZE
from ksmemu.wire import WireError

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def answer(
    domains: Sequence[Domain], control: socket.socket, body: dict[str, object], stopped: str | None
) -> None:
    """Answer a question; the connection is the caller's still.

    Args:
        domains: of which whoever asks may know.
        stopped: why nothing is scanned, as in reasons.STOPPED.

    Raises:
        WireError: it is no such question. OSError: ESRCH: no such process, or no memory of it is known.
            EFAULT: the address is in no space of it. EMFILE, ENOMEM: there is no room for the answer.
    """
    pid, address = body.get("pid"), body.get("address")
    if not isinstance(pid, int | None) or not isinstance(address, int | None):
        raise WireError("a question to explain that names no process or address")
    if pid is None and address is not None:
        raise WireError("a question to explain an address of no process")
    if body != {"explain": wire.VERSION, "pid": pid, "address": address}:
        raise WireError(f"a question to explain of another version than {wire.VERSION}")
    send(control, json.dumps(_explained(domains, pid, address, stopped)).encode())


def send(control: socket.socket, found: bytes) -> None:
    """Send an answer of any length.

    Raises:
        OSError: EMFILE, ENOMEM: there is no room for it.
    """
    fd = _sealed(found)
    try:
        wire.send_control(control, {}, (fd,))
    finally:
        os.close(fd)


def _sealed(found: bytes) -> int:
    """Return an object that holds what was found, at its start, and cannot be changed."""
    fd = os.memfd_create("answer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(fd, "wb", closefd=False) as file:
            file.write(found)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _explained(
    domains: Sequence[Domain], pid: int | None, address: int | None, stopped: str | None
) -> Explained:
    found = [
        (d, worker) for d in domains for worker in d.workers if worker.slots and pid in (None, worker.pid)
    ]
    if pid is not None and not found:
        raise OSError(errno.ESRCH, _unknown(pid))
    page = None
    if address is not None:
        at = next(((d, s) for d, w in found for s in w.slots if address in _addresses(s)), None)
        if at is None:
            raise OSError(errno.EFAULT, f"{address:#x} is in no address space of pid {pid} that was advised")
        found = [(d, worker) for d, worker in found if d is at[0]]
        page = _page(*at, address)
    apart = {
        domain: partners(domain, _others(domains, domain)) for domain in dict.fromkeys(d for d, _ in found)
    }
    return {
        "stopped": stopped,
        "workers": [_worker(domain, worker, apart[domain], pid, address) for domain, worker in found],
        "page": page,
    }


def _others(domains: Sequence[Domain], domain: Domain) -> Iterator[Domain]:
    """Yield the other domains of the same user: what others hold is nobody's business."""
    return (other for other in domains if other is not domain and other.key.uid == domain.key.uid)


def _unknown(pid: int) -> str:
    if not Path(f"/proc/{pid}").exists():
        return f"no process {pid}"
    return f"no memory of pid {pid} is known: it never advised any, or joined another ksmd"


def _addresses(slot: MmSlot) -> range:
    return range(slot.start, slot.start + slot.nr_pages * PAGE_SIZE)


def _worker(
    domain: Domain, worker: Worker, apart: Partners, pid: int | None, address: int | None
) -> ExplainedWorker:
    totals = np.zeros(len(Reason), dtype=np.int64)
    spaces: list[ExplainedSpace] = []
    for slot in worker.slots:
        rows = explain(domain, slot, apart, _held(slot), refuses=worker.refuses)
        np.add.at(totals, rows["reason"], rows["pages"])
        if pid is None or (address is not None and address not in _addresses(slot)):
            continue
        for bound in ("start", "end"):
            rows[bound] = rows[bound] * PAGE_SIZE + slot.start
        if address is not None:
            rows = rows[(rows["start"] <= address) & (address < rows["end"])]
        whole = _addresses(slot)
        spaces.append({"start": whole.start, "end": whole.stop, "node": slot.node, "rows": rows.tolist()})
    return {
        "pid": worker.pid,
        "domain": str(domain.key),
        "silent": _why_silent(worker),
        "totals": {reason.words: int(totals[reason]) for reason in Reason if totals[reason]},
        "spaces": spaces,
    }


def _why_silent(worker: Worker) -> str | None:
    if worker.is_lost:
        return "it was cut off"
    return "it does not answer" if worker.is_stalled() else None


def _held(slot: MmSlot) -> Pages:
    """Return the pages that hold data outside the pool."""
    return union(*held(slot))


def _page(domain: Domain, slot: MmSlot, address: int) -> ExplainedPage:
    rmap, page = slot.rmap, (address - slot.start) // PAGE_SIZE
    state, refs = State(rmap.state[page]), domain.pool.refs
    known = domain.count(State.SKIPPED, State.UNSTABLE, State.MERGED)
    return {
        "address": slot.start + page * PAGE_SIZE,
        "state": state.name,
        "age": int(rmap.age[page]),
        "skips": int(rmap.skips[page]),
        "sharers": int(refs[rmap.tag[page]]) if state is State.MERGED else 0,
        "dups": _dups(domain, slot, page),
        "compared": known - 1 if state in (State.SKIPPED, State.UNSTABLE) else 0,
    }


def _dups(domain: Domain, slot: MmSlot, page: int) -> list[int]:
    """Return how many pages show each frame that holds what a page holds, if its content is known."""
    if slot.rmap.state[page] == State.MERGED:
        prints = domain.pool.fingerprint[slot.rmap.tag[[page]]]
    else:
        entries, where = domain.unstable.everyone()
        prints = entries[where == places(slot.id, np.array([page]))][:1]
    _, _, sharers = domain.stable.dups(prints)
    return [int(number) for number in sharers]
