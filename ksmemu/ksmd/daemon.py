"""The loop: run, stop, unmerge, sleep; accept workers, hear them, lose them.

One thread, one epoll for what the outside wants (control files, new workers, signals) and one for what
workers say. Waiting for outcomes listens to the second only, so no store is obeyed halfway through a scan.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable

from ksmemu import wire
from ksmemu.control.procfs import ProcDirectory
from ksmemu.control.sysfs import ControlDirectory
from ksmemu.instance import Instance
from ksmemu.ksmd import connection, rehome
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.harvest import ChecksumTracker, WriteTracker
from ksmemu.ksmd.merge_pid import MergePid
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.scan import Scan
from ksmemu.ksmd.tuning import Tuning
from ksmemu.ksmd.worker import STALLED_SECONDS, Worker
from ksmemu.wire import WireError

log = logging.getLogger(__name__)

STOP, MERGE, UNMERGE = 0, 1, 2
_UNMERGE_SECONDS = 30.0
_UNMERGE_TRIES = 3
"""An order that crosses a change of advice comes back as stale, with the epoch that the next one needs."""
_HEAR_TURNS = 64
"""Messages of one worker heard in a row: more would let it keep ksmd from its work."""
_LONGEST_WAIT_SECONDS = 86400.0
"""epoll counts milliseconds in an int, sleep_millisecs may be longer than that: look again once a day."""


class Daemon:
    """One ksmd. Runs in: its own process, on the main thread; nothing here is shared.

    Args:
        instance: claimed by the caller.
        tracks: learn of writes from the kernel; otherwise compare checksums.
    """

    def __init__(self, instance: Instance, *, tracks: bool) -> None:
        self._domain = Domain()
        self._tracks = tracks
        tracker = WriteTracker() if tracks else ChecksumTracker(self._domain.fingerprints)
        self._scan = Scan(self._domain, tracker)
        self._tuning = Tuning(self._domain, self._scan, lambda: self._control)
        self._control = ControlDirectory(instance, self.store)
        self._proc = ProcDirectory(instance.proc)
        self._listener = instance.listen()
        self._spare = _spare()
        self._run = STOP
        self._next_space = 1
        self._next_batch = 0.0
        self._is_stopping = False
        self._outside = select.epoll()
        self._workers = select.epoll()
        self._heard: dict[int, Callable[[], None]] = {}
        self._wanted: dict[int, Callable[[], None]] = {}
        self._merge_pid = MergePid(self._listen_to, self._ignore)
        self._listen_to(self._listener.fileno(), self._accept)
        self._want(self._control.fileno(), self._control.read_events)
        self._want(self._workers.fileno(), self._hear_all)

    # ---- the loop ----------------------------------------------------------------------------------

    def serve(self) -> None:
        """Run until stop(). Sleeps without a wake-up while there is nothing to scan."""
        while not self._is_stopping:
            for fd, _ in self._outside.poll(self._timeout()):
                if fd in self._wanted:
                    self._wanted[fd]()
            if self._is_scanning() and time.monotonic() >= self._next_batch:
                self._batch(self._control["pages_to_scan"])
                self._next_batch = time.monotonic() + self._control["sleep_millisecs"] / 1000
            self._publish()

    def stop(self) -> None:
        """End serve() after what it is doing."""
        self._is_stopping = True

    def stop_on(self, fd: int) -> None:
        """End serve() when fd becomes readable or its other end closes."""
        self._want(fd, self.stop)

    def close(self) -> None:
        """Let go of everything; what is merged stays merged in the workers."""
        self._merge_pid.close()
        self._listener.close()
        os.close(self._spare)
        self._control.close()
        self._outside.close()
        self._workers.close()
        self._domain.close()

    def _is_scanning(self) -> bool:
        return self._run == MERGE and bool(self._domain.slots)

    def _timeout(self) -> float | None:
        if not self._is_scanning():
            return None
        return min(max(self._next_batch - time.monotonic(), 0.0), _LONGEST_WAIT_SECONDS)

    def _want(self, fd: int, act: Callable[[], None]) -> None:
        self._wanted[fd] = act
        self._outside.register(fd, select.EPOLLIN)

    def _publish(self) -> None:
        self._proc.publish(self._domain.processes())
        self._control.publish(self._domain.counters(), self._domain.own_counters())

    # ---- scanning ----------------------------------------------------------------------------------

    def _batch(self, budget: int) -> None:
        """Scan budget pages, or to the end of the full scan; workers are heard in between."""
        while budget > 0 and self._domain.slots:
            passed, ended = self._scan.step(budget)
            budget -= passed
            if ended:
                self._end_scan()
                return
            self._hear(0.0)

    def _end_scan(self) -> None:
        self._scan.end()
        self._settle(STALLED_SECONDS)
        stats = self._domain.stats
        stats.pages_over_budget, stats.over_budget_so_far = stats.over_budget_so_far, 0
        self._domain.count_chains()
        self._tuning.end_scan()
        self._publish()
        stats.full_scans += 1

    def _settle(self, seconds: float) -> None:
        """Wait until every order is answered, as long as an answer comes every so many seconds."""
        deadline, before = time.monotonic() + seconds, 0
        while any(worker.orders and not worker.is_stalled() for worker in self._domain.workers):
            self._hear(0.05)
            left = sum(len(worker.orders) for worker in self._domain.workers)
            if left < before:
                deadline = time.monotonic() + seconds
            elif time.monotonic() > deadline:
                return
            before = left

    # ---- stores ------------------------------------------------------------------------------------

    def set(self, name: str, value: int) -> None:
        """Give a tunable its value before anybody is served."""
        self._control.store(name, value)
        self.store(name, value)

    def store(self, name: str, value: int) -> None:
        """Obey a store into a control file.

        Raises:
            OSError: refused: ENOMEM: run=2 without room, which leaves run at 0; otherwise as Tuning.store().
        """
        if name == "run":
            self._set_run(value)
        elif name == "sleep_millisecs":
            self._next_batch = 0.0
        else:
            self._tuning.store(name, value)
        self._publish()  # before the file shows that the store was obeyed

    def _set_run(self, value: int) -> None:
        if value == UNMERGE:
            try:
                self._unmerge()
            except OSError:
                self._domain.is_unmerging = False
                self._run = STOP
                self._control.store("run", STOP)
                raise
        self._run = value
        self._domain.is_unmerging = value == UNMERGE
        self._next_batch = 0.0

    def _unmerge(self) -> None:
        """Bring every page home and forget what was scanned; nothing is scanned until run is 1 again."""
        domain = self._domain
        self._hear_all()
        self._settle(_UNMERGE_SECONDS)
        for _ in range(_UNMERGE_TRIES):
            rehome.order_all(domain)
            domain.is_unmerging = True
            self._settle(_UNMERGE_SECONDS)
            if not domain.count(State.MERGED, State.ZERO):
                break
        self._scan.restart()
        domain.unstable.clear()
        for slot in domain.slots.values():
            pages = slot.rmap.tracked(0, slot.rmap.nr_pages)
            states = slot.rmap.state[pages]
            slot.rmap.move(pages[states <= State.UNSTABLE], State.NEW)
            slot.rmap.tag[pages[states <= State.UNSTABLE]] = 0
            slot.rmap.rejuvenate(pages)
        domain.count_chains()
        stopped = [worker for worker in domain.workers if worker.orders]
        if domain.count(State.MERGED, State.ZERO):
            raise OSError(errno.ENOMEM, "some pages could not be unmerged")
        if stopped:
            pids = ", ".join(str(worker.pid) for worker in stopped)
            log.warning("run=2: pid %s does not answer; it unmerges when it runs again", pids)
        domain.stats.full_scans = 0

    # ---- workers -----------------------------------------------------------------------------------

    def _hear(self, seconds: float) -> bool:
        """Obey what workers have said, waiting for it up to seconds; return whether anything came."""
        events = self._workers.poll(seconds)
        acts = [(fd, self._heard.get(fd)) for fd, _ in events]
        for fd, act in acts:
            # One act may close a descriptor, and the next give its number to another worker.
            if act is not None and self._heard.get(fd) is act:
                act()
        for worker in self._domain.workers:
            if worker.outgoing:
                worker.flush()
        return bool(events)

    def _hear_all(self) -> None:
        """Obey all that workers have said so far: what they advised is known before a scan begins."""
        for _ in range(_HEAR_TURNS):
            if not self._hear(0.0):
                return

    def _listen_to(self, fd: int, act: Callable[[], None]) -> None:
        self._heard[fd] = act
        self._workers.register(fd, select.EPOLLIN)

    def _ignore(self, fd: int) -> None:
        if self._heard.pop(fd, None):
            self._workers.unregister(fd)

    def _accept(self) -> None:
        try:
            control, _ = self._listener.accept()
        except OSError as error:
            log.warning("a client is turned away: %s", error.strerror)
            self._turn_away()
            return
        control.setblocking(False)  # a client that does not read its answers is cut off
        self._listen_to(control.fileno(), functools.partial(self._join, control))

    def _turn_away(self) -> None:
        """Close the next connection with the descriptor kept for it; else it would call again at once."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self._listener.accept()[0].close()
        self._spare = _spare()

    def _join(self, control: socket.socket) -> None:
        self._ignore(control.fileno())
        try:
            body, fds = wire.receive_control(control)
            if "merge_pid" in body and not fds:
                self._merge_pid.answer(control, body)
            else:
                self._welcome(control, body, fds)
        except (WireError, EOFError, OSError) as error:
            if not isinstance(error, EOFError):
                log.warning("a client is refused: %s", error)
                connection.refuse(control, errno.EPROTO, str(error))
            control.close()

    def _welcome(self, control: socket.socket, body: dict[str, object], fds: list[int]) -> None:
        pool = (self._domain.pool.read_only(), self._domain.pool.nr_bytes)
        worker = connection.join(control, body, fds, pool, tracks=self._tracks)
        self._domain.workers.append(worker)
        self._listen_to(worker.pidfd, functools.partial(self._reap, worker))
        self._listen_to(control.fileno(), functools.partial(self._answer, worker))
        self._listen_to(worker.order.fileno(), functools.partial(self._report, worker))

    def _answer(self, worker: Worker) -> None:
        try:
            slot = connection.answer(self._domain, worker, self._next_space)
        except connection.NoRoomError as refusal:
            log.info("pid %d: %s", worker.pid, refusal)
        except EOFError:
            self._ignore(worker.control.fileno())
            self._leave(worker)
        except (WireError, OSError) as error:
            self._cut_off(worker, error)
        else:
            self._next_space += slot is not None
            if worker.refuses:
                self._merge_pid.refused(worker.pid)

    def _report(self, worker: Worker) -> None:
        try:
            connection.report(self._domain, worker)
        except BlockingIOError:
            return
        except (EOFError, ConnectionResetError):
            worker.is_lost = True
            self._ignore(worker.order.fileno())
            self._leave(worker)
        except (WireError, OSError) as error:
            self._cut_off(worker, error)

    def _leave(self, worker: Worker) -> None:
        """A worker without spaces and sockets has detached; one with spaces may still map frames."""
        fds = (worker.order.fileno(), worker.control.fileno())
        if not worker.slots and not any(fd in self._heard for fd in fds):
            self._reap(worker)

    def _cut_off(self, worker: Worker, error: Exception) -> None:
        """Hear nothing more from a worker that talks garbage. Its frames stay until it is dead."""
        log.warning("pid %d is cut off: %s", worker.pid, error)
        for sock in (worker.order, worker.control):
            self._ignore(sock.fileno())
            with contextlib.suppress(OSError):  # it was connected to nobody
                sock.shutdown(socket.SHUT_RDWR)
        worker.is_lost = True

    def _reap(self, worker: Worker) -> None:
        for fd in (worker.pidfd, worker.order.fileno(), worker.control.fileno()):
            self._ignore(fd)
        connection.reap(self._domain, worker)
        self._domain.count_chains()
        self._publish()


def _spare() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def stop_on_signals(daemon: Daemon) -> None:
    """End serve() on SIGTERM and SIGINT, also while it sleeps."""
    read, write = socket.socketpair()
    write.setblocking(False)
    signal.set_wakeup_fd(write.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    daemon.stop_on(os.dup(read.detach()))
