"""How a ksmd works, as far as it is decided when it is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Setup:
    """What `ksmemu start`, ksmemu.Ksmd and `python -m ksmemu.ksmd` have options for, of the same names."""

    fuse: bool = False
    """Serve the control files by FUSE: a bad store gets the kernel's errno, and each store is obeyed."""
    rfc2009: bool = False
    """Behave as the patches of May 2009 had it, with the files of that time, not as Linux 6.18."""
    events: bool = False
    """Write events from the first scan on."""

    def options(self) -> Iterator[str]:
        """Yield the options that say so on a command line."""
        return (f"--{field.name}" for field in fields(self) if getattr(self, field.name))
