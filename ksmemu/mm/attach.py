"""Join a ksmd, and leave it. One attachment a process and instance, made by the first advice."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

from ksmemu import _core, features, shared_object, wire
from ksmemu.errors import KsmError, NotRunningError
from ksmemu.instance import Instance

_lock = threading.Lock()
_attachments: dict[Path, Attachment] = {}


class Attachment:
    """This process's connection to one ksmd: the control socket, and the agent.

    `nr_spaces` counts who uses it; the last one to leave takes thread, sockets and descriptors away.
    """

    def __init__(self, instance: Instance) -> None:
        features.require()
        self.instance = instance
        self.nr_spaces = 0
        self._control = instance.connect()
        try:
            self.agent = self._join()
        except BaseException:
            self._control.close()
            raise

    def _join(self) -> _core.Agent:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        with ours, theirs:
            try:
                reply, fds = self._ask({"hello": wire.VERSION}, theirs.fileno(), pagemap)
            except BaseException:
                os.close(pagemap)
                raise
            # From here on the descriptors belong to the agent, whatever happens.
            return _core.Agent(
                ours.detach(), fds[0], int(str(reply["pool_bytes"])), pagemap, bool(reply["tracks"])
            )

    def _ask(self, body: dict[str, object], *fds: int) -> tuple[dict[str, object], list[int]]:
        try:
            wire.send_control(self._control, body, fds)
            reply, received = wire.receive_control(self._control)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise NotRunningError(self.instance.directory) from None
        if "errno" in reply:
            raise KsmError(int(str(reply["errno"])), f"ksmd refuses: {reply['text']}")
        return reply, received

    def add_space(self, start: int, size: int, own: int) -> int:
        """Register an address space; returns its id. `own` belongs to the agent from here on.

        Raises:
            NotRunningError: ksmd is gone. KsmError: it refuses. `own` is still the caller's then.
        """
        read_only = shared_object.open_read_only(own)
        try:
            reply, _ = self._ask({"space": {"start": start, "size": size}}, read_only)
        finally:
            os.close(read_only)
        space = int(str(reply["space"]))
        self.agent.add_space(space, start, size, own)
        self.nr_spaces += 1
        return space

    def leave(self) -> None:
        """A space of this attachment is gone."""
        with _lock:
            self.nr_spaces -= 1
            if self.nr_spaces <= 0:
                self._close()

    def _close(self) -> None:
        if _attachments.get(self.instance.directory) is self:
            del _attachments[self.instance.directory]
        self.agent.close()
        self._control.close()


def attach(
    directory: str | os.PathLike[str] | None, start: int, size: int, own: int
) -> tuple[Attachment, int]:
    """Register a space with the ksmd of a directory; join that ksmd first if this process has not.

    A ksmd that went away and came back is joined anew; spaces of the old one stay with the old one.

    Raises:
        NotRunningError, ForeignInstanceError, KernelLacksError, KsmError: nothing is left behind.
    """
    instance = Instance.resolve(directory)
    with _lock:
        attachment = _attachments.get(instance.directory)
        if attachment is None or not attachment.agent.is_alive():
            attachment = Attachment(instance)
            _attachments[instance.directory] = attachment
        try:
            return attachment, attachment.add_space(start, size, own)
        except BaseException:
            if attachment.nr_spaces == 0:
                attachment._close()  # noqa: SLF001 - same module
            raise


def forget_in_child() -> None:
    """Forget every attachment: memory and threads stayed with the parent, the core closed its descriptors."""
    global _lock  # noqa: PLW0603 - a lock that another thread of the parent held is no use here
    _lock = threading.Lock()
    for attachment in _attachments.values():
        attachment.agent.close()
        attachment._control.close()  # noqa: SLF001 - same module
    _attachments.clear()
