"""The control directory: the values in force, the files that show them, and what a store does.

    client ── store ──▶ plain.py or mounted.py ▶ store() ▶ parse ▶ on_store()   ksmd obeys
    client ◀── read ─── value files ◀── publish(), set(), store()                  ksmd reports

How stores come here is the server's affair: `plain.py` watches the value files
themselves, behind `mounted.py` is a FUSE mount.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from ksmemu.control.files import Files
from ksmemu.control.value_file import ValueFile

_log = logging.getLogger(__name__)

OnStore = Callable[[str, int], None]
"""Obey a store of (name, value), also of the value in force; OSError refuses it."""


class ControlDirectory:
    """The control files of one instance. Runs in: ksmd, one thread."""

    def __init__(self, folder: Path, stats: Path, files: Files, on_store: OnStore) -> None:
        """Create every file: tunables (0644) with their defaults, counters (0444) with 0.

        Args:
            folder: of tunables and counters; made here, for this user alone.
            stats: folder of ksmemu's own counters.
            files: which they are.
            on_store: asked at every store.
        """
        folder.mkdir(mode=0o700, parents=True)
        self._on_store = on_store
        self._files = files
        self._values = {name: tunable.default for name, tunable in files.tunables.items()}
        self.writable = {
            name: ValueFile(folder / name, 0o644, tunable.show(tunable.default))
            for name, tunable in files.tunables.items()
        }
        self.writable |= {name: ValueFile(folder / name, 0o644, "") for name in files.actions}
        self._counters = {name: ValueFile(folder / name, 0o444, "0") for name in files.counters}
        self._counters |= {name: ValueFile(stats / name, 0o444, "0") for name in files.stats}

    def close(self) -> None:
        """Close every file; they stay where they are."""
        for file in (*self.writable.values(), *self._counters.values()):
            file.close()

    def __getitem__(self, name: str) -> int:
        """Return the value of a tunable that is in force."""
        return self._values[name]

    def publish(self, counters: Mapping[str, int]) -> None:
        """Show new values of counters; full_scans last: readers wait for it and then read the others."""
        for name, value in counters.items():
            if name != "full_scans":
                self._counters[name].show(str(value))
        if "full_scans" in counters:
            self._counters["full_scans"].show(str(counters["full_scans"]))

    def set(self, name: str, value: int) -> None:
        """Put a value in force and show it: ksmd's own decision, on_store is not asked."""
        self._values[name] = value
        self.writable[name].show(self._files.tunables[name].show(value))

    def show(self, name: str, text: str) -> None:
        """Show what a read of an action's file says."""
        self.writable[name].show(text)

    def store(self, name: str, text: str) -> None:
        """Parse and obey what a client has stored.

        Raises:
            OSError: refused, with the kernel's errno, and logged. The old value is in force, or one
                that on_store has chosen. In 2009 that was no error.
        """
        text = text.partition("\0")[0]
        tunable = self._files.tunables.get(name)
        try:
            value = (tunable or self._files.actions[name]).parse(text)
            self._on_store(name, value)
        except OSError as refusal:
            is_ = self.writable[name].text
            _log.warning("%s: store of %r refused, it is %s: %s", name, text, is_, refusal.strerror)
            if self._files.refuses:
                raise
        else:
            if tunable:
                self.set(name, value)
