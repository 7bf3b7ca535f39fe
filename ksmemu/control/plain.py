"""The control directory as plain files: what clients have written into them is taken as stores.

    client ── write ──▶ file ── inotify ──▶ read_events() ▶ ControlDirectory.store()
                        file ◀─── put back ◀──┘

A plain file cannot refuse a store as the kernel does: the old value is put back. Do not assume that
every store is seen: of two in quick succession it may be only the last, and a store of the text that
the file shows cannot be told from ksmd's own writing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Iterator

from ksmemu import _core
from ksmemu.control.sysfs import ControlDirectory

_log = logging.getLogger(__name__)

# Source: <linux/inotify.h>
_IN_MODIFY = 0x0002
_IN_ATTRIB = 0x0004
_IN_CLOSE_WRITE = 0x0008
_IN_MOVE_SELF = 0x0800
_STORED = _IN_MODIFY | _IN_CLOSE_WRITE
_REMOVED = _IN_ATTRIB | _IN_MOVE_SELF
"""unlink() of a file that we hold open shows as a change of its link count, not as a deletion."""
_EVENT = struct.Struct("iIII")


class PlainFiles:
    """Stores through plain files; needs no privilege. Runs in: ksmd, one thread."""

    def __init__(self, control: ControlDirectory) -> None:
        """Watch the files of a control directory."""
        self._control = control
        self._inotify = _core.inotify_init()
        self._watches = {self._watch(name): name for name in control.writable}

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a client stored something."""
        return self._inotify

    def close(self) -> None:
        """Watch no more."""
        os.close(self._inotify)

    def read_events(self) -> None:
        """Obey what clients have stored since the last call; does not block."""
        stored: dict[int, int] = {}
        removed: set[int] = set()
        for watch, mask in self._drain():
            if mask & _STORED:
                stored[watch] = mask  # only the last counts: the content is read once
            if mask & _REMOVED:
                removed.add(watch)
        for watch, mask in stored.items():
            if watch in self._watches:
                self._take_store(self._watches[watch], closed=bool(mask & _IN_CLOSE_WRITE))
        for watch in removed & self._watches.keys():
            self._recreate_if_lost(watch)

    def _drain(self) -> Iterator[tuple[int, int]]:
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._inotify, 65536):
                offset = 0
                while offset < len(events):
                    watch, mask, _cookie, name_length = _EVENT.unpack_from(events, offset)
                    yield watch, mask
                    offset += _EVENT.size + name_length

    def _take_store(self, name: str, *, closed: bool) -> None:
        """Obey what the file says now, unless it says what we wrote ourselves."""
        file = self._control.writable[name]
        content = file.content()
        if not content and not closed:
            return  # a client has truncated it and is about to write
        # What follows the first line fills the file up, or is of a longer text that was there before.
        text = content.partition(b"\n")[0].decode("latin-1")
        with file.taken(content):
            if text != file.text or b"\0" in content:  # which is never of our own writing
                with contextlib.suppress(OSError):  # logged, and put back
                    self._control.store(name, text)

    def _watch(self, name: str) -> int:
        path = os.fspath(self._control.writable[name].path)
        return _core.inotify_add_watch(self._inotify, path, _STORED | _REMOVED)

    def _recreate_if_lost(self, watch: int) -> None:
        name = self._watches[watch]
        file = self._control.writable[name]
        if not file.is_lost():
            return
        del self._watches[watch]
        try:
            file.recreate()
        except OSError as error:  # a folder stands in its place, or there is no place any more
            _log.error(
                "%s: removed or replaced by a client; it stays %s until ksmd is started anew: %s",
                name,
                file.text,
                error.strerror,
            )
            return
        self._watches[self._watch(name)] = name
        _log.warning("%s: removed or replaced by a client; made again with %s", name, file.text)
