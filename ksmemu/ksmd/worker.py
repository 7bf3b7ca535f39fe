"""One attached process: its sockets, its descriptors, the orders it has not answered yet."""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ksmemu import wire
from ksmemu.domain_key import Key
from ksmemu.ksmd.ancestor import Ancestor
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.pool import Frames
from ksmemu.ksmd.ranges import Pages

log = logging.getLogger(__name__)

STALLED_SECONDS = 0.25
"""A worker that owes an answer for so long (stopped, swapped out) is not waited for until it answers."""

_COUNT_SHARE = 20


@dataclass(slots=True)
class Order:
    """An order under way: which pages it names, and for a merge which frames they are to show.

    `live` is cleared for pages that the worker itself unmapped or unmerged meanwhile.
    """

    slot: MmSlot
    kind: wire.OrderKind
    pages: Pages
    frames: Frames
    live: npt.NDArray[np.bool_]
    nr_runs: int = 0
    sent_at: float = 0.0


@dataclass(slots=True, eq=False)
class Worker:
    """A process that has joined; known by its pidfd, which alone says whether it is dead."""

    pid: int
    key: Key
    pidfd: int
    control: socket.socket
    order: socket.socket
    pagemap: int
    holder: int
    """What its descriptor of the pool is called."""
    nr_unheard: int = 0
    """Spaces of which it has yet to say what they show, as it was another ksmd's before."""
    strange: list[tuple[Ancestor, int]] = field(default_factory=list)
    """Ancestors that it showed when it was lost, and its names there; it has yet to say what of them."""
    is_forked: bool = False
    """It has its spaces from its parent."""
    slots: list[MmSlot] = field(default_factory=list)
    orders: dict[int, Order] = field(default_factory=dict)
    outgoing: deque[bytes] = field(default_factory=deque)
    heard_at: float = 0.0
    """When its last report came (CLOCK_MONOTONIC)."""
    is_lost: bool = False
    """No answer will come: it was cut off, or its agent has ended."""
    merge_any: bool = False
    """Whether it said that all its memory is mergeable (prctl)."""
    refuses: bool = False
    """Whether it said that nobody else may ask for that (merge_pid)."""
    mappings: int = 0
    """Mappings of the process: counted, plus what was ordered since."""
    counted_at: float = 0.0
    count_seconds: float = 0.0
    """When they were counted, and how long that took."""

    def hear_all(self) -> None:
        """It has said all that it shows, or is dead."""
        for ancestor, holder in self.strange:
            ancestor.unheard.discard(holder)
        self.strange.clear()

    def slot(self, number: int) -> MmSlot | None:
        """Return the space that the worker calls so."""
        return next((slot for slot in self.slots if slot.number == number), None)

    def send(self, order_id: int, order: Order, message: bytes) -> None:
        """Send an order, or keep it until the socket has room."""
        order.sent_at = time.monotonic()
        self.orders[order_id] = order
        self.outgoing.append(message)
        self.flush()

    def flush(self) -> None:
        """Send what waits; what does not fit goes on waiting."""
        while self.outgoing:
            try:
                self.order.send(self.outgoing[0], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError:  # it is going: its pidfd says when it is gone
                self.outgoing.clear()
                return
            self.outgoing.popleft()

    def is_stalled(self) -> bool:
        """Whether it owes answers and has given none for too long; an answer not read yet is one."""
        if self.is_lost:
            return True
        if not self.orders:
            return False
        since = max(next(iter(self.orders.values())).sent_at, self.heard_at)
        return time.monotonic() - since > STALLED_SECONDS and not self.has_reported()

    def has_parted(self) -> bool:
        """Whether it was cut off, or has hung up, which may not have been heard yet."""
        return self.is_lost or _has_event(self.order.fileno(), 0)

    def has_reported(self) -> bool:
        """Whether there is a report that was not read yet."""
        return _has_event(self.order.fileno(), select.POLLIN)

    def is_same_process(self, pid: int) -> bool:
        """Whether a living process with this pid is the worker: after its end another may be called so."""
        return pid == self.pid and not _has_event(self.pidfd, select.POLLIN)

    def is_count_old(self) -> bool:
        """Whether to count again; the worker maps and unmaps as it likes. At most a twentieth of the time."""
        return time.monotonic() - self.counted_at > _COUNT_SHARE * self.count_seconds

    def count_mappings(self) -> int:
        """Count the mappings of the process as they are now; 0 when it is gone.

        Where we may not look (PR_SET_DUMPABLE; another user's, unless ksmd is root's), they are those that
        the books know of.
        """
        since = time.monotonic()
        under_way = 2 * sum(order.nr_runs for order in self.orders.values())
        try:
            self.mappings = Path(f"/proc/{self.pid}/maps").read_bytes().count(b"\n") + under_way
        except (FileNotFoundError, ProcessLookupError):
            self.mappings = 0
        except OSError:
            self.mappings = sum(2 * slot.nr_runs() for slot in self.slots) + under_way
        self.counted_at = time.monotonic()
        self.count_seconds = self.counted_at - since
        return self.mappings

    def nr_descriptors(self) -> int:
        """Return how many descriptors it costs."""
        return 4 + sum(1 + len(slot.ancestors) for slot in self.slots)

    def close(self) -> None:
        """Close every descriptor of this worker and its spaces."""
        for slot in self.slots:
            slot.close()
        self.control.close()
        self.order.close()
        os.close(self.pagemap)
        os.close(self.pidfd)


def _has_event(fd: int, events: int) -> bool:
    """Whether one of these is there now, or an error or hang-up, which poll(2) tells of anyway."""
    poll = select.poll()
    poll.register(fd, events)
    return bool(poll.poll(0))
