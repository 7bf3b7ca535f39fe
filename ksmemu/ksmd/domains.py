"""All security domains of a ksmd: they come with their first worker and go with their last.

    Domains ─ of(key) ─▶ Domain: spaces, pool, tables, seed, counters; a Scan of its own
            ─ step() ──▶ domain after domain; a full scan is one pass over all of them

What is shown of all of them is a sum; `seen_by()` says whose figures somebody may have.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ksmemu import policy
from ksmemu.control.counters import COUNTERS, STATS
from ksmemu.control.procfs import Process
from ksmemu.control.setup import Setup
from ksmemu.control.tunables import U32_MAX
from ksmemu.domain_key import Key
from ksmemu.ksmd.checksum import new_threads
from ksmemu.ksmd.domain import Domain, Rules, Stats
from ksmemu.ksmd.events import Trace
from ksmemu.ksmd.harvest import Tracker
from ksmemu.ksmd.mm_slot import MmSlot
from ksmemu.ksmd.mmlist import Mmlist
from ksmemu.ksmd.scan import Scan
from ksmemu.ksmd.worker import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Turn:
    """A domain, and what scans it. `serial` ascends in the order in which domains came."""

    serial: int
    domain: Domain
    scan: Scan
    mmlist: Mmlist | None


class Domains:
    """Runs in: ksmd, one thread.

    Args:
        trace: where events go, when they are on.
        new_tracker: makes the tracker of a domain.
        setup: how to work.

    Attributes:
        rules: of all domains.
        trace: of all domains.
        full_scans: full scans completed, since run was 2.
    """

    def __init__(self, trace: Path, new_tracker: Callable[[Domain], Tracker], setup: Setup) -> None:
        self.rules = Rules(fills_only=setup.fills_only, is_secure=setup.secure)
        if setup.rfc2009:  # there was no limit of sharing, and every page was scanned every time
            self.rules = Rules(max_page_sharing=U32_MAX, smart_scan=False, forgets_unadvised=True)
        self.trace = Trace(trace)
        self.full_scans = 0
        self._new_tracker = new_tracker
        self._new_policy = policy.load(setup.policy)
        self._rfc2009 = setup.rfc2009
        self._threads = new_threads()
        self._turns: dict[Key, _Turn] = {}
        self._serials = itertools.count(1)
        self._serial = 0  # the cursor is at the first domain whose serial is not smaller; 0: at none yet
        self._gone = Stats()  # of the domains that have gone

    # ---- who is there ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Domain]:
        """Yield every domain."""
        return (turn.domain for turn in self._turns.values())

    def __getitem__(self, key: Key) -> Domain:
        """Return the domain of a worker."""
        return self._turns[key].domain

    def of(self, key: Key) -> Domain:
        """Return a domain; it is made for its first worker, and dropped again if none is entered.

        Raises:
            OSError: EMFILE, ENFILE, ENOMEM: there is no room for its pool.
        """
        if key not in self._turns:
            self._turns[key] = self._new(key)
            log.info("domain %s begins", key)
        return self[key]

    def _new(self, key: Key) -> _Turn:
        taken = {domain.number for domain in self}
        number = next(number for number in itertools.count() if number not in taken)
        domain = Domain(key, number, self.rules, self.trace, self._threads, self._new_policy())
        mmlist = Mmlist(domain) if self._rfc2009 else None
        return _Turn(next(self._serials), domain, Scan(domain, self._new_tracker(domain), mmlist), mmlist)

    def drop_empty(self) -> None:
        """Let go of the domains whose last worker has gone. What they have counted stays counted."""
        for key, turn in list(self._turns.items()):
            if not turn.domain.workers:
                turn.scan.restart()
                self._gone.add(turn.domain.stats)
                turn.domain.close()
                del self._turns[key]
                log.info("domain %s ends", key)

    def workers(self) -> Iterator[Worker]:
        """Yield the workers of all domains."""
        return (worker for domain in self for worker in domain.workers)

    def slots(self) -> Iterator[MmSlot]:
        """Yield the spaces of all domains."""
        return (slot for domain in self for slot in domain.slots.values())

    def died(self, worker: Worker) -> None:
        """A worker is dead, and by the rules of 2009 the scan is to find that."""
        mmlist = self._turns[worker.key].mmlist
        if mmlist is not None:
            mmlist.died(worker)

    def mmlists(self) -> Iterator[Mmlist]:
        """Yield what scans domains by the rules of 2009, if something does."""
        return (turn.mmlist for turn in self._turns.values() if turn.mmlist is not None)

    def seen_by(self, uid: int) -> list[Domain]:
        """Return the domains of which a user may know: his own, or all if he runs this ksmd or is root."""
        return [domain for domain in self if uid in (domain.key.uid, os.geteuid(), 0)]

    def close(self) -> None:
        """Let go of everything; what is merged stays merged in the workers."""
        for domain in self:
            domain.close()
        self.trace.stop()
        self._threads.shutdown()

    # ---- the full scan -----------------------------------------------------------------------------

    def step(self, budget: int) -> tuple[int, bool]:
        """Scan up to budget pages of one space of the domain whose turn it is.

        Returns:
            (pages, ended): how many pages were passed, and whether a full scan ended with them.
        """
        if self._serial == 0 and self.trace.is_on:
            self.trace.start_scan(self.full_scans, self.nr_rmap_items())
        turn = self._next_turn()
        if turn is None:
            self._serial = 0
            return 0, True
        self._serial = turn.serial
        self._limit_frames(turn.domain)
        passed, ended = turn.scan.step(budget)
        if ended:
            turn.scan.end()
            self._serial += 1
        if ended and self._next_turn() is None:
            self._serial = 0
        return passed, self._serial == 0

    def _next_turn(self) -> _Turn | None:
        return next((turn for turn in self._turns.values() if turn.serial >= self._serial), None)

    def _limit_frames(self, domain: Domain) -> None:
        """Leave a domain what the others have not used of max_frames."""
        pool = domain.pool
        others = sum(other.pool.nr_used for other in self) - pool.nr_used
        pool.max_used = max(self.rules.max_frames - others, 0) if self.rules.max_frames else pool.nr_frames

    def end_scan(self) -> None:
        """A full scan has ended, and every outcome that was waited for is entered."""
        for domain in self:
            domain.end_scan()
        if self.trace.is_on:
            self.trace.stop_scan(self.full_scans, self.nr_rmap_items())
        self.full_scans += 1
        for mmlist in self.mmlists():
            mmlist.start_scan()

    def restart(self) -> None:
        """Begin at the first domain again, with nothing found."""
        self._serial = 0
        for turn in self._turns.values():
            turn.scan.restart()

    def forget(self) -> None:
        """Forget every fingerprint: pages that are not merged are looked at anew."""
        self.restart()
        for turn in self._turns.values():
            turn.scan.forget()

    # ---- figures -----------------------------------------------------------------------------------

    def record(self, *, on: bool) -> None:
        """Turn events on, into an empty trace, or off.

        Raises:
            OSError: there is no place for a trace; events are off.
        """
        if not on:
            self.trace.stop()
        elif not self.trace.is_on:
            self.trace.start()
            for domain in self:
                domain.events.start(domain.shown())

    def nr_rmap_items(self) -> int:
        """Return for how many pages the kernel would have an rmap_item."""
        return sum(domain.nr_rmap_items() for domain in self)

    def sum(self, by_domain: Iterable[Mapping[str, int]]) -> dict[str, int]:
        """Return every counter over all domains, of which these are, and over those that have gone."""
        found = dict.fromkeys((*COUNTERS, *STATS), 0)
        for counters in (*by_domain, self._gone.shown()):
            for name, value in counters.items():
                found[name] = max(found[name], value) if name == "freeze_max_ns" else found[name] + value
        found["full_scans"] = self.full_scans
        return found

    def processes(self) -> Mapping[int, Process]:
        """Return the figures of each process that has spaces, by pid; it may be in several domains."""
        found: dict[int, Process] = {}
        for pid, process in _figures(self):
            found[pid] = found[pid] + process if pid in found else process
        return found


def _figures(domains: Iterable[Domain]) -> Iterator[tuple[int, Process]]:
    return (figures for domain in domains for figures in domain.processes())
