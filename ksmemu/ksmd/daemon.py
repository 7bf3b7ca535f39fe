"""The loop: run, stop, unmerge, sleep.

One thread. It waits for what the outside wants: control files, signals, and all that workers say, who have an
epoll of their own (workers.py).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable

from ksmemu.control.domain_files import DomainFiles
from ksmemu.control.files import LINUX, RFC_2009
from ksmemu.control.mounted import MountedFiles
from ksmemu.control.plain import PlainFiles
from ksmemu.control.procfs import ProcDirectory
from ksmemu.control.setup import Setup
from ksmemu.control.sysfs import ControlDirectory
from ksmemu.instance import Instance
from ksmemu.ksmd import connection, mmlist, page_map, question, rehome, takeover
from ksmemu.ksmd.domain import Domain
from ksmemu.ksmd.domains import Domains
from ksmemu.ksmd.figures import figures
from ksmemu.ksmd.harvest import ChecksumTracker, Tracker, WriteTracker
from ksmemu.ksmd.merge_pid import MergePid
from ksmemu.ksmd.rmap import State
from ksmemu.ksmd.tracing import Tracing
from ksmemu.ksmd.tuning import Tuning
from ksmemu.ksmd.worker import STALLED_SECONDS, Worker
from ksmemu.ksmd.workers import Workers

log = logging.getLogger(__name__)

STOP, MERGE, UNMERGE = 0, 1, 2
_UNMERGE_SECONDS = 30.0
_UNMERGE_TRIES = 3
"""An order that crosses a change of advice comes back as stale, with the epoch that the next one needs."""
_ASK_SECONDS = 1.0
"""A process that was told to unmerge and has not even asked by then is stopped, or busy in C code."""
_TAKEOVER_SECONDS = 1.0
"""A worker resumes as soon as it sees the socket; one that is stopped resumes later."""
_LONGEST_WAIT_SECONDS = 86400.0
"""epoll counts milliseconds in an int, sleep_millisecs may be longer than that: look again once a day."""


class Daemon:
    """One ksmd. Runs in: its own process, on the main thread; nothing here is shared.

    Args:
        instance: claimed by the caller.
        tracks: learn of writes from the kernel; otherwise compare checksums.
        setup: how to work.
    Raises:
        KernelLacksError: there is no FUSE.
        OSError: there is no place for the events.
    """

    def __init__(self, instance: Instance, *, setup: Setup, tracks: bool) -> None:
        new_tracker = _writes if tracks else _checksums
        self._domains = Domains(instance.tracing / "trace", new_tracker, setup)
        self._rfc2009 = setup.rfc2009
        self._files = RFC_2009 if setup.rfc2009 else LINUX
        self._tuning = Tuning(self._domains, lambda: self._control)
        folder = instance.values if setup.fuse else instance.control
        self._control = ControlDirectory(folder, instance.stats, self._files, self.store)
        self._server = MountedFiles(self._control, instance) if setup.fuse else PlainFiles(self._control)
        self._proc = ProcDirectory(instance.proc)
        self._by_domain = DomainFiles(instance.stats / "domains")
        self._tracing = Tracing(instance.tracing, self._domains)
        self._run = STOP
        self._began = time.monotonic()
        self._next_batch = 0.0
        self._is_stopping = False
        self._outside = select.epoll()
        self._wanted: dict[int, Callable[[], None]] = {}
        terms = {"tracks": tracks, "rfc2009": setup.rfc2009, "secure": setup.secure}
        self._workers = Workers(self._domains, instance.listen(all_users=setup.all_users), terms, self._reap)
        self._merge_pid = MergePid(self._workers.listen_to, self._workers.ignore, all_users=setup.all_users)
        self._workers.refused = self._merge_pid.refused
        self._workers.questions |= {
            "merge_pid": self._merge_pid.answer,
            "explain": self._explain,
            "figures": self._figures,
            "pages": self._page_maps,
        }
        self._want(self._server.fileno(), self._server.read_events)
        self._want(self._tracing.fileno(), self._tracing.read_events)
        if setup.events:
            self._tracing.store(1)
        self._want(self._workers.fileno(), self._workers.hear_all)

    def take_over(self, pids: Iterable[int]) -> None:
        """Go on with the workers of a ksmd that died, of which these are the pids. Once, before serve()."""
        self._workers.take_over(pids, _TAKEOVER_SECONDS)
        self._publish()

    # ---- the loop ----------------------------------------------------------------------------------

    def serve(self) -> None:
        """Run until stop(). Sleeps without a wake-up while there is nothing to scan."""
        while not self._is_stopping:
            for fd, _ in self._outside.poll(self._timeout()):
                if fd in self._wanted:
                    self._wanted[fd]()
            if self._is_scanning() and time.monotonic() >= self._next_batch:
                self._batch(self._control["pages_to_scan"])
                self._next_batch = time.monotonic() + self._sleep_seconds()
            self._domains.drop_empty()
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
        self._server.close()
        self._tracing.close()
        self._control.close()
        self._by_domain.close()
        self._outside.close()
        self._workers.close()
        self._domains.close()

    def _is_scanning(self) -> bool:
        """Whether there is something to scan; in 2009 that was any process that had ever advised."""
        return self._run == MERGE and any(
            self._rfc2009 or len(slot.advised) for slot in self._domains.slots()
        )

    def _sleep_seconds(self) -> float:
        if self._rfc2009:
            return self._control["sleep"] / 1e6
        return self._control["sleep_millisecs"] / 1e3

    def _timeout(self) -> float | None:
        if not self._is_scanning():
            return None
        return min(max(self._next_batch - time.monotonic(), 0.0), _LONGEST_WAIT_SECONDS)

    def _want(self, fd: int, act: Callable[[], None]) -> None:
        self._wanted[fd] = act
        self._outside.register(fd, select.EPOLLIN)

    def _publish(self) -> None:
        self._proc.publish(self._domains.processes())
        self._tracing.publish()
        by_domain = {str(domain.key): domain.counters() for domain in self._domains}
        self._by_domain.publish(by_domain)
        counters = self._domains.sum(by_domain.values())
        if self._rfc2009:
            counters = mmlist.renamed(counters)
        else:
            for name in self._files.actions:
                self._control.show(name, self._merge_pid.show())
        self._control.publish(counters)

    # ---- scanning ----------------------------------------------------------------------------------

    def _batch(self, budget: int) -> None:
        """Scan budget pages, or to the end of the full scan; workers are heard in between."""
        while budget > 0 and any(self._domains.slots()):
            passed, ended = self._domains.step(budget)
            budget -= passed
            if ended:
                self._end_scan()
                return
            self._workers.hear(0.0)

    def _end_scan(self) -> None:
        self._workers.settle(STALLED_SECONDS)
        for domain in self._domains:
            rehome.order_unheld(domain)
        self._workers.settle(STALLED_SECONDS)
        self._tuning.end_scan()
        for domain in self._domains:
            takeover.drop_orphans(domain)
        self._domains.end_scan()

    # ---- stores ------------------------------------------------------------------------------------

    def set(self, name: str, value: int) -> None:
        """Give a tunable its value before anybody is served."""
        self._control.store(name, self._files.tunables[name].word(value))

    def store(self, name: str, value: int) -> None:
        """Obey a store into a control file; one of the value in force does nothing, but for waking ksmd.

        Raises:
            OSError: refused: ENOMEM: run=2 without room, which leaves run at 0; otherwise as Tuning.store().
        """
        if name == "run":
            self._set_run(value)
        elif name in ("sleep_millisecs", "sleep"):
            self._next_batch = 0.0
        elif name == "merge_pid":
            self._merge_pid.merge(value)
        elif name == "unmerge_pid":
            self._unmerge_pid(value)
        else:
            self._tuning.store(name, value)
        self._publish()  # before the file shows that the store was obeyed

    def _set_run(self, value: int) -> None:
        shown = value
        if self._rfc2009 and value == STOP:
            for mmlist in self._domains.mmlists():
                mmlist.drop_dead()
            value = UNMERGE
        if value == self._run:
            return
        if value == UNMERGE:
            self._control.set("run", shown)  # as in the kernel, before it is done
            try:
                self._unmerge()
            except OSError:
                self._domains.rules.is_unmerging = False
                self._run = STOP
                self._control.set("run", STOP)
                raise
        self._run = value
        self._domains.rules.is_unmerging = value == UNMERGE
        self._next_batch = 0.0

    def _unmerge_pid(self, pid: int) -> None:
        """Return when a process has unmerged, or does not answer: then it unmerges when it runs again."""
        self._merge_pid.unmerge(pid)
        since = time.monotonic()
        while self._merge_pid.owes(pid):
            self._workers.hear(0.05)
            seconds = _UNMERGE_SECONDS if self._merge_pid.is_obeying(pid) else _ASK_SECONDS
            if time.monotonic() - since > seconds:
                break
        if self._merge_pid.owes(pid):
            log.warning("unmerge_pid: pid %d does not answer; it unmerges when it runs again", pid)

    def _unmerge(self) -> None:
        """Bring every page home and forget what was scanned; nothing is scanned until run is 1 again."""
        domains = list(self._domains)
        self._workers.hear_all()
        self._workers.settle(_UNMERGE_SECONDS)
        for _ in range(_UNMERGE_TRIES):
            rehome.order_all(domains)
            self._domains.rules.is_unmerging = True
            self._workers.settle(_UNMERGE_SECONDS)
            if not any(domain.count(State.MERGED, State.ZERO) for domain in domains):
                break
        self._domains.restart()
        for domain in domains:
            domain.begin_anew()
        stopped = [worker for worker in self._domains.workers() if worker.orders]
        if any(domain.count(State.MERGED, State.ZERO) for domain in domains):
            raise OSError(errno.ENOMEM, "some pages could not be unmerged")
        if stopped:
            pids = ", ".join(str(worker.pid) for worker in stopped)
            log.warning("run=2: pid %s does not answer; it unmerges when it runs again", pids)
        self._domains.full_scans = 0

    # ---- workers -----------------------------------------------------------------------------------

    def _reap(self, worker: Worker) -> None:
        """A worker is gone; in 2009 its memory was held until the scan came by."""
        if self._rfc2009 and worker.slots and self._is_scanning():
            worker.is_lost = True
            self._domains.died(worker)
            return
        domain = self._domains[worker.key]
        connection.reap(domain, worker)
        domain.count_chains()
        if domain.workers:  # otherwise it is dropped first, at the end of this turn of the loop
            self._publish()

    def _explain(self, control: socket.socket, body: dict[str, object]) -> None:
        self._workers.hear_reports()  # so that whoever asks after an advice is told of what it changed
        stopped = f"run={self._control['run']}" if self._run != MERGE else None
        if stopped is None and not self._control["pages_to_scan"]:
            stopped = "pages_to_scan=0"
        try:
            question.answer(self._seen_by(control), control, body, stopped)
        except OSError as error:
            connection.refuse(control, error.errno or errno.EIO, error.strerror or str(error))
        control.close()

    def _figures(self, control: socket.socket, body: dict[str, object]) -> None:
        """Tell a user the figures of his own domains."""
        found = figures(self._seen_by(control), body, self._domains.full_scans, self._began)
        try:
            question.send(control, json.dumps(found).encode())
        except OSError as error:
            connection.refuse(control, error.errno or errno.EIO, error.strerror or str(error))
        control.close()

    def _page_maps(self, control: socket.socket, body: dict[str, object]) -> None:
        """Tell a user how the pages of his own domains look."""
        self._workers.hear_reports()
        try:
            question.send(control, page_map.answer(self._seen_by(control), body))
        except OSError as error:
            connection.refuse(control, error.errno or errno.EIO, error.strerror or str(error))
        control.close()

    def _seen_by(self, control: socket.socket) -> list[Domain]:
        """Return the domains of which whoever asks may know."""
        _, uid = connection.peer(control)
        return self._domains.seen_by(uid)


def _writes(_domain: Domain) -> Tracker:
    return WriteTracker()


def _checksums(domain: Domain) -> Tracker:
    return ChecksumTracker(domain.fingerprints)


def stop_on_signals(daemon: Daemon) -> None:
    """End serve() on SIGTERM and SIGINT, also while it sleeps."""
    read, write = socket.socketpair()
    write.setblocking(False)
    signal.set_wakeup_fd(write.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    daemon.stop_on(os.dup(read.detach()))
