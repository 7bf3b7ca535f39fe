"""Both ends of the protocol played by a test: a worker with nothing behind it, and a ksmd that lies."""

import contextlib
import itertools
import json
import os
import socket
import struct

import numpy as np

import ksmemu
from ksmemu import wire
from tests.support.procmaps import recount
from tests.support.waiting import wait_until

PAGE = os.sysconf("SC_PAGE_SIZE")
_SECONDS = 20.0


def one_page_object():
    """Return an own object of one page, a hole."""
    fd = os.memfd_create("fake")
    os.truncate(fd, PAGE)
    return fd


def connect(directory, seconds=_SECONDS):
    """Return a connection to the control socket of a ksmd."""
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.settimeout(seconds)
    with contextlib.chdir(directory):  # an address has room for 108 bytes
        control.connect("ksmd.sock")
    return control


def is_refused(control):
    """Whether ksmd ends this connection, after an answer with an errno or without one."""
    with contextlib.suppress(ConnectionError):
        while message := control.recv(wire.CONTROL_MAX_BYTES):
            assert "errno" in json.loads(message)
    return True


class FakeWorker:
    """A client that says hello properly, and then whatever a test makes it say."""

    def __init__(self, directory, seconds=_SECONDS):
        self.numbers = itertools.count(1)
        self._join(directory, seconds, {"hello": wire.VERSION}, ())

    def _join(self, directory, seconds, hello, fds):
        self.control = connect(directory, seconds)
        self.order, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.order.settimeout(seconds)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        wire.send_control(self.control, hello, (theirs.fileno(), pagemap, *fds))
        theirs.close()
        os.close(pagemap)
        self.hello, self._given = wire.receive_control(self.control)

    def resume(self, directory, nr_spaces, seconds=_SECONDS):
        """Hang up, and join again as one who maps frames of the pool already."""
        hello = self.hello | {"hello": wire.VERSION, "resumes": nr_spaces}
        pool, held = self._given
        self.control.close()
        self.order.close()
        self._join(directory, seconds, hello, (held,))
        self._given = (*self._given, pool, held)

    def own(self, content):
        """Return an own object that holds this content."""
        fd = os.memfd_create("fake")
        os.write(fd, content)
        return fd

    def register(self, fd, nr_pages, start=0x10000000):
        """Register a space; return its number."""
        number = next(self.numbers)
        body = {"space": {"id": number, "start": start, "size": nr_pages * PAGE}}
        wire.send_control(self.control, body, (fd,))
        reply, _ = wire.receive_control(self.control)
        assert not reply
        return number

    def report(self, kind, space, *spans, order_id=0, nr_spans=None, fds=()):
        """Send a report; spans are (page, nr_pages, error), and a value where there is one."""
        head = wire.REPORT.pack(kind, space, order_id, 0, len(spans) if nr_spans is None else nr_spans, 0)
        tail = b"".join(struct.pack("=QQiI", *(*span, 0)[:4]) for span in spans)
        socket.send_fds(self.order, [head + tail], fds)

    def receive_order(self):
        """Return (kind, space, id, number of pages) of the next order."""
        message = self.order.recv(1 << 20)
        kind, space, order_id, _, _ = wire.ORDER.unpack_from(message)
        runs = np.frombuffer(message, wire.RUN, offset=wire.ORDER.size)
        return kind, space, order_id, int(runs["nr_pages"].sum())

    def is_cut_off(self):
        """Whether ksmd has ended the order socket; orders that came before are passed over."""
        with contextlib.suppress(ConnectionError):
            while self.order.recv(1 << 20):
                pass
        return True

    def close(self):
        self.control.close()
        self.order.close()
        for fd in self._given:
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class FalseKsmd:
    """Listens where a ksmd would, and answers what a test wants."""

    def __init__(self, directory):
        directory.mkdir(mode=0o700)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(_SECONDS)
        with contextlib.chdir(directory):
            self._listener.bind("ksmd.sock")
        self._listener.listen()

    def accept(self):
        control, _ = self._listener.accept()
        control.settimeout(_SECONDS)
        return control

    def close(self):
        self._listener.close()


class Honest:
    """A worker process that uses ksmemu as intended: what a ksmd must go on serving."""

    def __init__(self, ksmd, worker, nr_pages=23):
        self.ksmd, self.worker, self.nr_pages = ksmd, worker, nr_pages
        self.pid = worker.pid
        worker.call(_make_twins, nr_pages)

    def assert_is_served(self):
        """New equal bytes in both spaces merge, and nothing of them is lost."""
        self.worker.call(_write_anew)
        wait_until(lambda: self.worker.call(nr_merged) == 2 * self.nr_pages, what="merging")
        self.assert_bytes_are_intact()

    def assert_bytes_are_intact(self):
        assert self.worker.call(_has_its_bytes)

    def is_merged(self):
        return self.worker.call(nr_merged) == 2 * self.nr_pages


def _make_twins(state, nr_pages):
    state.spaces = [ksmemu.AddressSpace(nr_pages * 4096) for _ in range(2)]
    for space in state.spaces:
        space.mmap(space.size, space.start)
        space.madvise(space.start, space.size, ksmemu.MADV_MERGEABLE)
    state.data = os.urandom(nr_pages * 4096)
    for space in state.spaces:
        space.write(space.start, state.data)


def _write_anew(state):
    state.data = os.urandom(len(state.data))
    for space in state.spaces:
        space.write(space.start, state.data)


def nr_merged(state):
    """Pages that show a frame which nobody has copied."""
    spans = [("self", space.start, space.start + space.size) for space in state.spaces]
    counted = recount(spans)
    return counted.merged - counted.broken


def _has_its_bytes(state):
    return all(space.read(space.start, space.size) == state.data for space in state.spaces)
