"""How a ksmd works, as far as it is decided when it is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Setup:
    """What `ksmemu start` and ksmemu.Ksmd have options for, of the same names."""

    fuse: bool = False
    """Serve the control files by FUSE: a bad store gets the kernel's errno, and each store is obeyed."""
    rfc2009: bool = False
    """Behave as the patches of May 2009 had it, with the files of that time, not as Linux 6.18."""
    events: bool = False
    """Write events from the first scan on."""
    all_users: bool = False
    """Serve every user, each in security domains of his own; the control files stay this user's."""
    fills_only: bool = False
    """Merge nothing but pages of zeros and of 0xff: that tells nobody what another page holds."""
    secure: bool = False
    """Share, but do not show it: a page without a partner gets a frame as one with a partner does."""

    def __post_init__(self) -> None:
        """Refuse what cannot be had together.

        Raises:
            ValueError: more than one of rfc2009, fills_only and secure.
        """
        rules = [name for name in ("rfc2009", "fills_only", "secure") if getattr(self, name)]
        if len(rules) > 1:
            raise ValueError(f"not together: {' and '.join(rules)}")

    def names(self) -> Iterator[str]:
        """Yield the names of what holds: Setup(**dict.fromkeys(names, True)) is the same again."""
        return (field.name for field in fields(self) if getattr(self, field.name))
