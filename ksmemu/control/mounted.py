r"""ksmd's end of a control directory that FUSE serves: stores are refused with their errno.

    client ── write ──▶ fuse.py ── NAME \0 BYTES ──▶ read_events() ▶ ControlDirectory.store()
    client ◀─ errno ─── fuse.py ◀──── errno, or 0 ──┘
    client ◀─ read ──── fuse.py ◀─── value files, whatever ksmd is doing

fuse.py is a process of its own, a child of ksmd. It ends when ksmd does, and the mount with it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from ksmemu import mounts
from ksmemu.control.launch import last_log_line
from ksmemu.control.sysfs import ControlDirectory
from ksmemu.errors import KernelLacksError
from ksmemu.instance import Instance

_log = logging.getLogger(__name__)

MOUNTED = b"mounted"
"""The first message of the server."""
ANSWER = struct.Struct("i")
"""An errno, or 0."""

_MESSAGE_BYTES = 8192
"""A name, and a page of text at most."""
_MOUNT_SECONDS = 20.0
_END_SECONDS = 10.0


class MountedFiles:
    """Stores through a FUSE mount at the kernel's path. Runs in: ksmd, one thread."""

    def __init__(self, control: ControlDirectory, instance: Instance) -> None:
        """Start the server and return when the mount is there.

        Args:
            control: its files lie in `instance.values`.
            instance: claimed; the mount is at `instance.control`.
        Raises:
            KernelLacksError: nothing could be mounted; the text says why.
        """
        self._control = control
        self._mount_point = instance.control
        self._mount_point.mkdir(parents=True, exist_ok=True)
        self._socket, in_server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with in_server:
            self._process = _start(instance.values, self._mount_point, in_server)
        self._socket.settimeout(_MOUNT_SECONDS)
        if self._receive() != MOUNTED:
            self.close()
            raise KernelLacksError(f"no  FUSE: nothing could be mounted: {last_log_line(instance)}")

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a client stored something."""
        return self._socket.fileno()

    def read_events(self) -> None:
        """Obey one store and answer it; a server that has gone takes the control files along."""
        if not (message := self._receive()):
            _log.error("the FUSE server has gone: there are no control files until ksmd is started anew")
            self.close()
            return
        name, _, text = message.partition(b"\0")
        answer = 0
        try:
            self._control.store(name.decode(), text.decode("latin-1"))
        except OSError as refusal:
            answer = refusal.errno or errno.EIO
        with contextlib.suppress(OSError):  # it has just gone: that is the next event
            self._socket.send(ANSWER.pack(answer))

    def _receive(self) -> bytes:
        """Return the next message, or nothing if the server has gone or says nothing for too long."""
        try:
            return self._socket.recv(_MESSAGE_BYTES)
        except (ConnectionError, TimeoutError):
            return b""

    def close(self) -> None:
        """End the server; nothing stays mounted. May be repeated."""
        self._socket.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for mount in mounts.below(self._mount_point):
            mounts.detach(mount)


def _start(values: Path, mount_point: Path, end: socket.socket) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ksmemu.control.fuse"]
    return subprocess.Popen(
        [*command, os.fspath(values), os.fspath(mount_point), str(end.fileno())],
        stdin=subprocess.DEVNULL,
        pass_fds=[end.fileno()],
        env=os.environ | {"FUSE_LIBRARY_NAME": "fuse3"},  # mfusepy would take an older one first
    )
