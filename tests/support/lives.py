"""What a client says in its life, decoded from bytes, said to the books of ksmd in this process.

hypothesis makes the bytes in the suite (tests/hostile/test_fuzz.py), atheris as long as one likes (fuzz.py).
A life begins as that of a newcomer, or of a worker that another ksmd had; and goes on until the client talks
garbage, or the bytes end. Then nothing of it may be left.
"""

import contextlib
import os
import socket
import struct
from collections import Counter
from pathlib import Path

import numpy as np

from ksmemu import wire
from ksmemu.control.setup import Setup
from ksmemu.ksmd import connection, holders, rehome, takeover
from ksmemu.ksmd.connection import NoRoomError
from ksmemu.ksmd.domains import Domains
from ksmemu.ksmd.harvest import WriteTracker
from ksmemu.ksmd.pool import Pool
from ksmemu.ksmd.rmap import HOLDS_FRAME, NO_FRAME, State
from ksmemu.wire import OrderKind, ReportKind, WireError
from tests.support.pages import ZEROS
from tests.support.procmaps import PAGE

NR_HALF = 31
NR_PAGES = 2 * NR_HALF + 3
NR_FRAMES = 13
START = 0x10000000
_HALF = os.urandom(NR_HALF * PAGE)
CONTENT = _HALF * 2 + ZEROS * 3
"""Of the space: two equal halves, and zeros."""
CUT_OFF = (WireError, NoRoomError, EOFError, OSError)
"""What ends a connection, as workers.py has it, and nothing else."""
ALL_HEARD = {kind.name for kinds in (ReportKind, OrderKind) for kind in kinds}


class Lives:
    """The books of one ksmd; each call is the life of one client.

    Attributes:
        heard: how many reports were entered of each kind, and how many outcomes of each kind of order.
    """

    def __init__(self, **setup):
        self.domains = Domains(Path("no trace"), lambda _: WriteTracker(), Setup(**setup))
        self.heard = Counter()

    def __call__(self, data):
        data = bytearray(data)
        with contextlib.ExitStack() as stack:
            client = _Client(self.domains, self.heard, stack, lambda: data.pop() if data else 0)
            with contextlib.suppress(*CUT_OFF):
                client.begin()
                while data:
                    client.act()
            domain = self.domains[client.worker.key]
            self._references_are_right(domain)
            stack.close()  # as the kernel does at its death
            connection.reap(domain, client.worker)
            self._nothing_is_left(domain)
        self.domains.drop_empty()
        self.domains.rules.is_unmerging = False
        assert not list(self.domains)

    @staticmethod
    def _references_are_right(domain):
        """I2 in the books: a reference for each page that holds a frame, and for nothing else."""
        tags = [slot.rmap.tag[np.isin(slot.rmap.state, HOLDS_FRAME)] for slot in domain.slots.values()]
        tags = np.concatenate([*tags, np.empty(0, dtype=np.uint32)])
        pool = domain.pool
        found = np.bincount(tags[tags != NO_FRAME], minlength=pool._high)
        rungs = pool.ladders.bases(np.arange(pool._high)) >= 0
        assert (pool.refs[: pool._high] == found + rungs).all(), "references"

    @staticmethod
    def _nothing_is_left(domain):
        pool = domain.pool
        assert not domain.slots
        assert not domain.workers
        assert not domain.ancestors
        assert pool.nr_used == pool.nr_refs == pool.nr_orphans == pool.blocks_bytes() == 0
        assert not pool.refs[: pool._high].any()
        assert not pool.pending[: pool._high].any()

    def close(self):
        self.domains.close()


class _Client:
    """A process with one space, with whom a test plays both parts."""

    def __init__(self, domains, heard, stack, take):
        self._domains, self._heard, self._stack, self._take = domains, heard, stack, take
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        order, their_order = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control, self._order = stack.enter_context(control), stack.enter_context(order)
        theirs.setblocking(False)
        hello, fds = {"hello": wire.VERSION}, (their_order.fileno(), self._keep(_pagemap()))
        if take() % 2:
            pool, holder = _former_pool()
            hello |= {"resumes": 1 + take() % 2, "holder": holder}
            fds += (self._keep(pool),)
        with their_order:
            wire.send_control(control, hello, fds)
        self.worker = connection.join(domains, theirs, *wire.receive_control(theirs), {})
        self._domain = domains[self.worker.key]
        connection.enter(self._domain, self.worker)
        self._own = self._new_own(CONTENT)
        self._nr_asked = 0

    def begin(self):
        """Register the space, and mostly advise all of it; say what it shows already."""
        body = b'{"space": {"id": 1, "start": %d, "size": %d}}' % (START, len(CONTENT))
        self.ask(body, self._own)
        if self._take() % 8:
            self.report(ReportKind.ADVISED, 1, 0, [(0, NR_PAGES, 0)])
        if self.worker.nr_unheard:
            self._resume()

    def _keep(self, fd):
        """Return a descriptor that is closed at the end of the process."""
        self._stack.callback(os.close, fd)
        return fd

    def _new_own(self, content=b""):
        own = self._keep(os.memfd_create("own"))
        os.truncate(own, len(CONTENT))
        os.pwrite(own, content, 0)
        return own

    # ---- what it says ------------------------------------------------------------------------------

    def act(self):
        """Do what the next byte says, or let ksmd do something."""
        acts = [
            *[self._scan] * 6,
            *[self._answer_an_order] * 5,
            *[self._report_any] * 3,
            *[self._resume] * 2,
            self._fork,
            self._inherit,
            self._name_an_ancestor,
            self._ask_anything,
            self._say_anything,
            self._write,
            self._unmerge,
        ]
        acts[self._take() % len(acts)]()

    def ask(self, body, *fds):
        """Send a request on the control socket, and let ksmd answer it."""
        socket.send_fds(self._control, [body], fds)
        self._nr_asked += 1
        connection.answer(self._domain, self.worker, self._nr_asked, self._domains.slots())

    def report(self, kind, space, order_id, spans, *fds):
        tail = b"".join(struct.pack("=QQiI", *(*span, 0)[:4]) for span in spans)
        self.say(wire.REPORT.pack(kind, space, order_id, 0, len(spans), 0) + tail, *fds)
        self._heard[ReportKind(kind).name] += 1

    def say(self, message, *fds):
        """Send a report, and let ksmd enter it."""
        socket.send_fds(self._order, [message], fds)
        connection.report(self._domain, self.worker, lambda: True)

    def _bytes(self):
        return bytes(self._take() for _ in range(self._take()))

    def _spans(self, most_value, most_pages=NR_HALF + 1):
        """Return spans that mostly ascend, and mostly lie in the space."""
        spans, page = [], 0
        for _ in range(self._take() % 4):
            page = max(page + self._take() % NR_HALF - 2, 0)
            nr = self._take() % most_pages
            spans.append((page, nr, self._take() % 3, self._take() % most_value))
            page += nr
        return spans

    def _say_anything(self):
        self.say(self._bytes())

    def _ask_anything(self):
        body = self._bytes()
        self.ask(body, *[self._own][: self._take() % 2])

    def _report_any(self):
        kind, space = self._take() % (len(ReportKind) + 2), 1 + self._take() % 7 // 6
        self.report(kind, space, self._take(), self._spans(256))

    def _answer_an_order(self):
        """Tell an outcome that fits the order: done as far as one byte says, and refused with another."""
        for order_id, order in list(self.worker.orders.items())[:1]:
            nr, done, error = len(order.pages), self._take(), self._take() % 40
            done = min(done, nr)
            spans = [(0, done, 0), (done, nr - done, error)]
            self.report(ReportKind.OUTCOME, order.slot.number, order_id, spans)
            self._heard[order.kind.name] += 1

    def _resume(self):
        """Say what is mapped, and at times that this is all."""
        spans = self._spans(NR_FRAMES, 7)
        if self._take() % 5 == 0:
            spans = [(page, nr, 0, NO_FRAME) for page, nr, _, _ in spans]
        self.report(ReportKind.MAPPED, 1, 0, spans)
        if self._take() % 2:
            self.report(ReportKind.RESUMED, 1, 0, [])

    def _fork(self):
        """The own object is an ancestor, and there is a new one; now and then the old one as well."""
        ancestor, holder = self._named(self._own)
        self._own = self._new_own() if self._take() % 5 else self._own
        number = self._take() % 3
        self.report(ReportKind.FORKED, 1, holder, [(0, NR_PAGES, 0, number)], self._own, ancestor)
        self._inherit()

    def _inherit(self):
        self.report(ReportKind.INHERITED, 1, 0, self._spans(3))
        if self._take() % 8:
            self.report(ReportKind.RESUMED, 1, 0, [])

    def _name_an_ancestor(self):
        ancestor, holder = self._named(self._new_own(CONTENT))
        said = (self._take() % 2 + 1, self._take() % 3, holder + self._take() % 9 // 8)
        body = b'{"ancestor": {"space": %d, "number": %d, "holder": %d}}' % said
        self.ask(body, ancestor)

    def _named(self, own):
        """Return a descriptor for what shall be an ancestor, and what the process is called there."""
        ancestor = self._keep(os.open(f"/proc/self/fd/{own}", os.O_RDWR | os.O_CLOEXEC))
        return ancestor, holders.name(ancestor)

    # ---- what ksmd does meanwhile --------------------------------------------------------------------

    def _scan(self):
        """As daemon.py does it, and waits for no answer."""
        _, ended = self._domains.step(1000)
        if ended:
            rehome.order_unheld(self._domain)
            takeover.drop_orphans(self._domain)
            self._domains.end_scan()

    def _write(self):
        """The scan finds merged pages that were written, here without a look at the pagemap."""
        first, nr = self._take() % NR_PAGES, self._take()
        for slot in self.worker.slots:
            states = slot.rmap.state[first : first + nr]
            rehome.renew(self._domain, slot, first + np.flatnonzero(states == State.MERGED))

    def _unmerge(self):
        """run=2, which finds the worker stopped, and soon run=1."""
        rehome.order_all([self._domain])
        self._domains.rules.is_unmerging = bool(self._take() % 2)
        self._domains.restart()
        self._domain.begin_anew()


def _pagemap():
    return os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)


def _former_pool():
    """Return what a worker has of the pool of a ksmd that died: a descriptor, and a name for itself."""
    pool = Pool()
    os.pwrite(pool._fd, _HALF[: NR_FRAMES * PAGE], 0)
    given = pool.give()
    pool.close()
    return given
