"""Ask the ksmd of an instance why memory is not merged."""

from __future__ import annotations

from typing import cast

from ksmemu import wire
from ksmemu.control.ask import ask
from ksmemu.control.reasons import Explained
from ksmemu.instance import Instance


def explain(instance: Instance, pid: int | None = None, address: int | None = None) -> Explained:
    """Return why the memory of a process, or of all that joined, is not merged.

    Args:
        pid: None: of every process the totals only.
        address: an address of that process: only the range around it, and what is known of its page.

    Raises:
        KsmError: ESRCH: no such process, or ksmd knows no memory of it that this user may ask about. EFAULT:
            the address is in no space that was advised. Others as those of ask().
    """
    return cast("Explained", ask(instance, {"explain": wire.VERSION, "pid": pid, "address": address}))
