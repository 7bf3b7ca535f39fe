"""The ksmd that agents join when theirs is gone, or when they are born by a fork: a thread of a test.

It answers everything with a yes, and keeps what it was told.
"""

import contextlib
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from ksmemu import wire
from ksmemu.wire import ReportKind
from tests.support.procmaps import PAGE
from tests.support.waiting import wait_until

ZEROS = (1 << 32) - 1
"""What a page shows that shows no frame. Source: KSMEMU_NO_FRAME."""
_SECONDS = 5.0
_LOOK_SECONDS = 0.005
_ESTALE = {"errno": 116, "text": "another pool"}
_CREDENTIALS = struct.Struct("=iII")


@dataclass
class Joined:
    """Who has joined, and what he has said that he maps: the values by page."""

    hello: dict
    control: socket.socket
    order: socket.socket
    mapped: dict = field(default_factory=dict)
    inherited: dict = field(default_factory=dict)
    nr_ancestors: int = 0
    epoch: int = 0

    def close(self):
        self.control.close()
        self.order.close()


@contextlib.contextmanager
def _as(user):
    before = os.geteuid()
    os.seteuid(before if user is None else user)
    try:
        yield
    finally:
        os.seteuid(before)


class NextKsmd:
    """Listens in a directory until it is closed. `pool`: for who comes with another one; None: all are right.

    `stirs`: whether who waits for a sign gets one. Without it an agent tries again later.
    `wrong`: what is answered first, instead of a yes to the hello: (message, descriptors); (): it hangs up;
    None: nothing.
    `cuts`: how often it hangs up as soon as it has heard all.
    `user`: who the kernel says that listens.

    Attributes: joined: by pid, removed by who takes them. heard: who got no answer. tries: when each began.
    """

    def __init__(self, directory, pool=None, *, stirs=True, wrong=(), cuts=0, user=None):
        self.directory, self.pool, self.joined, self.stirs = directory, pool, {}, stirs
        self._wrong, self.heard = [*wrong], []
        self._cuts = cuts
        self.tries = []
        self._is_over = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.settimeout(_LOOK_SECONDS)
        self._listener.bind(str(directory / "part"))
        with _as(user):
            self._listener.listen()
        (directory / "part").rename(directory / "ksmd.sock")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self):
        self._is_over = True
        self._thread.join()
        self._listener.close()
        for joined in self.joined.values():
            joined.close()
        (self.directory / "ksmd.sock").unlink()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def await_one(self, pid, seconds=_SECONDS):
        """Return what a process has said, when it has said all."""
        wait_until(lambda: pid in self.joined, seconds, "the joining")
        return self.joined.pop(pid)

    def _serve(self):
        while not self._is_over:
            try:
                control, _ = self._listener.accept()
            except TimeoutError:
                if self.stirs:
                    self._stir()
                continue
            self.tries.append(time.monotonic())
            control.settimeout(_SECONDS)
            try:
                self._listen_to(control)
            except (OSError, EOFError):
                control.close()

    def _stir(self):
        """Let agents look again that wait for something to happen in the directory."""
        part = self.directory / "part"
        part.touch()
        part.rename(self.directory / "stirred").unlink()

    def _listen_to(self, control):
        pid, _, _ = _CREDENTIALS.unpack(
            control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        hello, fds = wire.receive_control(control)
        order = socket.socket(fileno=fds[0])
        for fd in fds[1:]:
            os.close(fd)
        order.settimeout(_SECONDS)
        joined = Joined(hello, control, order)
        try:
            if self._welcome(joined, with_pool=len(fds) > 2):
                self._hear(joined)
                if self._cuts:
                    self._cuts -= 1
                    joined.close()
                else:
                    self.joined[pid] = joined
        except BaseException:
            joined.close()
            raise

    def _welcome(self, joined, with_pool):
        if self._wrong:
            if (answer := self._wrong.pop(0)) is None:
                self.heard.append(joined)
                return False
            if answer:
                wire.send_control(joined.control, *answer)
            joined.close()
            return False
        if with_pool and self.pool is not None:
            wire.send_control(joined.control, _ESTALE)
            joined.close()
            return False
        name = joined.hello["holder"] if self.pool is None else 1777
        size = PAGE if self.pool is None else os.fstat(self.pool).st_size
        body = {"holder": name, "pool_bytes": size}
        wire.send_control(joined.control, body, () if self.pool is None else (self.pool, self.pool))
        return True

    def _hear(self, joined):
        """Hear all of it. A message more is one too many: nothing of it would be read."""
        resumed = 0
        while resumed < joined.hello["resumes"]:
            ready, _, _ = select.select([joined.control, joined.order], [], [], _SECONDS)
            if joined.control in ready:
                self._answer(joined)
            elif joined.order in ready:
                resumed += self._note(joined)
            else:
                raise TimeoutError

    def _answer(self, joined):
        body, fds = wire.receive_control(joined.control)
        for fd in fds:
            os.close(fd)
        joined.nr_ancestors += "ancestor" in body
        wire.send_control(joined.control, {})

    @staticmethod
    def _note(joined):
        """Note what is reported; return whether that was the last of a space."""
        message = joined.order.recv(wire.REPORT_MAX_BYTES)
        if not message:
            raise EOFError
        kind, _, _, joined.epoch, _, spans = wire.unpack_report(message)
        into = {ReportKind.MAPPED: joined.mapped, ReportKind.INHERITED: joined.inherited}.get(kind)
        for span in spans if into is not None else ():
            for index in range(int(span["nr_pages"])):
                follows = kind is ReportKind.MAPPED and span["value"] != ZEROS
                into[int(span["page"]) + index] = int(span["value"]) + (index if follows else 0)
        return kind is ReportKind.RESUMED
