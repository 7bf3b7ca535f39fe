"""Ask the ksmd of an instance for the figures of one's own security domains."""

from __future__ import annotations

from typing import TypedDict, cast

from ksmemu import wire
from ksmemu.control.ask import ask
from ksmemu.instance import Instance


class Figures(TypedDict):
    """What ksmd tells a user; errors as those of ask(). Counters by the name of the domain, and by theirs."""

    full_scans: int
    domains: dict[str, dict[str, int]]


def figures(instance: Instance) -> Figures:
    """Return the counters of each domain of this user's that has workers; of all, if ksmd is his."""
    return cast("Figures", ask(instance, {"figures": wire.VERSION}))
