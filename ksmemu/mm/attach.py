"""Join a ksmd, and leave it. One attachment a process, instance and domain, made by the first advice."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from pathlib import Path
from typing import NamedTuple

from ksmemu import _core, features, shared_object, wire
from ksmemu.errors import KsmError, NotRunningError
from ksmemu.instance import Instance
from ksmemu.mm import flags
from ksmemu.wire import WireError

_MAX_ERRNO = 4095
"""Source: MAX_ERRNO of <linux/err.h>."""
_MAX_HOLDER = (1 << 62) - 1

_ANSWER_SECONDS = 10.0
"""ksmd answers between two slices of a scan; only one that is stopped takes so long."""


class Place(NamedTuple):
    """Where a space is to be merged: the directory of a ksmd (None: the default one), and a domain there."""

    directory: str | os.PathLike[str] | None
    label: str


class _Where(NamedTuple):
    """Who may share an attachment: spaces of one instance and domain. A process may change its user."""

    directory: Path
    label: str
    uid: int


_lock = threading.RLock()  # a signal handler may fork
_attachments: dict[_Where, Attachment] = {}


class Attachment:
    """This process's connection to one ksmd, for one security domain: the control socket, and the agent.

    When ksmd goes, the agent joins the next one in the same directory by itself: `agent.is_alive()`.
    `nr_spaces` counts who uses it; the last one to leave takes thread, sockets and descriptors away.
    `rfc2009`: ksmd is of that year, and unmerges nothing when advice is withdrawn.
    """

    def __init__(self, instance: Instance, label: str) -> None:
        features.require()
        self.instance = instance
        self._where = _where(instance, label)
        self.nr_spaces = 0
        self._last_space = 0
        with instance.connect() as control:
            control.settimeout(_ANSWER_SECONDS)
            self.agent = self._join(control)
        self.agent.set_flags(flags.merge_any, flags.refuses)

    def _join(self, control: socket.socket) -> _core.Agent:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        with ours, theirs:
            with contextlib.ExitStack() as undo:
                undo.callback(os.close, pagemap)
                hello: dict[str, object] = {"hello": wire.VERSION, "domain": self._where.label}
                fds = (theirs.fileno(), pagemap)
                reply, (pool, held) = self._ask_at(control, hello, fds, nr_fds=2)
                undo.callback(os.close, pool)
                undo.callback(os.close, held)
                self.rfc2009 = bool(reply.get("rfc2009"))
                holder = self._number(reply, "holder", _MAX_HOLDER)
                pool_bytes = self._number(reply, "pool_bytes", os.fstat(pool).st_size)
                undo.pop_all()
            # From here on the descriptors belong to the agent, whatever happens.
            return _core.Agent(
                control=control.detach(),
                order=ours.detach(),
                pool=pool,
                pool_bytes=pool_bytes,
                held=held,
                holder=holder,
                pagemap=pagemap,
                directory=self.instance.directory,
                label=self._where.label,
                tracks=bool(reply.get("tracks")),
                rfc2009=self.rfc2009,
                secure=bool(reply.get("secure")),
            )

    def check_alive(self) -> None:
        """Return when ksmd listens: one that has just taken over is waited for.

        Raises:
            NotRunningError: there is none. KsmError: it does not take this process over.
        """
        if self.agent.is_alive():
            return
        if not self.instance.is_served():
            raise NotRunningError(self.instance.directory)
        if not self.agent.wait(int(_ANSWER_SECONDS)):
            raise KsmError(errno.ETIMEDOUT, f"the ksmd of {self.instance.directory} has not taken over")

    def _ask(self, body: dict[str, object], fds: tuple[int, ...]) -> None:
        self.check_alive()
        with socket.socket(fileno=self.agent.control()) as control:
            control.settimeout(_ANSWER_SECONDS)
            self._ask_at(control, body, fds)

    def _ask_at(
        self, control: socket.socket, body: dict[str, object], fds: tuple[int, ...], nr_fds: int = 0
    ) -> tuple[dict[str, object], list[int]]:
        """Return the answer of ksmd and the nr_fds descriptors that come with it."""
        try:
            wire.send_control(control, body, fds)
            reply, received = wire.receive_control(control)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise NotRunningError(self.instance.directory) from None
        except TimeoutError:
            control.shutdown(socket.SHUT_RDWR)  # what it answers now would be taken for the next answer
            text = f"the ksmd of {self.instance.directory} does not answer: is it stopped?"
            raise KsmError(errno.ETIMEDOUT, text) from None
        except WireError as error:
            raise self._garbage(str(error)) from None
        if "errno" in reply or len(received) != nr_fds:
            for fd in received:
                os.close(fd)
            if "errno" not in reply:
                raise self._garbage(f"{len(received)} descriptors, not {nr_fds}")
            raise KsmError(self._number(reply, "errno", _MAX_ERRNO), f"ksmd refuses: {reply.get('text')}")
        return reply, received

    def _number(self, reply: dict[str, object], name: str, highest: int) -> int:
        number = reply.get(name)
        if not isinstance(number, int) or not 0 < number <= highest:
            raise self._garbage(f"no {name}, or a wrong one")
        return number

    def _garbage(self, what: str) -> KsmError:
        return KsmError(errno.EPROTO, f"what serves {self.instance.directory} is no ksmd: {what}")

    def add_space(self, start: int, size: int, own: int, node: int) -> int:
        """Register an address space; returns its number. `own` belongs to the agent from here on.

        Raises:
            NotRunningError: ksmd is gone. KsmError: it refuses. `own` is still the caller's then.
        """
        space = self._last_space + 1
        read_only = shared_object.open_read_only(own)
        try:
            self._ask({"space": {"id": space, "start": start, "size": size, "node": node}}, (read_only,))
        finally:
            os.close(read_only)
        self.agent.add_space(space, start, size, node, own)
        self._last_space = space
        self.nr_spaces += 1
        return space

    def tell_flags(self) -> None:
        """Let ksmd know what this process has set with prctl: for its figures, and merge_pid."""
        self.agent.set_flags(flags.merge_any, flags.refuses)
        self._ask({"merge_any": flags.merge_any, "refuses": flags.refuses}, ())

    def leave(self) -> None:
        """A space of this attachment is gone."""
        with _lock:
            self.nr_spaces -= 1
            if self.nr_spaces <= 0:
                self._close()

    def _close(self) -> None:
        if _attachments.get(self._where) is self:
            del _attachments[self._where]
        self.agent.close()


def _where(instance: Instance, label: str) -> _Where:
    return _Where(instance.directory, label, os.geteuid())


def attach(place: Place, start: int, size: int, own: int, node: int) -> tuple[Attachment, int]:
    """Register a space with a ksmd, in a domain; join that first if this process has not.

    A ksmd that went away and came back has been joined anew, or is waited for.

    Raises:
        NotRunningError, ForeignInstanceError, KernelLacksError, KsmError: nothing is left behind.
    """
    instance = Instance.resolve(place.directory)
    where = _where(instance, place.label)
    with _lock:
        attachment = _attachments.get(where)
        if attachment is None:
            attachment = _attachments[where] = Attachment(instance, place.label)
        try:
            return attachment, attachment.add_space(start, size, own, node)
        except BaseException:
            if attachment.nr_spaces == 0:
                attachment._close()  # noqa: SLF001 - same module
            raise


def tell_flags() -> None:
    """Let every ksmd that this process has joined know its flags; one that is gone need not."""
    with _lock:
        for attachment in _attachments.values():
            with contextlib.suppress(NotRunningError):
                attachment.tell_flags()


def before_fork() -> None:
    """Wait until no other thread of this process is at work on an attachment."""
    _lock.acquire()


def after_fork_in_parent() -> None:
    """Undo before_fork()."""
    _lock.release()


def after_fork_in_child() -> None:
    """The agents are this process's own; the lock is the parent's."""
    global _lock  # noqa: PLW0603 - what the parent's thread holds, nobody here can release
    _lock = threading.RLock()
