"""An agent whose ksmd is the test: it holds the other end of the order socket, and a writable pool."""

import contextlib
import ctypes
import itertools
import os
import select
import socket

import numpy as np

from ksmemu import _core, wire
from ksmemu.wire import OrderKind
from tests.support.procmaps import PAGE

SPACE = 5
ZERO = wire.FRAME_ZERO
_ANSWER_SECONDS = 20.0


class Joined:
    """One space of some pages in an agent of this process.

    Attributes: own, pagemap: duplicates of the agent's. pool: writable. order: ksmd's end of the socket.
    """

    def __init__(self, nr_pages, nr_frames, *, tracks, secure, directory):
        self.nr_pages, self.nr_frames = nr_pages, nr_frames
        self.own = os.memfd_create("own")
        os.truncate(self.own, nr_pages * PAGE)
        self.pool = os.memfd_create("pool")
        os.truncate(self.pool, nr_frames * PAGE)
        self.pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        self.start = _core.reserve(nr_pages * PAGE)
        self.order, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_only = os.open(f"/proc/self/fd/{self.pool}", os.O_RDONLY)
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.agent = _core.Agent(
            control=control.detach(),
            order=theirs.detach(),
            pool=read_only,
            pool_bytes=nr_frames * PAGE,
            held=os.dup(read_only),
            holder=1,
            pagemap=os.dup(self.pagemap),
            directory=str(directory),
            label="",
            tracks=tracks,
            rfc2009=False,
            secure=secure,
        )
        self.agent.add_space(SPACE, self.start, nr_pages * PAGE, 0, os.dup(self.own))
        self.epoch = 0
        self.is_removed = False

    def close(self):
        self.agent.close()
        self.order.close()
        self.control.close()
        for fd in (self.own, self.pool, self.pagemap):
            os.close(fd)
        if not self.is_removed:
            _core.unreserve(self.start, self.nr_pages * PAGE)

    def remove(self):
        """Remove the space; its addresses are nobody's then."""
        self.agent.remove_space(SPACE)
        self.is_removed = True

    # ---- memory ----------------------------------------------------------------------------------

    def address(self, page):
        return self.start + page * PAGE

    def map(self, first=0, last=None):
        """Put ordinary memory at the pages [first, last)."""
        last = self.nr_pages if last is None else last
        _core.map_ordinary(self.address(first), (last - first) * PAGE)

    def view(self, first=0, nr=1):
        return memoryview(_core.Memory(self.address(first), nr * PAGE, None))

    def write(self, page, data):
        self.view(page)[: len(data)] = data

    def read(self, page):
        return bytes(self.view(page))

    def object_holds(self, page):
        """Return what the own object itself holds: that of now, after forks another one."""
        own = self.agent.own(SPACE)
        try:
            return os.pread(own, PAGE, page * PAGE)
        finally:
            os.close(own)

    def pool_holds(self, frame):
        return os.pread(self.pool, PAGE, frame * PAGE)

    def discard(self, page):
        """Throw the page's private copy away, as madvise(MADV_DONTNEED) does."""
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.madvise(ctypes.c_void_p(self.address(page)), ctypes.c_size_t(PAGE), 4) == 0

    def blocks_bytes(self):
        return os.fstat(self.own).st_blocks * 512

    def fill_frame(self, frame, data):
        os.pwrite(self.pool, data, frame * PAGE)

    # ---- advice ----------------------------------------------------------------------------------

    def ranges(self, *parts):
        bounds = [(self.address(first), self.address(last)) for first, last in parts]
        return np.array(bounds, dtype=np.uint64).tobytes()

    def protect(self, first, last, prot, *, at=None):
        """Forbid the pages [first, last) what prot leaves out, and nothing elsewhere.

        `at`: where the application divided that, by two calls.
        """
        bounds = [self.address(page) for page in (first, at, last) if page is not None]
        parts = [(start, end, prot) for start, end in itertools.pairwise(bounds)]
        told = np.array(parts, np.uint64).tobytes()
        self.agent.protect(SPACE, bounds[0], bounds[-1], prot, told)

    def advise(self, first=0, last=None, adopt=True):
        """Advise [first, last), the only mergeable range; the report is taken off the socket."""
        last = self.nr_pages if last is None else last
        ranges = self.ranges((first, last))
        done = self.agent.advise(SPACE, self.address(first), self.address(last), adopt, ranges)
        assert done == (self.address(last), 0)
        return self.report()

    def harvest(self):
        """Return the pages written since the last harvest, by number."""
        return self._pages(_core.harvest(self.pagemap, self.start, self.address(self.nr_pages)))

    def broken(self, first, last):
        """Return the private copies in [first, last), all of it merged.

        Elsewhere the kernel's mark for "armed, never touched" passes for a page that was swapped out.
        """
        return self._pages(_core.find_private(self.pagemap, self.address(first), self.address(last)))

    def _pages(self, found):
        bounds = (np.frombuffer(found, np.int64).reshape(-1, 2) - self.start) // PAGE
        return [page for low, high in bounds.tolist() for page in range(low, high)]

    # ---- orders ----------------------------------------------------------------------------------

    def report(self):
        """Return the next report; a hang-up is an EOFError, silence an error."""
        assert select.select([self.order], [], [], _ANSWER_SECONDS)[0], "the agent does not answer"
        message = self.order.recv(wire.REPORT_MAX_BYTES)
        if not message:
            raise EOFError
        return wire.unpack_report(message)

    def send(self, kind, runs, *, space=SPACE, order_id=97, epoch=None):
        """Order runs, each (page, frame, nr_pages[, join]); return the errors by page."""
        columns = np.array([(*run, 0)[:4] for run in runs], dtype=wire.RUN)
        epoch = self.epoch if epoch is None else epoch
        self.order.send(wire.pack_order(kind, space, order_id, epoch, columns))
        answered, of_space, of_order, _, _, spans = self.report()
        assert (answered, of_space, of_order) == (wire.ReportKind.OUTCOME, space, order_id)
        return {page: error for first, nr, error, _ in spans.tolist() for page in range(first, first + nr)}

    def merge(self, *runs, **how):
        return self.send(OrderKind.MERGE, runs, **how)

    def renew(self, *runs, **how):
        return self.send(OrderKind.RENEW, runs, **how)

    def rehome(self, *runs, **how):
        return self.send(OrderKind.REHOME, [(page, ZERO, nr) for page, nr in runs], **how)


@contextlib.contextmanager
def joined(nr_pages=23, nr_frames=61, *, tracks=True, secure=False, advised=True, directory="/nowhere"):
    """Yield an agent with one space; `advised`: all of it mapped and mergeable, all hole."""
    agent = Joined(nr_pages, nr_frames, tracks=tracks, secure=secure, directory=directory)
    try:
        if advised:
            agent.map()
            agent.advise()
        yield agent
    finally:
        agent.close()
