"""How a ksmd works, as far as it is decided when it is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from ksmemu import policy


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
    policy: str = policy.DEFAULT
    """What to try to merge, and when: see ksmemu.policy."""

    def __post_init__(self) -> None:
        """Refuse what cannot be had together.

        Raises:
            ValueError: more than one of rfc2009, fills_only and secure; a policy beside rfc2009 or secure;
                no such policy.
        """
        policy.load(self.policy)
        rules = [name for name in ("rfc2009", "fills_only", "secure") if getattr(self, name)]
        if len(rules) > 1:
            raise ValueError(f"not together: {' and '.join(rules)}")
        if self.policy != policy.DEFAULT and (self.rfc2009 or self.secure):
            raise ValueError(f"not together: {rules[0]} and policy {self.policy}")

    def options(self) -> Iterator[str]:
        """Yield it as options of `python -m ksmemu.ksmd`."""
        yield f"--policy={self.policy}"
        for field in fields(self):
            if getattr(self, field.name) is True:
                yield f"--with={field.name}"
