"""All workers: accept them, hear them, wait for them, lose them.

One epoll for all that they say. Whoever waits for outcomes listens to it alone, so no store is obeyed halfway
through a scan.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import resource
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ksmemu import wire
from ksmemu.ksmd import connection
from ksmemu.ksmd.domains import Domains
from ksmemu.ksmd.worker import Worker
from ksmemu.wire import WireError

log = logging.getLogger(__name__)

_SHARE = 4
"""Another user than who runs ksmd gets this part of its descriptors, at most: the rest is for the others."""
_HEAR_TURNS = 64
"""Messages of one worker heard in a row: more would let it keep ksmd from its work."""


class Workers:
    """Everybody who is connected. Runs in: ksmd, one thread.

    Args:
        domains: where workers are entered.
        listener: theirs to connect to; it belongs to this object.
        terms: what a worker is told when it joins.
        died: obey the death of a worker, or its leaving; nothing more is heard of it.

    Attributes:
        questions: who answers a client whose first message is a question of this name, and not a hello. The
            connection is theirs unless they raise.
        refused: told of each process that lets nobody else make its memory mergeable.
    """

    def __init__(
        self,
        domains: Domains,
        listener: socket.socket,
        terms: Mapping[str, bool],
        died: Callable[[Worker], None],
    ) -> None:
        self.questions: dict[str, Callable[[socket.socket, dict[str, object]], None]] = {}
        self.refused: Callable[[int], None]
        self._domains = domains
        self._listener = listener
        self._terms = terms
        self._died = died
        self._spare = _spare()
        self._held: list[Callable[[], None]] | None = None  # newcomers that wait for take_over()
        self._next_space = 1
        self._waiting = Counter[int]()  # who is connected and has said nothing yet, by uid
        self._epoll = select.epoll()
        self._heard: dict[int, Callable[[], None]] = {}
        self.listen_to(listener.fileno(), self._accept)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when somebody has said something."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Hear nobody any more; the domains close what belongs to workers."""
        self._listener.close()
        os.close(self._spare)
        self._epoll.close()

    # ---- hearing -----------------------------------------------------------------------------------

    def listen_to(self, fd: int, act: Callable[[], None]) -> None:
        """Call a function whenever a descriptor has something to say."""
        self._heard[fd] = act
        self._epoll.register(fd, select.EPOLLIN)

    def ignore(self, fd: int) -> None:
        """No longer; may be repeated."""
        if self._heard.pop(fd, None):
            self._epoll.unregister(fd)

    def hear(self, seconds: float) -> bool:
        """Obey what workers have said, waiting for it up to seconds; return whether anything came."""
        events = self._epoll.poll(seconds)
        acts = [(fd, self._heard.get(fd)) for fd, _ in events]
        for fd, act in acts:
            # One act may close a descriptor, and the next give its number to another worker.
            if act is not None and self._heard.get(fd) is act:
                act()
        for worker in self._domains.workers():
            if worker.outgoing:
                worker.flush()
        return bool(events)

    def hear_all(self) -> None:
        """Obey all that workers have said so far: what they advised is known before a scan begins."""
        for _ in range(_HEAR_TURNS):
            if not self.hear(0.0):
                return

    def hear_reports(self) -> None:
        """Obey what agents have reported so far, and nothing else."""
        for worker in list(self._domains.workers()):
            for _ in range(_HEAR_TURNS):
                if worker.is_lost or not worker.has_reported():
                    break
                self._report(worker)

    def settle(self, seconds: float) -> None:
        """Wait until every order is answered, as long as an answer comes every so many seconds."""
        deadline, before = time.monotonic() + seconds, 0
        while any(worker.orders and not worker.is_stalled() for worker in self._domains.workers()):
            self.hear(0.05)
            left = sum(len(worker.orders) for worker in self._domains.workers())
            if left < before:
                deadline = time.monotonic() + seconds
            elif time.monotonic() > deadline:
                return
            before = left

    def take_over(self, pids: Iterable[int], seconds: float) -> None:
        """Wait until the workers of a ksmd that died have resumed, or are dead: who is stopped resumes later.

        Newcomers wait meanwhile: the first of them would get a pool of this ksmd's own, and then nobody could
        bring the other one along.
        """
        deadline, self._held = time.monotonic() + seconds, []
        while time.monotonic() < deadline and self._are_missing(pids):
            self.hear(0.05)
        held, self._held = self._held, None
        for join in held:
            join()

    def _are_missing(self, pids: Iterable[int]) -> bool:
        resumed = {worker.pid for worker in self._domains.workers() if not worker.nr_unheard}
        return any(pid not in resumed and Path(f"/proc/{pid}").exists() for pid in pids)

    # ---- coming ------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            control, _ = self._listener.accept()
        except OSError as error:
            log.warning("a client is turned away: %s", error.strerror)
            self._turn_away()
            return
        control.setblocking(False)  # a client that does not read its answers is cut off
        _, uid = connection.peer(control)
        if not self._may_hold_more(uid):
            log.warning("a client of uid %d is turned away: %s", uid, connection.SHARE_USED)
            control.close()
            return
        self._waiting[uid] += 1
        self.listen_to(control.fileno(), functools.partial(self._join, control, uid))

    def _may_hold_more(self, uid: int) -> bool:
        """Whether a user may have another descriptor of ksmd's, and others will find some left."""
        if uid == os.geteuid():
            return True
        workers = (worker for worker in self._domains.workers() if worker.key.uid == uid)
        held = self._waiting[uid] + sum(worker.nr_descriptors() for worker in workers)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return held < soft // _SHARE

    def _turn_away(self) -> None:
        """Close the next connection with the descriptor kept for it; else it would call again at once."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._spare = _spare()

    def _join(self, control: socket.socket, uid: int) -> None:
        self.ignore(control.fileno())
        self._waiting[uid] -= 1
        try:
            body, fds = wire.receive_control(control)
        except (WireError, EOFError, OSError) as error:
            self._refuse(control, error)
            return
        admit = functools.partial(self._admit, control, body, fds)
        if self._held is not None and "hello" in body and "resumes" not in body:
            self._held.append(admit)
        else:
            admit()

    def _admit(self, control: socket.socket, body: dict[str, object], fds: list[int]) -> None:
        question = next((name for name in self.questions if name in body), None)
        try:
            if question and not fds:
                self.questions[question](control, body)
            else:
                self._welcome(control, body, fds)
        except (WireError, EOFError, OSError) as error:
            self._refuse(control, error)

    @staticmethod
    def _refuse(control: socket.socket, error: Exception) -> None:
        if not isinstance(error, EOFError):
            log.warning("a client is refused: %s", error)
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EPROTO
            connection.refuse(control, number, str(error))
        control.close()

    def _welcome(self, control: socket.socket, body: dict[str, object], fds: list[int]) -> None:
        worker = connection.join(self._domains, control, body, fds, self._terms)
        if "resumes" in body:
            self._part_with_former(worker)
        if worker.refuses:
            self.refused(worker.pid)
        connection.enter(self._domains[worker.key], worker)
        self.listen_to(worker.pidfd, functools.partial(self._lose, worker))
        self.listen_to(control.fileno(), functools.partial(self._answer, worker))
        self.listen_to(worker.order.fileno(), functools.partial(self._report, worker))

    def _part_with_former(self, worker: Worker) -> None:
        """What the books have of a worker that was lost, and is back, counts again once it has said so."""
        for former in list(self._domains.workers()):
            if former.is_same_process(worker.pid):
                self._ignore_all(former)
                worker.strange += connection.part(self._domains[former.key], former)

    def _answer(self, worker: Worker) -> None:
        domain = self._domains[worker.key]
        everywhere = self._domains.slots() if self._may_hold_more(worker.key.uid) else None
        try:
            slot = connection.answer(domain, worker, self._next_space, everywhere)
        except connection.NoRoomError as refusal:
            log.info("pid %d: %s", worker.pid, refusal)
        except EOFError:
            self.ignore(worker.control.fileno())
            self._leave(worker)
        except (WireError, OSError) as error:
            self._cut_off(worker, error)
        else:
            self._next_space += slot is not None
            if worker.refuses:
                self.refused(worker.pid)

    def _report(self, worker: Worker) -> None:
        try:
            may_hold = functools.partial(self._may_hold_more, worker.key.uid)
            connection.report(self._domains[worker.key], worker, may_hold)
        except BlockingIOError:
            return
        except (EOFError, ConnectionResetError):
            worker.is_lost = True
            self.ignore(worker.order.fileno())
            self._leave(worker)
        except (WireError, OSError) as error:
            self._cut_off(worker, error)

    # ---- going -------------------------------------------------------------------------------------

    def _leave(self, worker: Worker) -> None:
        """A worker without spaces and sockets has detached; one with spaces may still map frames."""
        fds = (worker.order.fileno(), worker.control.fileno())
        if not worker.slots and not any(fd in self._heard for fd in fds):
            self._lose(worker)

    def _cut_off(self, worker: Worker, error: Exception) -> None:
        """Hear nothing more from a worker that talks garbage. Its frames stay until it is dead."""
        log.warning("pid %d is cut off: %s", worker.pid, error)
        for sock in (worker.order, worker.control):
            self.ignore(sock.fileno())
            with contextlib.suppress(OSError):  # it was connected to nobody
                sock.shutdown(socket.SHUT_RDWR)
        worker.is_lost = True

    def _lose(self, worker: Worker) -> None:
        self._ignore_all(worker)
        self._died(worker)

    def _ignore_all(self, worker: Worker) -> None:
        for fd in (worker.pidfd, worker.order.fileno(), worker.control.fileno()):
            self.ignore(fd)


def _spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
