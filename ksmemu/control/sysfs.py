"""The control directory: the values in force, the files that show them, and what a store does.

    client ── store ──▶ plain.py or mounted.py ▶ store() ▶ parse ▶ on_store()   ksmd obeys
    client ◀── read ─── value files ◀── publish(), set(), store()                  ksmd reports

How stores come here is the server's affair: `plain.py` watches the value files
themselves, behind `mounted.py` is a FUSE mount.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ksmemu.control.counters import COUNTERS, STATS, Counter
from ksmemu.control.tunables import TUNABLES, Tunable
from ksmemu.control.value_file import ValueFile

_log = logging.getLogger(__name__)

OnStore = Callable[[str, int], None]
"""Obey a store of (name, value), also of the value in force; OSError refuses it."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a control directory holds, by name."""

    tunables: Mapping[str, Tunable]
    counters: Mapping[str, Counter]
    stats: Mapping[str, Counter]
    """In a folder of their own."""


LINUX = Files(TUNABLES, COUNTERS, STATS)
"""The files of Linux 6.18, and counters of ksmemu's own."""


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
        self._tunables = files.tunables
        self._values = {name: tunable.default for name, tunable in files.tunables.items()}
        self.writable = {
            name: ValueFile(folder / name, 0o644, tunable.show(tunable.default))
            for name, tunable in files.tunables.items()
        }
        self._counters = {name: ValueFile(folder / name, 0o444, "0") for name in files.counters}
        self._stats = {name: ValueFile(stats / name, 0o444, "0") for name in files.stats}

    def close(self) -> None:
        """Close every file; they stay where they are."""
        for file in (*self.writable.values(), *self._counters.values(), *self._stats.values()):
            file.close()

    def __getitem__(self, name: str) -> int:
        """Return the value of a tunable that is in force."""
        return self._values[name]

    def publish(self, counters: Mapping[str, int], stats: Mapping[str, int]) -> None:
        """Show new values; full_scans last: readers wait for it and then read the others."""
        for name, value in stats.items():
            self._stats[name].show(str(value))
        for name, value in counters.items():
            if name != "full_scans":
                self._counters[name].show(str(value))
        if "full_scans" in counters:
            self._counters["full_scans"].show(str(counters["full_scans"]))

    def set(self, name: str, value: int) -> None:
        """Put a value in force and show it: ksmd's own decision, on_store is not asked."""
        self._values[name] = value
        self.writable[name].show(self._tunables[name].show(value))

    def store(self, name: str, text: str) -> None:
        """Parse and obey what a client has stored.

        Raises:
            OSError: refused, with the kernel's errno, and logged. The old value is in force, or one
                that on_store has chosen.
        """
        text = text.partition("\0")[0]
        try:
            value = self._tunables[name].parse(text)
            self._on_store(name, value)
        except OSError as refusal:
            _log.warning("%s: store of %r refused, it is %d: %s", name, text, self[name], refusal.strerror)
            raise
        self.set(name, value)
