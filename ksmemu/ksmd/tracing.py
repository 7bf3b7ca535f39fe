"""The folder that tracefs is in the kernel: `events/ksm/enable` turns events on and off, `trace` has them."""

from __future__ import annotations

from pathlib import Path

from ksmemu.control.files import TRACING
from ksmemu.control.plain import PlainFiles
from ksmemu.control.sysfs import ControlDirectory
from ksmemu.ksmd.domains import Domains


class Tracing:
    """The control file of events. Runs in: ksmd, one thread."""

    def __init__(self, folder: Path, domains: Domains) -> None:
        """Create the folder; events are off."""
        self._domains = domains
        where = folder / "events/ksm"
        self._control = ControlDirectory(where, where, TRACING, self._obey)
        self._server = PlainFiles(self._control)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a client stored something."""
        return self._server.fileno()

    def read_events(self) -> None:
        """Obey what clients have stored since the last call; does not block."""
        self._server.read_events()

    def store(self, value: int) -> None:
        """Obey a store; OSError: there is no place for the trace, events stay off."""
        self._control.store("enable", str(value))

    def publish(self) -> None:
        """Show whether events are on: they end by themselves when a write fails."""
        self._control.set("enable", int(self._domains.trace.is_on))

    def close(self) -> None:
        """Close every file; they stay where they are."""
        self._server.close()
        self._control.close()

    def _obey(self, _name: str, value: int) -> None:
        self._domains.record(on=bool(value))
