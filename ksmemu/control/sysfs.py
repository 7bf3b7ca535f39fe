"""The control directory: tunables and counters as plain files under the kernel's names.

    client ── store ──▶ file ── inotify ──▶ read_events() ▶ parse ▶ on_store()      ksmd obeys
    client ◀── read ─── file ◀── pwrite ─── publish(), store()                      ksmd reports

Every value is rewritten in place at one fixed width, so a reader that keeps its descriptor always
reads a whole and fresh value. A plain file cannot refuse a store as the kernel does: a bad one is
put back and logged. Do not assume that ksmd sees every store: of two in quick succession it may see
only the last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ksmemu import _core
from ksmemu.control.counters import COUNTERS, STATS
from ksmemu.control.tunables import TUNABLES
from ksmemu.instance import Instance

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

VALUE_WIDTH = 20
"""Columns of a value: the longest number of 64 bits, sign included."""

OnStore = Callable[[str, int], None]
"""Obey a store of (name, value); ValueError or OSError refuses it: the old value is shown again."""


def value_text(text: str) -> bytes:
    """Return the text of a value as its file shows it, VALUE_WIDTH columns and a newline."""
    return f"{text:<{VALUE_WIDTH}}\n".encode()


class ControlDirectory:
    """The control files of one instance; single-threaded.

    Runs in: ksmd, which holds the claim on the instance.
    """

    def __init__(self, instance: Instance, on_store: OnStore) -> None:
        """Create every file: tunables (0644) with their defaults, counters (0444) with 0."""
        self._on_store = on_store
        self._tunables = {
            name: _ValueFile(instance.control / name, 0o644, tunable.default, tunable.show)
            for name, tunable in TUNABLES.items()
        }
        self._counters = {name: _ValueFile(instance.control / name, 0o444, 0) for name in COUNTERS}
        self._stats = {name: _ValueFile(instance.stats / name, 0o444, 0) for name in STATS}
        self._inotify = _core.inotify_init()
        self._watches = {self._watch(file): name for name, file in self._tunables.items()}

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a client stored something."""
        return self._inotify

    def close(self) -> None:
        """Close every file; they stay where they are."""
        os.close(self._inotify)
        for file in (*self._tunables.values(), *self._counters.values(), *self._stats.values()):
            file.close()

    def __getitem__(self, name: str) -> int:
        """Return the value of a tunable that is in force."""
        return self._tunables[name].value

    def publish(self, counters: Mapping[str, int], stats: Mapping[str, int]) -> None:
        """Show new values; full_scans last: readers wait for it and then read the others."""
        for name, value in stats.items():
            self._stats[name].show(value)
        for name, value in counters.items():
            if name != "full_scans":
                self._counters[name].show(value)
        if "full_scans" in counters:
            self._counters["full_scans"].show(counters["full_scans"])

    def store(self, name: str, value: int) -> None:
        """Show another value of a tunable: ksmd's own decision, on_store is not asked."""
        self._tunables[name].show(value)

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
        file = self._tunables[name]
        content = file.content()
        if not content and not closed:
            return  # a client has truncated it and is about to write
        # The padding is ours: what was read may be stored again.
        text = content.split("\n", 1)[0].rstrip(" ")
        if text != file.text():
            try:
                self._obey(name, text)
            except (ValueError, OSError) as refusal:
                reason = refusal.strerror if isinstance(refusal, OSError) else refusal
                _log.warning("%s: store of %r refused, it is %d: %s", name, text, file.value, reason)
        file.restore(content)

    def _obey(self, name: str, text: str) -> None:
        file = self._tunables[name]
        before, wanted = file.value, TUNABLES[name].parse(text)
        file.value = wanted
        try:
            if wanted != before:
                self._on_store(name, wanted)
        except (ValueError, OSError):
            if file.value == wanted:  # else on_store chose a third, as after a run=2 that failed
                file.value = before
            raise

    def _watch(self, file: _ValueFile) -> int:
        return _core.inotify_add_watch(self._inotify, os.fspath(file.path), _STORED | _REMOVED)

    def _recreate_if_lost(self, watch: int) -> None:
        name = self._watches[watch]
        file = self._tunables[name]
        if not file.is_lost():
            return
        del self._watches[watch]
        try:
            self._tunables[name] = file.recreated()
        except OSError as error:  # a folder stands in its place, or there is no place any more
            _log.error(
                "%s: removed or replaced by a client; it stays %d until ksmd is started anew: %s",
                name,
                file.value,
                error.strerror,
            )
            return
        self._watches[self._watch(self._tunables[name])] = name
        _log.warning("%s: removed or replaced by a client; made again with %d", name, file.value)


class _ValueFile:
    """One file and the value it shows; written in place at fixed width, never renamed."""

    def __init__(self, path: Path, mode: int, value: int, show: Callable[[int], str] = str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.value = value
        self._mode = mode
        self._show = show
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        os.fchmod(self._fd, mode)  # whatever the umask
        os.pwrite(self._fd, value_text(self.text()), 0)

    def text(self) -> str:
        """Return the value as it is shown, without the padding."""
        return self._show(self.value)

    def close(self) -> None:
        os.close(self._fd)

    def show(self, value: int) -> None:
        if value != self.value:
            self.value = value
            os.pwrite(self._fd, value_text(self.text()), 0)

    def content(self) -> str:
        return os.pread(self._fd, 4096, 0).decode("ascii", "replace")

    def restore(self, taken: str) -> None:
        """Show the value again in the place of what a client has written, and was taken."""
        text = value_text(self.text())
        if self.content() != taken:
            return  # a client has stored again: that store's own event is under way
        if taken.encode() != text:
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))  # cuts what a client wrote beyond it

    def is_lost(self) -> bool:
        """Whether the path no longer names this file."""
        try:
            return not os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._fd))
        except OSError:
            return True

    def recreated(self) -> _ValueFile:
        """Return a new file at the path with the same value; this one is closed."""
        self.path.unlink(missing_ok=True)
        new = _ValueFile(self.path, self._mode, self.value, self._show)
        self.close()
        return new
