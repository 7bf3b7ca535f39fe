"""Whatever a client says, decoded from bytes, said to the books of ksmd in this process.

hypothesis makes the bytes in the suite (tests/hostile/test_fuzz.py), atheris, which is led by what the bytes
reach in the code, as long as one likes: make fuzz SECONDS=600.
"""

import contextlib
import os
import socket
import struct
import sys
from pathlib import Path

NR_PAGES = 31
PAGE = 4096
_START = 0x10000000
_CALM = (EOFError, OSError)


class Client:
    """A worker with one space, whose halves are equal, and with whom a test plays both parts."""

    def __init__(self, domain):
        from ksmemu import wire  # noqa: PLC0415 - after the instruments
        from ksmemu.ksmd import connection  # noqa: PLC0415

        self._wire, self._connection, self._domain = wire, connection, domain
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._order, order = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._own = os.memfd_create("own")
        os.pwrite(self._own, os.urandom(NR_PAGES * PAGE) * 2, 0)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        wire.send_control(self._control, {"hello": wire.VERSION}, (order.fileno(), pagemap))
        os.close(pagemap)
        order.close()
        theirs.setblocking(False)
        body, fds = wire.receive_control(theirs)
        self.worker = connection.join(domain, theirs, body, fds, {})
        domain.workers.append(self.worker)
        self._nr_spaces = 0
        space = b'{"space": {"id": 1, "start": %d, "size": %d}}' % (_START, 2 * NR_PAGES * PAGE)
        self.ask(space, with_own=True)
        self.report(2, 1, 0, [(0, 2 * NR_PAGES, 0)])

    def ask(self, body, *, with_own):
        """Send a request on the control socket, and let ksmd answer it."""
        socket.send_fds(self._control, [body], [self._own] if with_own else [])
        self._nr_spaces += 1
        self._connection.answer(self._domain, self.worker, self._nr_spaces)

    def report(self, kind, space, order_id, spans):
        tail = b"".join(struct.pack("=QQiI", *(*span, 0)[:4]) for span in spans)
        self.say(self._wire.REPORT.pack(kind, space, order_id, 0, len(spans), 0) + tail)

    def say(self, message):
        """Send a report, and let ksmd enter it."""
        self._order.send(message)
        self._connection.report(self._domain, self.worker)

    def close(self):
        self._connection.reap(self._domain, self.worker)
        self._control.close()
        self._order.close()
        os.close(self._own)


class Target:
    """The books of one ksmd; each call is the life of one client, after which nothing of it may be left."""

    def __init__(self):
        from ksmemu.ksmd.connection import NoRoomError  # noqa: PLC0415 - after the instruments
        from ksmemu.ksmd.domain import Domain  # noqa: PLC0415
        from ksmemu.ksmd.harvest import WriteTracker  # noqa: PLC0415
        from ksmemu.ksmd.scan import Scan  # noqa: PLC0415
        from ksmemu.wire import WireError  # noqa: PLC0415

        self.domain = Domain(Path("no trace"))
        self._scan = Scan(self.domain, WriteTracker())
        self._cut_off = (WireError, NoRoomError, *_CALM)
        self.nr_outcomes = 0

    def __call__(self, data):
        client = Client(self.domain)
        with contextlib.suppress(*self._cut_off):
            self._live(client, bytearray(data))
        client.close()
        pool = self.domain.pool
        assert not self.domain.slots
        assert not self.domain.workers
        assert pool.nr_used == pool.nr_refs == pool.blocks_bytes() == 0
        assert not pool.refs[: pool._high].any()
        assert not pool.pending[: pool._high].any()

    def _live(self, client, data):
        """Let a client say what the bytes say, scans in between, until it talks garbage."""
        take = lambda: data.pop() if data else 0  # noqa: E731
        while data:
            match take() % 16:
                case 0:
                    client.say(bytes(take() for _ in range(take())))
                case 1:
                    body = bytes(take() for _ in range(take()))
                    client.ask(body, with_own=bool(take() % 2))
                case 2 | 3:
                    spans = [(take(), take(), take() % 3, take()) for _ in range(take() % 4)]
                    client.report(take() % 12, take() % 3, take(), spans)
                case 4 | 5 | 6 | 7 | 8:
                    self._answer_an_order(client, take)
                case _:
                    _, ended = self._scan.step(1000)
                    if ended:
                        self._scan.end()

    def _answer_an_order(self, client, take):
        """Tell an outcome that fits the order: done as far as one byte says, and refused with another."""
        for order_id, order in list(client.worker.orders.items())[:1]:
            nr, done, error = len(order.pages), take() % NR_PAGES, take()
            done = min(done, nr - 1)
            client.report(1, order.slot.number, order_id, [(0, done, 0), (done, nr - done, error % 40)])
            self.nr_outcomes += 1

    def close(self):
        self.domain.close()


def main():
    import atheris  # noqa: PLC0415 - an extra of its own

    with atheris.instrument_imports(include=["ksmemu.ksmd", "ksmemu.wire"]):
        target = Target()
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
